"""Every row of `cases.CASES` against its oracle: float64 to 1e-12 over 50 steps, states included; with NumPy, some with Numba."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

import gpuopt
from cases import CASES, Case
from covering import on_hosts
from samples import SHAPES, Array, difference, gradients, parameters

STEPS = 50
TOLERANCE = 1e-12  # relative, in float64: the two sides order their operations differently, some ulp in 50 steps
EMPTY = next(shape for shape in SHAPES if 0 in shape)
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


@pytest.mark.parametrize(("case", "backend"), on_hosts(CASES, lambda case: case.optimizer))
def test_float64_agrees_with_the_oracle(case: Case, backend: str) -> None:
    params = parameters()
    optimizer = getattr(gpuopt, case.optimizer)(params, backend=backend, **case.options)
    for step in range(STEPS):
        optimizer.step(gradients_of(step))
    oracle = expected(CASES.index(case))
    differences = {s: difference(p, q) for s, p, q in zip(SHAPES, params, oracle.params, strict=True)}
    saved = optimizer.state_dict()["state"]
    for k, states in enumerate(oracle.states):
        found = dict(saved[k])
        assert found.pop("step") == STEPS
        assert states.pop("step", STEPS) == STEPS
        unused = set(states) - set(found)  # of options that are not on
        assert set(found) <= set(states) and not any(states[name].any() for name in unused), unused
        differences |= {(SHAPES[k], name): difference(value, states[name]) for name, value in found.items()}
    wrong = {what: d for what, d in differences.items() if not d < TOLERANCE}
    assert not {what for what in wrong if what[0] != EMPTY}, wrong  # nothing is done once for a tensor without elements


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


# Class name -> options, and optax's transformation with the same.
OF_OPTAX: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    # optax adds `weight_decay * p` to the update instead of scaling p first: equal, since both take it from the old p.
    "Lion": (
        {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1},
        lambda optax: optax.lion(0.01, b1=0.8, b2=0.95, weight_decay=0.1),
    ),
    "SignSGD": ({"lr": 0.01}, lambda optax: optax.sign_sgd(0.01)),
    "AdaBelief": (
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-8},
        lambda optax: optax.adabelief(0.01, b1=0.8, b2=0.95, eps=1e-8, eps_root=1e-8),
    ),
    "Yogi": ({"lr": 0.01, "betas": (0.8, 0.95)}, lambda optax: optax.yogi(0.01, b1=0.8, b2=0.95, eps=1e-3)),
    "AdEMAMix": (
        {"lr": 0.01, "betas": (0.8, 0.95, 0.99), "alpha": 5.0, "weight_decay": 0.1},
        lambda optax: optax.contrib.ademamix(0.01, b1=0.8, b2=0.95, b3=0.99, alpha=5.0, weight_decay=0.1),
    ),
    "ADOPT": ({"lr": 0.01, "betas": (0.8, 0.95)}, lambda optax: optax.contrib.adopt(0.01, b1=0.8, b2=0.95, eps=1e-6)),
}


@pytest.mark.parametrize("name", OF_OPTAX)
def test_formulas_agree_with_optax(name: str) -> None:
    """The oracles in formulas.py are our own reading of the papers, so they are held against another library."""
    import jax
    import optax
    import optax.contrib

    options, make = OF_OPTAX[name]
    oracle = Case(name, options).oracle(parameters())
    with jax.enable_x64(True):
        transform = make(optax)
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
