"""`gpuopt.training.compare`: winners that are known beforehand, what is tied, scikit-learn's parts, and what is refused."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_wine
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import StratifiedKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gpuopt
from gpuopt import training
from gpuopt.sklearn import LinearRegressor, LogisticClassifier, MLPClassifier
from gpuopt.training import Comparison, Contender
from gpuopt.training.contenders import ranked
from gpuopt.training.problem import trained
from gpuopt.training.rates import trial
from repository import ROOT
from test_import import HEAVY, python
from training_problems import Problem, transformer, valley

pytestmark = pytest.mark.once

X, Y = load_diabetes(return_X_y=True)
WINE = load_wine(return_X_y=True)


def of_grid(problem: Problem, names: Sequence[str], steps: int, repeats: int) -> Comparison:
    """Every optimizer at the best of twelve rates, scored as `compare` scores a loss."""
    found, contenders = trained(problem.params, problem.loss), []
    for name in names:
        each = []
        for lr in np.geomspace(1e-4, 10, 12):
            scores = [trial(found, name, lr, {"backend": "numpy"}, steps, k * steps) for k in range(repeats)]
            each.append(Contender(name, lr, tuple(scores), 0.0))
        contenders.append(min(each, key=lambda c: c.score))
    return ranked(contenders, "loss", False, "")


@pytest.mark.parametrize("make", [transformer, valley])
def test_it_names_the_winner_of_a_full_grid_on_a_loss(make: Callable[[], Problem]) -> None:
    """Or one that is tied with it in the grid. The small transformer has noisy batches, the valley has no noise."""
    problem, names, steps, repeats = make(), ("gd", "adamw", "adagrad"), 40, 2
    before = [a.tobytes() for _, a in trained(problem.params, problem.loss).leaves]
    grid = of_grid(problem, names, steps, repeats)
    found = training.compare(problem.params, names, steps, loss=problem.loss, repeats=repeats, backend="numpy")
    assert found.winner in grid.tied and len(grid.tied) < 3 and found.metric == "loss" and not found.greater
    assert [c.score for c in found.contenders] == sorted(c.score for c in found.contenders)
    assert [a.tobytes() for _, a in trained(problem.params, problem.loss).leaves] == before


def test_on_data_it_is_scikit_learns_cross_validation() -> None:
    """The scores are those that the winner has there, at its rate, with the same folds."""
    found = training.compare(WINE, ["adam", "sgd"], 6, cv=3)
    assert found.metric == "accuracy" and found.greater and found.rate == "peak lr" and found.training == "6 passes"
    best = found.contenders[0]
    options = {"optimizer": best.optimizer, "optimizer_options": {"lr": best.lr}, "max_iter": 6, "random_state": 0}
    made = make_pipeline(StandardScaler(), MLPClassifier(**options))
    theirs = cross_validate(made, *WINE, cv=StratifiedKFold(3, shuffle=True, random_state=0))["test_score"]
    assert best.scores == tuple(theirs) and best.score > 0.9
    assert best.error == pytest.approx(np.std(theirs, ddof=1) / math.sqrt(3))


def test_what_can_only_be_bad_loses(tmp_path: Path) -> None:
    """The same optimizer at the only rate, which suits adam and not plain descent."""
    found = training.compare((X, Y), ["sgd", "adam"], 10, cv=3, rates=[0.02], estimator=LinearRegressor(), scoring="r2")
    assert found.winner == "adam" and found.tied == ("adam",) and found.metric == "r2"
    assert "It is better than sgd, the next one, by more than the noise." in found.advice
    lines = found.table().splitlines()
    assert lines[1].startswith("adam ") and lines[1].endswith("*") and not lines[2].endswith("*")
    assert found.plot(tmp_path / "new" / "compared.png").read_bytes().startswith(b"\x89PNG")
    assert [label.get_text() for label in found.figure().axes[0].get_yticklabels()] == ["sgd, lr 0.02", "adam, lr 0.02"]


def test_a_rate_that_is_a_number_is_searched_as_a_number() -> None:
    estimator = make_pipeline(StandardScaler(), LogisticClassifier(lr=0.1, optimizer_options={"weight_decay": 0.1}))
    found = training.compare(WINE, ["adamw"], 4, cv=3, rates=[1e-5, 0.05], estimator=estimator)
    assert found.rate == "lr" and found.contenders[0].lr == 0.05 and found.tied == ("adamw",)


def test_a_budget_in_seconds() -> None:
    found = training.compare(WINE, ["sgd"], 0.2, unit="seconds", cv=3, rates=[0.1])
    assert 0.02 < found.contenders[0].seconds < 1 and found.training == "0.2 seconds"
    problem = valley()
    found = training.compare(
        problem.params, ["sgd"], 0.2, unit="seconds", loss=problem.loss, repeats=1, backend="numpy"
    )
    assert 0.02 < found.contenders[0].seconds < 1


def test_what_diverges_comes_last() -> None:
    """At 1e6 plain descent on a regression does."""
    found = training.compare((X, Y), ["sgd", "adam"], 3, cv=3, rates=[1e6], estimator=LinearRegressor())
    assert found.contenders[-1].optimizer == "sgd" and math.isnan(found.contenders[-1].score)


def made(*scores: tuple[float, ...], seconds: tuple[float, ...] = (1.0, 1.0, 1.0), greater: bool = True) -> Comparison:
    each = zip("abc", scores, seconds, strict=False)
    return ranked([Contender(name, 0.1, s, time) for name, s, time in each], "accuracy", greater, "9 passes")


def test_tied_is_by_the_differences_on_the_same_folds() -> None:
    """Folds that are hard for both say nothing."""
    assert made((0.5, 0.7, 0.9), (0.49, 0.69, 0.88)).tied == ("a",)
    assert made((0.5, 0.7, 0.9), (0.9, 0.4, 0.75)).tied == ("a", "b")
    assert made((0.1, 0.2, 0.3), (0.3, 0.4, 0.6), greater=False).winner == "a"
    assert made((0.5,), (0.6,)).tied == ("b",)
    assert made((0.5,), (0.5,)).tied == ("a", "b")


def test_the_advice_in_words() -> None:
    found = made((0.5, 0.7, 0.9), (0.9, 0.4, 0.75), (0.7, 0.7, 0.6), seconds=(3.0, 1.0, 2.0))
    assert found.advice == (
        "Train with a at lr=0.1: accuracy 0.7 after 9 passes. b and c are as good within the noise. b is the fastest of "
        "them, 3.0 times."
    )
    assert made((math.nan,), (math.nan,)).advice.startswith("No optimizer reached a finite accuracy")
    assert made((0.5,)).advice == "Train with a at lr=0.1: accuracy 0.5 after 9 passes."


def loss(params: Any, step: int) -> Any:
    return float(params[0] @ params[0]), [2 * params[0]]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"data_or_model": X}, r"(?s)data_or_model = .*: expected data \(X, y\), or a model with its loss"),
        ({"data_or_model": (X, Y[:5])}, "X has 442 rows and y 5"),
        ({"optimizers": "adam"}, "optimizers = 'adam': expected names"),
        ({"optimizers": ["adam", "sdg"]}, "unknown optimizer 'sdg'.*did you mean 'sgd'"),
        ({"optimizers": []}, "optimizers: expected at least one name"),
        ({"budget": 0}, r"budget = 0: expected a number in \(0, inf\)"),
        ({"budget": 2.5}, "budget = 2.5: expected a whole number, 1 or more"),
        ({"unit": "hours"}, "unit = 'hours': expected one of 'passes', 'steps', 'seconds'"),
        ({"unit": "steps"}, "unit = 'steps': expected 'passes' or 'seconds' for data"),
        ({"estimator": 3}, "estimator = 3: expected one of scikit-learn's kind"),
        ({"estimator": SGDClassifier()}, "estimator: it has no parameter 'optimizer'"),
        ({"estimator": LinearRegressor(), "max_iter": 3}, "max_iter: expected no options of an estimator"),
        ({"rates": []}, r"rates = \[\]: expected at least one rate"),
        ({"rates": [0.1, -1]}, r"rates\[1\] = -1: expected a number in \(0, inf\)"),
        ({"data_or_model": (X * np.nan, Y)}, "data_or_model: no training came to an end: .*NaN"),
        ({"data_or_model": [np.ones(3)], "loss": loss, "unit": "passes"}, "expected 'steps' or 'seconds' with a loss"),
        ({"data_or_model": [np.ones(3)], "loss": loss, "repeats": 0}, "repeats = 0: expected a whole number"),
        ({"data_or_model": [np.ones(3)], "loss": loss, "budget": 0.5}, "budget = 0.5: expected a whole number"),
        ({"data_or_model": [np.ones(3)], "loss": 3}, "loss = 3: expected a function"),
    ],
)
def test_what_is_refused(wrong: dict[str, Any], words: str) -> None:
    given = {"data_or_model": (X, Y), "optimizers": ["adam"], "budget": 2} | wrong
    with pytest.raises(gpuopt.InputError, match=words):
        training.compare(**given)


def test_nothing_heavy_comes_along_and_what_is_missing_is_named() -> None:
    code = f"import sys, gpuopt.training; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert python(code) == "[]"
    missing = "import sys; sys.modules[{0!r}] = None\nimport gpuopt, numpy as np; from gpuopt import training\n"
    code = "try: training.compare((np.ones((9, 2)), np.ones(9)), ['sgd'], 1)\nexcept gpuopt.GpuoptError as e: print(e)"
    assert "needs scikit-learn" in python(missing.format("sklearn") + code)
    code = "try: training.LearningRates(*[None] * 8).figure()\nexcept gpuopt.GpuoptError as e: print(e)"
    said = python(missing.format("matplotlib") + code)
    assert "a picture needs matplotlib" in said and "pip install" in said


def test_a_repetition_is_asked_for_the_steps_behind_those_before() -> None:
    asked = []

    def loss(params: Any, step: int) -> tuple[float, Any]:
        asked.append(step)
        return float((params**2).sum()), 2 * params

    training.compare(np.ones(3), ["sgd"], 6, loss=loss, repeats=3)
    assert max(asked) == 17 and asked[-6:] == [12, 13, 14, 15, 16, 17]


def test_the_committed_rows_say_what_the_readme_says() -> None:
    """Of the last run of each: rates in nine tenths of the gain of the best, their losses beside another grid's, and winners."""
    with (ROOT / "benchmarks" / "results" / "training_practice.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    def last(what: str) -> list[dict[str, str]]:
        found = [r for r in rows if r["what"].startswith(what)]
        return [r for r in found if r["run"] == found[-1]["run"]]

    tests = {what: last(what) for what in (*(f"lr_range_test, {k} trials" for k in (0, 5, 8)), "the grid between")}
    assert [sum(r["holds"] == "True" for r in found) for found in tests.values()] == [14, 15, 15, 15]
    near = [sum(float(r["reached"]) <= 1.1 * float(r["grid_best"]) for r in found) for found in tests.values()]
    assert near == [9, 11, 12, 10] and {len(found) for found in tests.values()} == {15}
    named = {r["problem"]: r["winner"] == r["grid_winner"] for r in last("compare")}
    assert len(named) == 5 and sum(named.values()) == 5
