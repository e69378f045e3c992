"""`prepare`: scalars derived once a step in float64, with whole powers by repeated squaring, on the host and on devices alike."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import minimum, rule, sqrt
from gpuopt.compiler.host import prepared_values, row_function, row_inputs
from gpuopt.source import program
from samples import HOST_BACKENDS, refused

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)


@rule()
def prepared(p, g, *, lr, beta=0.999, power=2, rate, other):
    """Uses what `prepare` derives; the hyperparameter `power` has the name of a helper."""
    p = p - rate * g * other
    return p


@prepared.prepare
def _(step, *, lr, beta, power):
    late = 2 * step - 1
    bias = 1 - beta**step
    warm = minimum(step / 10, 1.0)
    rate = lr * warm / bias if step > 3 else lr
    tail = beta ** (-2) + beta ** minimum(late, 50) + beta ** (late if step > 3 else 7)
    return dict(rate=rate, other=sqrt(bias) * beta**late / (power + tail))


def squaring(base: float, exponent: int) -> float:
    """base ** exponent by repeated squaring, from the least significant bit up; a negative power is one over it."""
    if exponent < 0:
        return 1.0 / squaring(base, -exponent)
    factors, square = [], base
    for bit in reversed(f"{exponent:b}"):
        if bit == "1":
            factors.append(square)
        square = square * square
    return math.prod(factors, start=1.0)


STEPS = [*range(1, 40), 999, 1000, 2**16, 2**24 - 1, 2**24 + 1, 2**31 + 3]


@pytest.mark.parametrize("step", STEPS)
def test_prepare_takes_integer_powers_by_repeated_squaring(step: int) -> None:
    lr, beta, power = 0.3, 0.999, 2.0
    bias = 1 - squaring(beta, step)
    rate = lr * min(step / 10, 1.0) / bias if step > 3 else lr
    late = 2 * step - 1
    tail = squaring(beta, -2) + squaring(beta, min(late, 50)) + squaring(beta, late if step > 3 else 7)
    expected = (rate, math.sqrt(bias) * squaring(beta, late) / (power + tail))
    made = program(prepared, lr=lr, param_dtype="float64")
    names = row_inputs(made)
    values = {"lr": lr, "beta": beta, "power": power}
    assert row_function(made, names)(step, *[values[n] for n in names]) == expected
    assert tuple(prepared_values(prepared.definition(), step, values).values()) == expected
    assert abs(squaring(beta, step) - beta**step) < 1e-13, "what 1 - beta**step needs"


@pytest.mark.parametrize("backend", ["cuda", "cupy", "numba-cuda"])
def test_whole_exponents_go_by_repeated_squaring_on_the_device_too(backend: str) -> None:
    """Also where the exponent is a variable, a minimum or a choice of whole numbers: pow would give other bits there."""
    text = gpuopt.kernel_source(prepared, backend=backend, part="prepare")
    body = text[text.index("void row(" if backend != "numba-cuda" else "def prepare(") :]
    assert len(re.findall(r"\b(integer_power|ipow)\(", body)) == 5
    assert not re.search(r"\bpow\(", body)


def custom(limit: int = 4, **constants: float) -> Any:
    """A rule whose `prepare` is Python that only the host can run: a loop, a closure, the math module."""

    @rule()
    def harmonic(p, g, *, lr, rate):
        p = p - rate * g
        return p

    @harmonic.prepare
    def _(step, *, lr, offset=0.25):
        total = 0.0
        for k in range(1, min(step, limit) + 1):
            total += math.cos(k) / k
        return {"rate": lr * (total + offset + constants.get("extra", 0.0))}

    return harmonic


@BACKENDS
def test_prepare_in_arbitrary_python_runs_on_the_host(backend: str) -> None:
    p = np.zeros(3)
    optimizer = gpuopt.optimizer(custom(), p, lr=0.5, offset=0.5, backend=backend)
    for _ in range(6):
        optimizer.step(np.ones(3))
    totals = [sum(math.cos(k) / k for k in range(1, min(step, 4) + 1)) for step in range(1, 7)]
    assert np.allclose(p, -0.5 * sum(t + 0.5 for t in totals), rtol=1e-14, atol=0)


def test_prepare_in_arbitrary_python_cannot_run_on_the_device() -> None:
    assert "gpuopt_update" in gpuopt.kernel_source(custom(), backend="cuda")
    with pytest.raises(
        gpuopt.InputError, match="prepare function of harmonic uses Python that cannot run on the device"
    ):
        gpuopt.kernel_source(custom(), backend="cuda", part="prepare")


@BACKENDS
def test_a_prepare_that_raises_leaves_everything_untouched(backend: str) -> None:
    @rule(state=("m",))
    def fragile(p, g, m, *, lr, rate):
        m = m + g
        p = p - rate * m
        return p, m

    @fragile.prepare
    def _(step, *, lr):
        if step == 2:
            raise OverflowError("no rate for step 2")
        return {"rate": lr}

    params, grads = [np.ones(3), np.ones((2, 2))], [np.ones(3), np.ones((2, 2))]
    optimizer = gpuopt.optimizer(fragile, params, lr=0.5, backend=backend)
    optimizer.step(grads)
    for _ in range(2):
        with refused(optimizer, OverflowError, "no rate for step 2"):
            optimizer.step(grads)
