"""Rules of a user's own: Python means Python. What the text says is what runs, on every backend, or an error says why not."""

from __future__ import annotations

import functools
import math
import traceback
from collections.abc import Callable
from math import exp as sqrt_by_name
from math import log10 as log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuopt
import gpuopt.torch
from gpuopt import rule
from gpuopt import sqrt as root
from own_rules import load, moved, scaled
from samples import HOST_BACKENDS, refused

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
# ---------------------------------------------------------------------------------------------------- names


class Schedule:
    """Methods called like functions of the language."""

    def exp(self, step: int) -> float:
        return 2.0

    def minimum(self, a: float, b: float) -> float:
        return 2.0


schedule = Schedule()
TWO = 2.0


def prepares() -> dict[str, tuple[Callable[..., Any], float]]:
    """Functions for `prepare`, and the k that Python gives for them in the first step."""

    def renamed(step, *, lr):
        return dict(k=log(100.0))

    def other_function(step, *, lr):
        return dict(k=sqrt_by_name(0.0))

    def method(step, *, lr):
        return dict(k=schedule.exp(step))

    def method_of_two(step, *, lr):
        return dict(k=schedule.minimum(step, 1))

    def shadowed(step, *, lr, abs=2.0):
        return dict(k=abs)

    def global_name(step, *, lr):
        return dict(k=TWO)

    def modules(step, *, lr):
        return {"k": math.sqrt(4.0) + math.exp(0.0) + gpuopt.maximum(lr, 2.0)}

    def smallest(step, *, lr):
        return dict(k=min(5.0, lr + 1, 3.0) + max(lr, 0.5))

    def own_step(step, *, lr):
        lr = lr + 1
        eps = lr * 2
        return dict(k=eps)

    def later_step(step, *, lr):
        step = step + 1
        return dict(k=0.5**step)

    def words(step, *, lr, kind="cosine", table=(3.0, 4.0)):
        return {"k": table[step] if kind == "cosine" else 0.0}

    def whole(step, *, lr, count=3):
        return {"k": float(sum(1 for _ in range(count)))}

    def dict_of_ones_own(step, *, lr):
        return dict_(k=1.0)

    def dict_(**values):
        return {name: 7 * value for name, value in values.items()}

    return {
        "log10 as log": (renamed, 2.0),
        "exp as another": (other_function, 1.0),
        "method": (method, 2.0),
        "method of two": (method_of_two, 2.0),
        "argument": (shadowed, 2.0),
        "global": (global_name, 2.0),
        "modules": (modules, 5.0),
        "min and max": (smallest, 3.0),
        "its own lr": (own_step, 4.0),
        "its own step": (later_step, 0.25),
        "words and tables": (words, 4.0),
        "a whole number": (whole, 3.0),
        "its own dict": (dict_of_ones_own, 7.0),
        "lambda": (lambda step, *, lr: {"k": lr + 1}, 2.0),
        "partial": (functools.partial(lambda step, *, lr, at: {"k": lr + at}, at=3.0), 4.0),
        "cached": (functools.lru_cache(lambda step, *, lr: {"k": 2.0}), 2.0),
    }


@BACKENDS
@pytest.mark.parametrize("name", prepares())
def test_prepare_means_what_python_means(name: str, backend: str) -> None:
    function, expected = prepares()[name]
    made = scaled()
    made.prepare(function)
    assert moved(made, backend) == expected


@BACKENDS
def test_prepare_without_lr(backend: str) -> None:
    made = scaled()
    made.prepare(lambda step: {"k": math.cos(0.0 * step)})
    assert moved(made, backend) == 1.0


@BACKENDS
def test_an_alias_of_a_primitive_is_that_primitive(backend: str) -> None:
    @rule
    def aliased(p, g, *, lr):
        p = p - lr * root(g)
        return p

    assert moved(aliased, backend, g=4.0) == 2.0


SHADOWED = {
    "argument": "@rule\ndef r(p, g, *, lr, sqrt=1.0):\n    p = p - sqrt(g)\n    return p\n",
    "local": "@rule\ndef r(p, g, *, lr):\n    sqrt = g\n    p = p - sqrt(g)\n    return p\n",
    "global": "from math import exp as sqrt\n@rule\ndef r(p, g, *, lr):\n    p = p - sqrt(g)\n    return p\n",
    "builtin": "def abs(x):\n    return x\n@rule\ndef r(p, g, *, lr):\n    p = p - abs(g)\n    return p\n",
    "module": "@rule\ndef r(p, g, *, lr):\n    p = p - np.sqrt(g)\n    return p\n",
    "math": "@rule\ndef r(p, g, *, lr):\n    p = p - math.sqrt(g)\n    return p\n",
    "method": "class A:\n    sqrt = gpuopt.sqrt\n@rule\ndef r(p, g, *, lr):\n    p = p - A.sqrt(g)\n    return p\n",
    "global number": "ALPHA = 0.1\n@rule\ndef r(p, g, *, lr):\n    p = p - ALPHA * g\n    return p\n",
}


@pytest.mark.parametrize("name", SHADOWED)
def test_a_rule_that_would_run_another_function_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(gpuopt.RuleSyntaxError) as caught:
        load(tmp_path, SHADOWED[name], monkeypatch)
    error = caught.value
    assert error.text is not None and error.offset is not None and error.end_offset is not None
    assert error.text[error.offset - 1 : error.end_offset - 1].split("(")[0] in error.msg


@BACKENDS
def test_a_name_that_is_bound_again_is_noticed_at_the_next_step(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load(tmp_path, SHADOWED["module"].replace("np.sqrt", "sqrt"), monkeypatch)
    w = np.zeros(1)
    optimizer = gpuopt.optimizer(module.r, w, lr=1.0, backend=backend)
    optimizer.step(np.ones(1))
    module.sqrt = math.exp  # type: ignore[attr-defined]
    with pytest.raises(gpuopt.RuleSyntaxError, match=r"`sqrt` here is `math\.exp`"):
        optimizer.step(np.ones(1))
    assert w.tolist() == [-1.0]
    with pytest.raises(gpuopt.RuleSyntaxError):
        gpuopt.kernel_source(module.r, backend="cuda")
    module.sqrt = gpuopt.sqrt  # type: ignore[attr-defined]
    optimizer.step(np.ones(1))
    assert w.tolist() == [-2.0]


@BACKENDS
def test_a_name_of_prepare_that_is_bound_again(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "@rule\ndef r(p, g, *, lr, k):\n    p = p - lr * k * g\n    return p\n"
    text += "@r.prepare\ndef _(step, *, lr):\n    return dict(k=sqrt(4 * lr))\n"
    module = load(tmp_path, text, monkeypatch)
    w = np.zeros(1)
    optimizer = gpuopt.optimizer(module.r, w, lr=1.0, backend=backend)
    optimizer.step(np.ones(1))
    module.sqrt = lambda x: 10.0  # type: ignore[attr-defined]
    optimizer.step(np.ones(1))
    assert w.tolist() == [-12.0]


@BACKENDS
def test_a_division_by_zero_among_scalars_is_pythons(backend: str) -> None:
    @rule
    def dividing(p, g, *, lr, eps):
        p = p - lr / eps * g
        return p

    with pytest.raises(ZeroDivisionError) as caught:
        moved(dividing, backend, eps=0.0)
    assert any(
        "dividing" in frame.name or "test_own_rules" in frame.filename for frame in traceback.extract_tb(caught.tb)
    )


# ---------------------------------------------------------------------------------------------------- what a rule may say


@rule(state=("m", "v"))
def expressions(p, g, m, v, *, lr):
    """Every value is of before the step."""
    return p - lr * (m + g), m + g + p, m + 2 * v


@BACKENDS
def test_returned_expressions_are_states_by_position(backend: str) -> None:
    p = np.ones(3)
    optimizer = gpuopt.optimizer(expressions, p, lr=0.5, backend=backend)
    for _ in range(2):
        optimizer.step(np.ones(3))
    state = optimizer.state_dict()["state"][0]
    assert (p[0], state["m"][0], state["v"][0]) == (1 - 0.5 - 1.5, 2 + 1 + 0.5, 2.0)


@BACKENDS
def test_a_rule_without_lr(backend: str) -> None:
    @rule
    def no_lr(p, g, *, rate=1.0):
        p = p - rate * g
        return p

    w = np.zeros(1)
    gpuopt.optimizer(no_lr, w, backend=backend).step(np.ones(1))
    assert w.tolist() == [-1.0]
    with pytest.raises(gpuopt.InputError, match=r"l1 = 0.1.*has no lr"):
        gpuopt.optimizer(no_lr, w, backend=backend, l1=0.1)


@BACKENDS
@pytest.mark.parametrize("order", ["beta2, beta1", "beta1, beta2", "beta3", "beta3, beta1", "beta10, beta9"])
def test_betas_in_any_order_and_number(
    order: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = order.split(", ")
    total = " + ".join(f"{name} * {10**k}" for k, name in enumerate(sorted(names, key=lambda n: int(n[4:]))))
    text = f"@rule\ndef r(p, g, *, lr, {order}):\n    p = p - lr * ({total}) * g\n    return p\n"
    module = load(tmp_path, text, monkeypatch)
    betas = [0.5, 0.25][: len(names)]
    assert moved(module.r, backend, betas=betas) == sum(b * 10**k for k, b in enumerate(betas))
    with pytest.raises(gpuopt.InputError, match="needs betas"):
        moved(module.r, backend)


@rule
def infinite(p, g, *, lr):
    """Literals beyond the largest number."""
    p = p - lr * gpuopt.minimum(gpuopt.maximum(g, -1e999), 1e999)
    return p


@infinite.prepare
def _(step, *, lr):
    return dict(bound=min(lr, 1e999))


def test_a_literal_beyond_the_largest_number() -> None:
    assert [moved(infinite, backend, g=3.0) for backend in HOST_BACKENDS] == [3.0, 3.0]
    from gpuopt.compiler.nvrtc import compile_cubin

    for part in ("update", "prepare"):
        compile_cubin(gpuopt.kernel_source(infinite, backend="cuda", part=part), "sm_80")
        assert "inf)" not in gpuopt.kernel_source(infinite, backend="numba-cuda", part=part)


@BACKENDS
@pytest.mark.parametrize("dtypes", [("float64",), ("float64", "float32")])
def test_prepare_is_called_once_a_step_and_group(dtypes: tuple[str, ...], backend: str) -> None:
    calls = []
    made = scaled()

    @made.prepare
    def _(step, *, lr):
        calls.append((step, lr))
        if step == 3 and calls.count((step, lr)) == 1:
            raise RuntimeError("not yet")
        return {"k": float(len(calls) > 0)}

    groups = [{"params": [np.zeros(2, d) for d in dtypes], "lr": lr} for lr in (1.0, lambda step: 2.0)]
    optimizer = gpuopt.optimizer(made, groups, backend=backend)
    grads = [[np.ones(2, d) for d in dtypes]] * 2
    for step in (1, 2):
        optimizer.step(grads)
        assert calls == [(s, lr) for s in range(1, step + 1) for lr in (1.0, 2.0)]
    with refused(optimizer, RuntimeError, "not yet"):
        optimizer.step(grads)
    bad = [[np.ones(3, d) for d in dtypes]] * 2
    with pytest.raises(gpuopt.InputError):
        optimizer.step(bad)
    assert len(calls) == 5


@gpuopt.rule(state={"a": gpuopt.State("a", "anchor", init="parameter", readonly=True)})
def anchored(p: Any, g: Any, a: Any, *, lr: float, pull: float = 0.5) -> Any:
    """Towards where it began."""
    p = p - lr * (g + pull * (p - a))
    return p


@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_a_state_may_begin_as_the_parameter_does(backend: str) -> None:
    """In its dtype and memory order, and in a checkpoint; a parameter without a gradient until later begins later."""
    start = np.asfortranarray(np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4))
    p, late = start.copy(order="F"), np.full(2, 3, np.float32)
    opt = gpuopt.optimizer(anchored, [p, late], lr=0.1, backend=backend)
    q = start.copy()
    for step in range(3):
        if step == 1:
            late[...] = 7
        opt.step([np.ones_like(p), np.ones(2, np.float32) if step else None])
        q = q - np.float32(0.1) * (1 + np.float32(0.5) * (q - start))
    states = opt.state_dict()["state"]
    assert np.array_equal(states[0]["anchor"], start) and np.array_equal(p, q)
    assert np.array_equal(states[1]["anchor"], np.full(2, 7, np.float32))
    with pytest.raises(gpuopt.RuleSyntaxError, match="begins as the parameter: expected one of its shape, not 'row'"):
        gpuopt.rule(state={"a": gpuopt.State("a", "anchor", init="parameter", shape="row")})
