"""Every row of `cases.CASES` against its oracle: float64 to 1e-12 over 50 steps on each host backend, states included."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

import gpuopt
from cases import CASES, Case
from samples import HOST_BACKENDS, SHAPES, Array, difference, gradients, parameters

STEPS = 50
TOLERANCE = 1e-12  # relative, in float64: the two sides order their operations differently, some ulp in 50 steps
ROWS = pytest.mark.parametrize("case", CASES, ids=str)


@cache
def gradients_of(step: int, dtype: str = "float64") -> Sequence[Array]:
    return gradients(step, dtype=dtype)


@cache
def expected(index: int) -> Any:
    """The oracle of a row after 50 steps; both backends compare with the same."""
    oracle = CASES[index].oracle(parameters())
    for step in range(STEPS):
        oracle.step(gradients_of(step))
    return oracle


@pytest.mark.parametrize("backend", HOST_BACKENDS)
@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(c) for c in CASES])
def test_float64_agrees_with_the_oracle(index: int, backend: str) -> None:
    params = parameters()
    optimizer = getattr(gpuopt, CASES[index].optimizer)(params, backend=backend, **CASES[index].options)
    for step in range(STEPS):
        optimizer.step(gradients_of(step))
    oracle = expected(index)
    differences = {s: difference(p, q) for s, p, q in zip(SHAPES, params, oracle.params, strict=True)}
    saved = optimizer.state_dict()["state"]
    for k, states in enumerate(oracle.states):
        found = dict(saved[k])
        assert found.pop("step") == STEPS
        assert states.pop("step", STEPS) == STEPS
        assert set(found) == set(states)
        differences |= {(SHAPES[k], name): difference(found[name], value) for name, value in states.items()}
    assert {what: d for what, d in differences.items() if not d < TOLERANCE} == {}


@ROWS
def test_float32_agrees_with_the_oracle_to_a_few_ulp(case: Case) -> None:
    """10 steps in float32. Each rounds the parameter once on either side, and torch rounds some intermediate results that
    we do not: 16 ulp of the largest value leave 0.8 ulp a step and side.
    """
    params = parameters(dtype=np.float32)
    oracle = case.oracle(params)
    optimizer = getattr(gpuopt, case.optimizer)(params, backend="numpy", **case.options)
    for step in range(10):
        optimizer.step(gradients_of(step, "float32"))
        oracle.step(gradients_of(step, "float32"))
    worst = max(difference(p, q) for p, q in zip(params, oracle.params, strict=True))
    assert worst <= 16 * np.finfo(np.float32).eps


def test_lion_formula_agrees_with_optax() -> None:
    """The oracle in cases.py is our own reading of the paper, so it is held against another library once. optax adds
    `weight_decay * p` to the update instead of scaling p first: equal, since both take it from the old p.
    """
    import jax
    import optax

    options = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}
    oracle = Case("Lion", options).oracle(parameters())
    with jax.enable_x64(True):
        transform = optax.lion(0.01, b1=0.8, b2=0.95, weight_decay=0.1)
        params: Any = [jax.numpy.asarray(p) for p in parameters()]
        state = transform.init(params)
        for step in range(STEPS):
            grads = [jax.numpy.asarray(g) for g in gradients_of(step)]
            updates, state = transform.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            oracle.step(gradients_of(step))
        found = [np.asarray(p) for p in params]
    assert max(difference(p, q) for p, q in zip(found, oracle.params, strict=True)) < TOLERANCE


@pytest.mark.parametrize("name", gpuopt.optimizers())
def test_every_optimizer_has_rows(name: str) -> None:
    assert sum(case.optimizer.lower() == name for case in CASES) >= 3
