"""Rules of a user's own whose meaning in Python is subtle, and mistakes in them that are rarely made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from gpuopt import State, rule, sqrt
from own_rules import load, moved, scaled
from samples import HOST_BACKENDS
from shim.backend import installed

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)


# ---------------------------------------------------------------------------------------------------- a scalar in an array


@rule(state=("m",))
def state_of_a_scalar(p, g, m, *, lr, k=0.1):
    """The state is a scalar from its assignment on: Python squares it in float64."""
    m = k
    p = p - lr * (m * m)
    return p, m


@rule
def gradient_of_a_scalar(p, g, *, lr, k=0.1):
    """The same of a gradient that is not read."""
    g = k
    p = p - lr * (g * g + 0.2)
    return p


@rule
def parameter_of_a_scalar(p, g, *, lr, k=0.1):
    """The same of the parameter itself, which is an array again at the end."""
    p = k
    p = p * p / 3
    return p - lr * g


@rule
def parameter_that_stays_one(p, g, *, lr, k=0.1):
    """The options behind the rule see the scalar too."""
    p = k
    return p


@pytest.mark.parametrize(
    "options", [{}, {"l1": 0.3}, {"l1": 0.3, "mask": np.array([True, False, True, True])}], ids=str
)
@pytest.mark.parametrize(
    "made",
    [state_of_a_scalar, gradient_of_a_scalar, parameter_of_a_scalar, parameter_that_stays_one],
    ids=lambda r: r.name,
)
def test_an_array_that_is_set_to_a_scalar_is_that_scalar(made: gpuopt.Rule, options: dict[str, Any]) -> None:
    found = {}
    with installed():
        for backend in (*HOST_BACKENDS, "shim", "shim-device"):
            w = np.array([0.0, 1.5, -2.0, 0.25], np.float32)
            opt = gpuopt.optimizer(made, w, lr=0.3, backend=backend, **options)
            for _ in range(2):
                opt.step(np.array([0.1, -0.7, 3.0, 0.0], np.float32))
            found[backend] = w.tobytes()
    assert len(set(found.values())) == 1, found


# ---------------------------------------------------------------------------------------------------- betas by their own names


@rule(state={"m": State("m", "m", init="beta2")})
def begins_at_a_beta(p, g, m, *, lr, beta1=0.25, beta2=0.5, has_beta1: bool):
    """A state that begins as a beta, and a flag of one."""
    if has_beta1:
        g = g * beta1
    p = p - lr * (m + g)
    return p, m


@rule(state={"m": State("m", "m", init="lr")})
def begins_at_the_rate(p, g, m, *, lr):
    """A state that begins as the rate, which may be a schedule."""
    p = p - m * g
    return p, m


@BACKENDS
def test_a_state_may_begin_as_a_beta_or_as_a_rate(backend: str) -> None:
    assert moved(begins_at_a_beta, backend) == 0.75
    assert moved(begins_at_a_beta, backend, betas=(0.0, 0.5)) == 1.5
    assert moved(begins_at_a_beta, backend, betas=np.array([0.5, 0.125])) == 0.625
    assert moved(begins_at_the_rate, backend, lr=lambda step: 3.0 + step) == 3.0


@pytest.mark.parametrize("differentiable", [False, True])
def test_a_state_may_begin_as_a_beta_or_as_a_rate_in_torch(differentiable: bool) -> None:
    for made, lr, expected in ((begins_at_a_beta, 1.0, -0.75), (begins_at_the_rate, torch.tensor(3.0), -3.0)):
        p = torch.zeros(1, requires_grad=True)
        q = p.clone() if differentiable else p
        q.grad = torch.ones(1)
        gpuopt.torch.make_optimizer(made)([q], lr=lr, differentiable=differentiable).step()
        assert q.item() == expected


def test_complex_states_begin_with_both_parts_alike_where_autograd_looks() -> None:
    found = []
    for differentiable in (False, True):
        p = torch.zeros(2, dtype=torch.complex128, requires_grad=True)
        q = p.clone() if differentiable else p
        q.grad = torch.full((2,), 0.5 - 1j, dtype=torch.complex128)
        gpuopt.torch.make_optimizer(begins_at_a_beta)([q], lr=0.1, differentiable=differentiable).step()
        found.append(q.detach())
    assert (found[0] - found[1]).abs().max() < 1e-15


# ---------------------------------------------------------------------------------------------------- sources


WITH_NAN = "@rule\ndef r(p, g, *, lr):\n    return p - lr * g * (1e999 - 1e999)\n"


def test_a_nan_among_the_constants_is_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = load(tmp_path, WITH_NAN, monkeypatch).r
    assert all(math.isnan(moved(made, backend)) for backend in HOST_BACKENDS)


CLASS = "_K__root = sqrt\nclass K:\n    @rule\n    def r(p, g, *, lr{}):\n        {}\n        return p - lr * {}\n"
MANGLED = {
    "variable": CLASS.format("", "__d = lr * g", "__d"),
    "argument": CLASS.format(", __k=2", "", "__k * g"),
    "function": CLASS.format("", "", "__root(g)"),
}


@pytest.mark.parametrize("what", MANGLED)
def test_names_that_python_changes_in_a_class_are_refused_as_such(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(gpuopt.RuleSyntaxError, match="another name inside a class"):
        load(tmp_path, MANGLED[what], monkeypatch)


# ---------------------------------------------------------------------------------------------------- mistakes


def body(p, g, *, lr, beta1: bool = False):
    """A flag with the name of a beta."""
    if beta1:
        g = -g
    return p - lr * g


async def later(step, *, lr):
    """No plain function."""
    return dict(k=lr)


def given(step, *, lr):
    """No plain function either."""
    yield "k", lr


def of_a_step(t, *, step):
    """`step` in the wrong place."""
    return dict(k=step)


@rule
def half(p, g, *, lr, f: bool = False):
    """What has a value under one choice only."""
    if f:
        d = g
    return p - lr * d


MISTAKES = {
    "states by position": (lambda: rule(("m",)), r"@rule\(state=\('m',\)\)"),  # type: ignore[call-overload]
    "a name by position": (lambda: rule("m"), r"@rule\(state=\('m',\)\)"),  # type: ignore[call-overload]
    "a rule of a rule": (lambda: rule(scaled()), "a rule already"),
    "static": (lambda: rule(staticmethod(body)), "above @rule"),
    "beta flag": (lambda: moved(rule(body), "numpy"), "`beta1` is a flag"),
    "parentheses": (lambda: scaled().prepare()(given), "without parentheses"),
    "parentheses of require": (lambda: scaled().require()(given), "without parentheses"),
    "async": (lambda: scaled().prepare(later), "without async and yield"),
    "generator": (lambda: scaled().prepare(given), "without async and yield"),
    "async require": (lambda: scaled().require(later), "without async and yield"),
    "step by name": (lambda: scaled().prepare(of_a_step), "`step` is the first argument"),
    "half": (lambda: moved(half, "numpy"), "`d` has no value here when f = False: expected one under every choice"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_says_what_to_do(what: str) -> None:
    make, words = MISTAKES[what]
    with pytest.raises(gpuopt.RuleSyntaxError, match=words) as caught:
        make()  # type: ignore[no-untyped-call]
    assert "@" not in str(caught.value).replace("@rule", "").replace("@staticmethod", "")


# ---------------------------------------------------------------------------------------------------- whole numbers


@pytest.mark.parametrize("number", [10**400, -(10**400), 10**5000], ids=int.bit_length)
@pytest.mark.parametrize("title", ["AdamW", "SGD", "GD", "Lion", "Adagrad", "RMSprop"])
def test_a_whole_number_beyond_every_float_is_refused(title: str, number: int) -> None:
    for options in ({"lr": number}, {"weight_decay": number}, {"l1": number}, {"max_grad_norm": number}):
        words = rf"{next(iter(options))} = a whole number of \d+ bits: expected"
        with pytest.raises(gpuopt.InputError, match=words):
            getattr(gpuopt, title)([np.zeros(1)], **({"lr": 0.1} | options))
        with pytest.raises(gpuopt.InputError, match=words):
            getattr(gpuopt.torch, title)([torch.nn.Parameter(torch.zeros(1))], **({"lr": 0.1} | options))
    for betas in ((0.9, number), (number,) * 2) if title in ("AdamW", "Lion") else ():
        with pytest.raises(gpuopt.InputError, match="betas = "):
            getattr(gpuopt, title)([np.zeros(1)], betas=betas)


@BACKENDS
def test_a_prepare_that_returns_one_is_refused(backend: str) -> None:
    for function in (lambda step, *, lr: dict(k=10**400), lambda step, *, lr: dict(k=10**400 if lr else [])):
        made = scaled()
        made.prepare(function)
        with pytest.raises(gpuopt.InputError, match="k = a whole number of 1329 bits: expected a number"):
            moved(made, backend)
    made = scaled()

    @made.prepare
    def _(step, *, lr):
        return dict(k=10 ** (400 * step))

    with pytest.raises(gpuopt.InputError, match="k = a whole number of 1329 bits: expected a number"):
        moved(made, backend)


@BACKENDS
def test_whole_powers_beyond_every_float_divide_as_in_python(backend: str) -> None:
    made = scaled()

    @made.prepare
    def _(step, *, lr):
        return dict(k=10 ** (400 * step) / 10 ** (399 * step))

    assert moved(made, backend) == 10.0


# ---------------------------------------------------------------------------------------------------- prepare on a device


def test_the_first_argument_of_prepare_may_have_any_name_on_a_device_too() -> None:
    made = scaled()

    @made.prepare
    def _(t, *, lr):
        step = t + 1.0
        return dict(k=step * sqrt(t))

    with installed():
        assert [moved(made, b, **o) for b, o in (("numpy", {}), ("shim-device", {"skip_nonfinite": True}))] == [
            2.0,
            2.0,
        ]


def test_whole_numbers_that_a_device_would_round_are_computed_on_the_host() -> None:
    made = scaled()

    @made.prepare
    def _(step, *, lr):
        return dict(k=step * 9007199254740993 - step * 9007199254740992)

    assert moved(made, "numpy") == 1.0
    with installed(), pytest.raises(gpuopt.InputError, match="cannot run on the device"):
        moved(made, "shim-device", skip_nonfinite=True)


@BACKENDS
def test_a_prepare_that_only_raises_is_heard(backend: str) -> None:
    made = scaled()

    @made.prepare
    def _(step, *, lr):
        raise RuntimeError("no rate")

    with pytest.raises(RuntimeError, match="no rate"):
        moved(made, backend)
