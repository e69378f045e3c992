"""What a rule computes, on NumPy and Numba alike: primitives on special values, scalars and flags."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest

import gpuopt
from gpuopt import State, maximum, minimum, rule, sign, sqrt, where
from samples import HOST_BACKENDS, Array, bits, refused
from shim.backend import installed

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


def run(rule_: Any, backend: str, p: Array, g: Array, steps: int = 1, **options: Any) -> tuple[Array, dict[str, Any]]:
    """The parameter and the states after some steps with the same gradient."""
    p = p.copy()
    optimizer = gpuopt.optimizer(rule_, p, backend=backend, **options)
    for _ in range(steps):
        optimizer.step(g)
    return p, optimizer.state_dict()["state"][0]


# ---------------------------------------------------------------------------------------------------- primitives


@rule(state=("root", "size", "signum", "smaller", "larger", "chosen", "negative", "scaled"))
def primitives(p, g, root, size, signum, smaller, larger, chosen, negative, scaled, *, lr):
    """Every primitive of p and g, one state each."""
    root = sqrt(p)
    size = abs(p)
    signum = sign(p)
    smaller = minimum(p, g)
    larger = maximum(p, g)
    chosen = where(p <= g, 1, p)
    negative = -p
    scaled = where(p != g, 0, 2) / where(p == g, 1, 0)
    p = p - lr * 0
    return p, root, size, signum, smaller, larger, chosen, negative, scaled


def python_primitives(p: float, g: float) -> dict[str, float]:
    """What they mean, in Python's own floats: NaN wins, the second of two equal values, sign(-0) = +0."""
    nan = math.isnan(p) or math.isnan(g)
    return {
        "root": math.sqrt(p) if p >= 0 else math.nan,
        "size": math.fabs(p),
        "signum": p if math.isnan(p) else float((p > 0) - (p < 0)),
        "smaller": math.nan if nan else (p if p < g else g),
        "larger": math.nan if nan else (p if p > g else g),
        "chosen": 1.0 if p <= g else p,
        "negative": math.copysign(p, -math.copysign(1.0, p)),
        "scaled": 2.0 if p == g else math.nan,
    }


@BACKENDS
@DTYPES
def test_primitives_on_special_values(dtype: str, backend: str) -> None:
    """Compared with the sign of zero; a NaN has to be a NaN, its payload is the hardware's."""
    tiny, huge = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    special = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, tiny, -tiny, huge, -huge, 2.25]
    p, g = (a.ravel().astype(dtype) for a in np.meshgrid(special, special))
    _, found = run(primitives, backend, p, g, lr=0.1)
    rows = [python_primitives(float(a), float(b)) for a, b in zip(p, g, strict=True)]
    for name in rows[0]:
        expected = np.array([row[name] for row in rows]).astype(dtype)
        if name == "scaled":
            expected = np.where(p == g, expected, np.array(0, dtype) / np.array(1, dtype) * math.nan)
        assert found[name].dtype == dtype
        assert bits(plain(found[name])) == bits(plain(expected)), name


def plain(values: Array) -> Array:
    """The values with every NaN made the same NaN."""
    return np.where(np.isnan(values), np.array(math.nan, values.dtype), values)


@rule(state=("a", "b", "c", "d"))
def scalars_and_literals(p, g, a, b, c, d, *, lr, beta=0.9, zero=0.0):
    """Scalar-only parts are float64 and rounded once; literals take the compute type; g / 0 is IEEE's."""
    half = 1 / 3
    rest = 1 - beta
    a = half * g + 0.1
    b = rest * g
    c = lr * beta * g - g * lr * beta
    d = where(g > 0, lr, 0) / zero
    p = p - 0.1 * g
    return p, a, b, c, d


@DTYPES
def test_scalars_and_literals(dtype: str) -> None:
    p, g = np.linspace(-1, 1, 37).astype(dtype), np.linspace(-3, 5, 37).astype(dtype)
    found = [run(scalars_and_literals, backend, p, g, lr=0.3) for backend in HOST_BACKENDS]
    assert bits(found[0]) == bits(found[1])
    number = np.dtype(dtype).type
    after, states = found[0]
    assert bits(after) == bits(p - number(0.1) * g)
    assert bits(states["a"]) == bits(number(1 / 3) * g + number(0.1))
    assert bits(states["b"]) == bits(number(1 - 0.9) * g)
    assert bits(states["c"]) == bits(number(0.3 * 0.9) * g - g * number(0.3) * number(0.9))
    assert np.isinf(states["d"][g > 0]).all() and np.isnan(states["d"][g <= 0]).all()


@rule(state=("a", "b", "c"))
def scalar_conditions(p, g, a, b, c, *, lr, edge=0.1):
    """What is the same for every element is decided in float64, and what it chooses is of the compute type."""
    a = where(lr > edge, 0.1, g) * 0.1
    b = where(1 - lr <= edge, g, lr) * edge
    c = where(lr != 0, where(g > 0, lr, 0.3), p)
    p = where(edge == edge * 1, p, g) * where(lr > edge, 0.1, 0.2)
    return p, a, b, c


@DTYPES
@pytest.mark.parametrize("lr", [0.0, 0.1, 0.1 + 1e-12, 0.3, 1e-60], ids=str)
def test_conditions_of_scalars(lr: float, dtype: str) -> None:
    p, g = np.linspace(-1, 1, 37).astype(dtype), np.linspace(-3, 5, 37).astype(dtype)
    with installed():
        found = [run(scalar_conditions, backend, p, g, lr=lr) for backend in (*HOST_BACKENDS, "shim", "shim-device")]
    assert bits(found[1:]) == bits(found[:1] * 3)
    after, states = found[0]
    number = np.dtype(dtype).type
    assert bits(states["a"]) == bits((np.full_like(g, 0.1) if lr > 0.1 else g) * number(0.1))
    assert bits(states["c"]) == bits(np.where(g > 0, number(lr), number(0.3)) if lr else p)
    assert bits(after) == bits(p * number(0.1 if lr > 0.1 else 0.2))


@rule(state=("m",))
def dividing(p, g, m, *, lr, eps):
    """A scalar-only quotient: Python raises for eps = 0 where the arithmetic of arrays gives an infinity."""
    m = m + g
    p = p - lr / eps * g
    return p, m


def test_a_rule_that_raises_on_numpy_leaves_everything_untouched() -> None:
    params, grads = [np.ones(3), np.ones(2)], [np.ones(3), np.ones(2)]
    optimizer = gpuopt.optimizer(dividing, [{"params": p} for p in params], lr=0.5, eps=1.0, backend="numpy")
    optimizer.step(grads)
    optimizer.param_groups[1]["eps"] = 0.0
    with refused(optimizer, ZeroDivisionError):
        optimizer.step(grads)


@rule(state=("m",))
def only_scalars(p, g, m, *, lr):
    """A state, and in the end the parameter, that are the same for every element."""
    m = lr * 2
    p = 0.5
    return p, m


@BACKENDS
def test_an_array_may_be_set_to_a_scalar(backend: str) -> None:
    p, state = run(only_scalars, backend, np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), lr=0.1)
    assert p.tolist() == [[0.5] * 3] * 2
    assert bits(state["m"]) == bits(np.full((2, 3), 0.2, np.float32))


# ---------------------------------------------------------------------------------------------------- flags


@rule(state={"m": State("m", "trace", when="traced")})
def flagged(
    p, g, m, *, lr, kind: Literal["plain", "signed", "both"] = "plain", traced: bool = False, has_bias: bool = True
):  # fmt: skip
    """A bool decides over a state, a Literal over the arithmetic; `has_bias` is a flag of its own: there is no `bias`."""
    u = g
    if kind == "signed":
        u = sign(g)
    if kind == "both" or (traced and not has_bias):
        u = u + sign(g)
    if traced:
        m = m + u
        u = m
    if has_bias:
        u = u + 1
    p = p - lr * u
    return p, m


EXPECTED = {
    ("plain", False, True): [-0.5 * 3] * 2,
    ("plain", False, False): [-0.5 * 2] * 2,
    ("signed", False, True): [-0.5 * 2] * 2,
    ("both", False, False): [-0.5 * 3] * 2,
    ("both", True, True): [-0.5 * 4, -0.5 * 7],
    ("plain", True, False): [-0.5 * 3, -0.5 * 6],
}


@BACKENDS
@pytest.mark.parametrize("flags", EXPECTED, ids=str)
def test_flags_decide_arithmetic_and_states(flags: tuple[str, bool, bool], backend: str) -> None:
    options: dict[str, Any] = dict(zip(("kind", "traced", "has_bias"), flags, strict=True)) | {"lr": 0.5}
    once, _ = run(flagged, backend, np.zeros(2), np.full(2, 2.0), **options)
    twice, state = run(flagged, backend, np.zeros(2), np.full(2, 2.0), steps=2, **options)
    assert [once[0], twice[0] - once[0]] == EXPECTED[flags]
    assert ("trace" in state) == flags[1]


@pytest.mark.parametrize(
    ("backend", "start", "call"), [("cuda", "struct Update {", "sign_of("), ("numba", "", "sign(")]
)
def test_flags_specialise_the_text(backend: str, start: str, call: str) -> None:
    """Nothing of a branch not taken is in the kernel."""
    for kind, expected in (("plain", False), ("signed", True)):
        text = gpuopt.kernel_source(flagged, backend=backend, kind=kind)
        assert (call in text[text.index(start) :]) == expected


def test_an_unknown_choice_names_the_choices() -> None:
    with pytest.raises(gpuopt.InputError, match=r"kind = 'other': expected one of \('plain', 'signed', 'both'\)"):
        gpuopt.optimizer(flagged, np.ones(3), lr=0.1, kind="other")
