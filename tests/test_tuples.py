"""Hyperparameters that an optimizer takes together as a tuple: `betas` of themselves, others as a rule says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpuopt
import gpuopt.torch
from gpuopt.errors import InputError, KindError, RuleSyntaxError
from samples import bits


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"etas": (0.5, 0.9)}, r"etas = 0.9: expected a number in \(1, inf\)"),
        ({"etas": (0.5,)}, r"etas = \(0.5,\): expected 2 numbers in \(0, 1\) and \(1, inf\)"),
        ({"step_sizes": 1.0}, "step_sizes = 1.0: expected 2 numbers"),
        ({"etaminus": 0.5}, "unknown option 'etaminus' of Rprop"),
    ],
    ids=str,
)
def test_members_have_ranges_of_their_own(given: dict[str, Any], words: str) -> None:
    with pytest.raises((InputError, KindError), match=words):
        gpuopt.Rprop(np.ones(3), **given)


def test_members_may_be_functions_of_the_step() -> None:
    p, q = np.ones(3), np.ones(3)
    scheduled = gpuopt.QHAdam(p, nus=(lambda t: 0.5 + 0.1 * t, 1.0), backend="numpy")
    by_hand = gpuopt.QHAdam(q, nus=(0.5, 1.0), backend="numpy")
    for step in range(4):
        by_hand.param_groups[0]["nus"] = (0.5 + 0.1 * step, 1.0)
        scheduled.step(np.full(3, 0.1 * step + 1))
        by_hand.step(np.full(3, 0.1 * step + 1))
    assert bits(p) == bits(q)


def rule_with(tuples: Any) -> Any:
    @gpuopt.rule(tuples=tuples)
    def two(p, g, *, lr, low=0.0, high=1.0):  # type: ignore[no-untyped-def]
        p = p - lr * (low + high) * g
        return p

    return two


def test_a_rule_of_ones_own() -> None:
    p = np.zeros(1)
    gpuopt.optimizer(rule_with({"ends": ("low", "high")}), p, lr=1.0, ends=(1.0, 2.0), backend="numpy").step(np.ones(1))
    assert p[0] == -3


@pytest.mark.parametrize(
    ("tuples", "words"),
    [
        ({"ends": "low"}, "expected names of hyperparameters"),
        ({"betas": ("low", "high")}, "`betas` is what an optimizer calls all of beta1"),
        ({"ends": ("low", "low")}, "'low' is in two places"),
    ],
    ids=str,
)
def test_mistakes(tuples: Any, words: str) -> None:
    with pytest.raises(RuleSyntaxError, match=words):
        rule_with(tuples)


def test_a_tuple_of_what_the_rule_has_not() -> None:
    with pytest.raises(RuleSyntaxError, match="tuples: `ends` has `middle`, which is no hyperparameter of this rule"):
        gpuopt.optimizer(rule_with({"ends": ("low", "middle")}), np.zeros(1), lr=1.0)
