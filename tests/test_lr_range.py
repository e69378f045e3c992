"""`gpuopt.training.lr_range_test`: its rate against a grid on five real problems, what is put back, and what is refused."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import training
from gpuopt.training.problem import trained
from training_problems import FIVE, STEPS, Problem, breast_cancer, diabetes, digits_mlp, valley

pytestmark = pytest.mark.once

GRID = np.geomspace(1e-4, 1, 12)


def reached(problem: Problem, optimizer: str, lr: float, options: dict[str, Any]) -> float:
    """The loss of all data after training at one rate, from the start; inf where it is no number on the way."""
    with trained(problem.params, problem.loss).restored(), np.errstate(all="ignore"):
        opt = gpuopt.create(optimizer, problem.params, lr=lr, backend="numpy", **options)
        for step in range(problem.steps):
            loss, grads = problem.loss(problem.params, step)
            if not math.isfinite(loss):
                return math.inf
            opt.step(grads)
        return problem.whole(problem.params)


@cache
def best_of_grid(name: str) -> float:
    """The least loss over the rates of the grid."""
    make, optimizer, options = FIVE[name]
    problem = make()
    return min(reached(problem, optimizer, lr, options) for lr in GRID)


@pytest.mark.parametrize("name", FIVE)
def test_its_rate_is_within_a_tenth_of_the_best_of_a_grid(name: str) -> None:
    """Of what the best of twelve rates takes off the loss, the advised rate takes off nine tenths or more."""
    make, optimizer, options = FIVE[name]
    problem = make()
    start, best = problem.whole(problem.params), best_of_grid(name)
    found = training.lr_range_test(problem.params, problem.loss, optimizer, backend="numpy", **options)
    assert start - reached(problem, optimizer, found.advised, options) >= 0.9 * (start - best) > 0


@pytest.mark.parametrize("name", FIVE)
def test_with_trials_as_long_as_the_training_the_loss_itself_is_within_a_tenth_of_the_best(name: str) -> None:
    make, optimizer, options = FIVE[name]
    problem, best = make(), best_of_grid(name)
    found = training.lr_range_test(
        problem.params, problem.loss, optimizer, num_steps=problem.steps, trials=8, backend="numpy", **options
    )
    assert len(found.trials) == 8 and found.trials[found.advised] == min(found.trials.values())
    assert reached(problem, optimizer, found.advised, options) <= 1.1 * best


def test_the_curve_falls_and_diverges_where_it_says() -> None:
    problem = digits_mlp()
    found = training.lr_range_test(problem.params, problem.loss, "sgd", momentum=0.9, backend="numpy")
    assert found.diverged and len(found.rates) == len(found.losses) == len(found.smoothed) < 100
    np.testing.assert_allclose(found.rates, np.geomspace(1e-6, 10, 100)[: len(found.rates)])
    assert found.steepest < found.advised < found.lowest
    assert found.advised == math.sqrt(found.steepest * found.lowest)
    gentle = training.lr_range_test(problem.params, problem.loss, "sgd", max_lr=0.1, num_steps=30, backend="numpy")
    assert not gentle.diverged and len(gentle.rates) == 30


@pytest.mark.parametrize("trials", [0, 3])
def test_parameters_are_put_back_bit_for_bit(trials: int) -> None:
    """Also where the loss raises in the middle of it."""
    problem = breast_cancer()
    before = [a.tobytes() for a in problem.params]
    training.lr_range_test(problem.params, problem.loss, "adam", trials=trials, backend="numpy")
    assert [a.tobytes() for a in problem.params] == before

    def failing(params: Any, step: int) -> Any:
        if step == 7:
            raise KeyboardInterrupt
        return problem.loss(params, step)

    with pytest.raises(KeyboardInterrupt):
        training.lr_range_test(problem.params, failing, "adam", backend="numpy")
    assert [a.tobytes() for a in problem.params] == before


def test_a_class_and_its_options_and_the_default_backend() -> None:
    problem = diabetes()
    by_name = training.lr_range_test(problem.params, problem.loss, "sgd", momentum=0.9)
    by_class = training.lr_range_test(problem.params, problem.loss, gpuopt.SGD, momentum=0.9)
    assert by_name.losses.tobytes() == by_class.losses.tobytes()
    plain = training.lr_range_test(problem.params, problem.loss, "sgd")
    assert plain.losses.tobytes() != by_name.losses.tobytes()


def test_the_picture(tmp_path: Path) -> None:
    problem = valley()
    found = training.lr_range_test(problem.params, problem.loss, "adam", backend="numpy")
    path = found.plot(tmp_path / "new" / "rates.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = found.figure().axes[0]
    assert axes.lines[2].get_xdata() == [found.advised] * 2 and axes.get_xscale() == "log"


def quadratic(params: Any, step: int) -> Any:
    return float(params[0] @ params[0]), [2 * params[0]]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"params": []}, "params: expected at least one array"),
        ({"params": None}, "params = None: expected arrays or "),
        ({"loss": 3}, "loss = 3: expected a function"),
        ({"loss": lambda p, k: 1.0}, r"loss returned 1.0: expected \(loss, gradients\)"),
        ({"loss": lambda p, k: ("much", p)}, "loss returned 'much': expected a number"),
        ({"loss": lambda p, k: (math.nan, p)}, "min_lr = 1e-06: the loss diverges from there on"),
        ({"optimizer": "adamm"}, "did you mean 'adam'"),
        ({"optimizer": 3}, "optimizer = 3: expected the name of an optimizer"),
        ({"optimizer": lambda params, lr: object()}, "expected one with param_groups that have an lr"),
        ({"min_lr": 0}, r"min_lr = 0: expected a number in \(0, inf\)"),
        ({"min_lr": 2.0, "max_lr": 1.0}, "min_lr = 2: expected less than max_lr, which is 1"),
        ({"num_steps": 9}, "num_steps = 9: expected a whole number, 10 or more"),
        ({"num_steps": 20.5}, "num_steps = 20.5: expected a whole number"),
        ({"divergence": 1}, r"divergence = 1: expected a number in \(1, inf\)"),
        ({"smoothing": 0}, "smoothing = 0: expected a number"),
        ({"trials": -1}, "trials = -1: expected a whole number, 0 or more"),
        ({"beta3": 1}, "unknown option 'beta3'"),
    ],
)
def test_what_is_refused(wrong: dict[str, Any], words: str) -> None:
    given = {"params": [np.ones(3)], "loss": quadratic} | wrong
    with pytest.raises(gpuopt.InputError, match=words):
        training.lr_range_test(**given)


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(gpuopt.DtypeError, match=r"params\[0\]"):
        training.lr_range_test([[1.0, 2.0]], quadratic)


def test_steps_are_counted_from_zero() -> None:
    seen: list[int] = []

    def loss(params: Any, step: int) -> Any:
        seen.append(step)
        return quadratic(params, step)

    training.lr_range_test([np.ones(3)], loss, "gd", num_steps=STEPS, max_lr=0.1)
    assert seen == list(range(STEPS))
