"""Infinities are numbers: whatever torch keeps of an infinite or huge parameter, gradient or state, we keep, exactly so where it is
infinite. What torch makes a NaN may be one here.

A term that is switched off, a decay of 0 say, must not make `0 * inf`. Every row of `cases.CASES`, and every option beside it.
"""

from __future__ import annotations

import inspect
from itertools import product
from typing import Any

import numpy as np
import pytest

import gpuopt
from cases import CASES, Case
from covering import on_hosts
from gpuopt import rules
from gpuopt.optim.hyper import intervals, own_defaults, within
from gpuopt.source import program
from samples import Array
from shim.backend import installed
from shim.variants import richest

# The largest and smallest are those whose square is no number of the type any more.
VALUES = {
    "float32": (0.0, -0.0, 1.0, -np.inf, np.inf, np.nan, 1e30, -2e19, 1e20, 1e-30),
    "float64": (0.0, -0.0, 1.0, -np.inf, np.inf, np.nan, 1e300, -2e154, 1e155, 1e-200),
}
STEPS = 3
# A parameter group whose options are on: what is one launch for all groups must leave the others alone.
LOUD = {"maximize": True, "clip_value": 0.5, "l1": 0.125}


def zeros(title: str) -> list[Case]:
    """Rows in which one hyperparameter after the other is 0."""
    rule = rules.get(title)
    fields = {k: v for k, v in own_defaults(rule).items() if not isinstance(v, bool)}
    needed = {"lr": 0.1} if fields["lr"] is inspect.Parameter.empty else {}
    tuples = rule.definition().tuples
    found = {k: (0.0,) * len(v) if k in tuples else 0.0 for k, v in fields.items()}
    ranges = {
        k: intervals(k, rule, rule.definition()) if k in tuples else [rule.ranges.get(k, "[0, inf)")] for k in found
    }
    found = {k: v for k, v in found.items() if all(within(0.0, interval) for interval in ranges[k])}
    rows = [needed | {k: v} for k, v in found.items()]
    return [Case(rule.title, row) for row in rows]


# Of rules that look at single elements: in others one infinity makes NaN of the sums that every element depends on.
LOCAL = {rules.get(name).title for name in rules.NAMES if program(name, **richest(name)).local}
ROWS = [*CASES, *(case for title in rules.NAMES for case in zeros(title))]
ROWS = [case for case in ROWS if case.optimizer in LOCAL]


def pairs(dtype: str, centered: bool) -> tuple[Array, list[Array]]:
    """Parameters and the gradients of each step: every value with every triple of neighbours among the values."""
    values = np.array(VALUES[dtype], dtype)
    if centered:  # v - a^2 of numbers whose squares overflow is NaN or not as the CPU contracts it, in torch too
        values = values[~np.isfinite(values) | (np.abs(values) <= 1)]
    grid = np.array(list(product(range(len(values)), repeat=2)))
    return values[grid[:, 0]], [values[(grid[:, 1] * (step + 1) + step) % len(values)] for step in range(STEPS)]


def of_its_own(title: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options without a decay where the optimizer has none."""
    own = "weight_decay" in rules.get(title).hyperparameters
    return {k: v for k, v in options.items() if own or k != "weight_decay"}


def check(found: Array, expected: Array, what: str) -> None:
    """Equal wherever torch has a number."""
    rtol = 1e-12 if found.dtype == np.float64 else 2e-6
    number = ~np.isnan(expected)
    with np.errstate(all="ignore"):
        same = (found == expected) | (np.abs(found - expected) <= rtol * np.maximum(np.abs(expected), 1))
    assert same[number].all(), f"{what}: {found[number & ~same]} is not {expected[number & ~same]}"


def run(case: Case, dtype: str, backend: str, neighbours: dict[str, Any]) -> None:
    p, grads = pairs(dtype, case.options.get("centered", False))
    oracle = case.oracle([p])
    other = np.ones(3, dtype)
    groups = [{"params": [p]}, {"params": [other], **neighbours}]
    optimizer = getattr(gpuopt, case.optimizer)(groups, backend=backend, **case.options)
    with np.errstate(all="ignore"):
        for step, g in enumerate(grads):
            oracle.step([g])
            optimizer.step([[g], [np.ones(3, dtype)]])
            check(p, oracle.params[0], f"parameter after step {step + 1}")
            saved = optimizer.state_dict()["state"].get(0, {})
            for key, value in oracle.states[0].items():
                if key != "step":
                    check(saved[key], value, f"{key} after step {step + 1}")


@pytest.mark.parametrize("dtype", VALUES)
@pytest.mark.parametrize(("case", "backend"), on_hosts(ROWS, lambda case: case.optimizer))
def test_as_torch(case: Case, dtype: str, backend: str) -> None:
    run(case, dtype, backend, {})


@pytest.mark.parametrize(("title", "backend"), on_hosts(sorted(LOCAL)))
def test_beside_a_group_whose_options_are_on(title: str, backend: str) -> None:
    """One launch, and the group without them is as if it were alone."""
    needed = {"lr": 0.1}
    for loud in ({"weight_decay": 0.5}, LOUD, LOUD | {"weight_decay": 0.5}):
        loud = of_its_own(title, loud)
        run(Case(title, of_its_own(title, needed | {"weight_decay": 0.0})), "float32", backend, loud)
        run(
            Case(title, of_its_own(title, needed | {"weight_decay": 0.5})),
            "float32",
            backend,
            {k: v for k, v in loud.items() if k in LOUD},
        )
    groups = [{"params": np.ones(3)}, {"params": np.ones(3), **of_its_own(title, {"weight_decay": 0.5})}]
    optimizer = getattr(gpuopt, title)(groups, lr=0.1)
    optimizer.step([np.ones(3), np.ones(3)])
    assert optimizer.launches == 1


@pytest.mark.parametrize(("title", "backend"), on_hosts(sorted(LOCAL)))
@pytest.mark.parametrize("options", [{"mask": True}, {"max_grad_norm": 1.0}, {"max_grad_norm": np.inf}, {"grad_scale": 2.0},
                                     {"clip_value": 1.0}, {"clip_value": np.inf}, {"l1": 0.1}, {"maximize": True},
                                     {"skip_nonfinite": True}, {"state_format": "bfloat16"}], ids=str)  # fmt: skip
def test_options_keep_an_infinite_parameter(options: dict[str, Any], title: str, backend: str) -> None:
    p, g = np.array([-np.inf, np.inf, 1.0, np.inf], np.float32), np.array([0.0, -0.0, 0.5, 0.5], np.float32)
    given: dict[str, Any] = {**options}
    if "silent_sgd_phase" in rules.get(title).hyperparameters:
        given["silent_sgd_phase"] = False  # else the first steps move nothing
    if options.get("mask"):
        given["mask"] = [np.array([True, True, True, False])]
    optimizer = getattr(gpuopt, title)([p], lr=0.1, weight_decay=0.0, backend=backend, **given)
    for _ in range(STEPS):
        optimizer.step([g])
    assert p[[0, 1]].tolist() == [-np.inf, np.inf] and np.isfinite(p[2]) and p[2] != 1, p
    assert p[3] == (0.0 if "mask" in options else np.inf)


@pytest.mark.parametrize("title", sorted(LOCAL))
def test_the_generated_cuda_keeps_them_too(title: str) -> None:
    """Compiled by g++, a group without decay beside one with it."""
    with installed():
        quiet, loud = (of_its_own(title, {"weight_decay": decay}) for decay in (0.0, 0.5))
        run(Case(title, {"lr": 0.1} | quiet), "float32", "shim", loud)
