"""Optimizers compared on data: scikit-learn splits, searches the rate and scores; gpuopt.sklearn has the estimators.

Called by `comparison` only; imports scikit-learn when it runs. Knows no optimizer but by name.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from gpuopt.errors import GpuoptError, InputError
from gpuopt.messages import abbreviated, install
from gpuopt.training.checks import real
from gpuopt.training.contenders import Comparison, Contender, ranked, whole_budget

RATES = tuple(np.geomspace(1e-4, 1.0, 9).tolist())
FACTOR = (
    3  # all rates get a third of the passes, the best third of them all passes: shorter runs would favour high rates
)
CLOCK = 10  # passes whose time says how many fit into a budget of seconds
OPTIONS = "optimizer_options"
DIVERGED = "training diverged"  # what the estimators say then


def checked_data(data: Any) -> tuple[Any, Any]:
    """(X, y). Raises InputError for what is no such pair."""
    if not isinstance(data, (tuple, list)) or len(data) != 2 or not all(hasattr(part, "__len__") for part in data):
        raise InputError(f"data_or_model = {abbreviated(data)}: expected data (X, y), or a model with its loss")
    if len(data[0]) != len(data[1]):
        raise InputError(f"data_or_model: X has {len(data[0])} rows and y {len(data[1])}: expected as many")
    return data[0], data[1]


def sklearn(module: str) -> Any:
    """A module of scikit-learn. Raises GpuoptError with the line that installs it."""
    try:
        return import_module(f"sklearn.{module}")
    except ModuleNotFoundError as error:
        raise GpuoptError(f"comparing on data needs scikit-learn; {install('demo')}") from error


def default_estimator(y: Any, options: dict[str, Any]) -> Any:
    """A network behind a StandardScaler: y of floating numbers is a regression, everything else are classes."""
    sklearn("base")
    ours = import_module("gpuopt.sklearn")
    made = (ours.MLPRegressor if np.asarray(y).dtype.kind == "f" else ours.MLPClassifier)(**options)
    return sklearn("pipeline").make_pipeline(sklearn("preprocessing").StandardScaler(), made)


@dataclass
class Validation:
    """How the optimizers are compared: see `compare`."""

    x: Any
    y: Any
    estimator: Any
    scoring: Any
    cv: Any
    rates: Sequence[float] | None
    random_state: int
    n_jobs: int | None
    options: dict[str, Any]

    def __post_init__(self) -> None:
        if self.estimator is None:
            self.estimator = default_estimator(self.y, self.options)
        elif self.options:
            raise InputError(f"{next(iter(self.options))}: expected no options of an estimator that was given")
        if not hasattr(self.estimator, "get_params"):
            raise InputError(f"estimator = {abbreviated(self.estimator)}: expected one of scikit-learn's kind")
        known = self.estimator.get_params()
        self.keys = {name: parameter(known, name) for name in ("optimizer", "lr", "max_iter")}
        given = known[self.keys["lr"]]
        self.peaks = given is None or isinstance(given, str)  # a schedule of the estimator, whose peak is an option
        if self.peaks:
            self.keys["lr"] = parameter(known, OPTIONS)
            self.options = dict(known[self.keys["lr"]] or {})
        if isinstance(self.rates, (str, bytes)) or not (self.rates is None or len(self.rates)):
            raise InputError(f"rates = {abbreviated(self.rates)}: expected at least one rate")
        self.grid = [real(f"rates[{k}]", rate) for k, rate in enumerate(RATES if self.rates is None else self.rates)]
        base = sklearn("base")
        seeds = {key: self.random_state for key in known if key.rpartition("__")[2] == "random_state"}
        self.estimator = base.clone(self.estimator).set_params(**seeds)
        folds = sklearn("model_selection").check_cv(self.cv, self.y, classifier=base.is_classifier(self.estimator))
        if hasattr(folds, "shuffle"):  # data sets may be sorted
            folds.shuffle, folds.random_state = True, self.random_state
        self.folds = list(folds.split(self.x, self.y))

    def compare(self, names: Sequence[str], budget: float, unit: str) -> Comparison:
        """Every optimizer; see `gpuopt.training.compare`."""
        found = [self.contender(name, self.passes(name, budget, unit)) for name in names]
        greater = True  # as in scikit-learn, whose scorers negate what is better when it is less
        return ranked(found, self.metric(), greater, f"{budget:g} {unit}", "peak lr" if self.peaks else "lr")

    def metric(self) -> str:
        """The name of the metric."""
        if self.scoring is not None:
            return self.scoring if isinstance(self.scoring, str) else str(getattr(self.scoring, "__name__", "score"))
        return "accuracy" if sklearn("base").is_classifier(self.estimator) else "R2"

    def passes(self, name: str, budget: float, unit: str) -> int:
        """The passes over the data that the budget means."""
        if unit == "passes":
            return whole_budget(budget)
        self.seconds(name, 1)  # compiled now
        first = self.seconds(name, 1)
        more = min(CLOCK, int(budget / first))
        if more < 2:
            return 1
        each = max((self.seconds(name, more) - first) / (more - 1), first / CLOCK)
        return max(1, 1 + int((budget - first) / each))

    def seconds(self, name: str, passes: int) -> float:
        """How long a training of so many passes takes, on the rows of the first fold."""
        rows = self.folds[0][0]
        made, x, y = self.made(name, self.grid[0], passes), take(self.x, rows), take(self.y, rows)
        begin = time.perf_counter()
        made.fit(x, y)
        return time.perf_counter() - begin

    def made(self, name: str, lr: float, passes: int) -> Any:
        """The estimator with one optimizer at one rate."""
        values = dict(zip(self.keys.values(), (name, self.rate(lr), passes), strict=True))
        return sklearn("base").clone(self.estimator).set_params(**values)

    def rate(self, lr: float) -> Any:
        """A rate as the value of the parameter that sets it."""
        return {**self.options, "lr": lr} if self.peaks else lr

    def contender(self, name: str, passes: int) -> Contender:
        """One optimizer: its rate by halving, then its scores on the folds."""
        lr = self.best_rate(name, passes)
        return Contender(name, lr, *self.scores(name, lr, passes))

    def scores(self, name: str, lr: float, passes: int) -> tuple[tuple[float, ...], float]:
        """(scores on the folds, seconds of one training in the mean); NaN where training diverges on a fold."""
        try:
            with tried():
                found = sklearn("model_selection").cross_validate(
                    self.made(name, lr, passes),
                    self.x,
                    self.y,
                    scoring=self.scoring,
                    cv=self.folds,
                    n_jobs=self.n_jobs,
                    error_score=math.nan,
                )
        except InputError as error:
            if DIVERGED not in str(error.__cause__):
                raise
            return (math.nan,) * len(self.folds), math.nan
        return tuple(map(float, found["test_score"])), float(np.mean(found["fit_time"]))

    def best_rate(self, name: str, passes: int) -> float:
        """The rate that halving leaves over; the only one where there is no choice."""
        if len(self.grid) == 1:
            return self.grid[0]
        sklearn("experimental.enable_halving_search_cv")
        search = sklearn("model_selection").HalvingGridSearchCV(
            self.made(name, self.grid[0], passes),
            {self.keys["lr"]: [self.rate(lr) for lr in self.grid]},
            resource=self.keys["max_iter"],
            max_resources=passes,
            min_resources=max(1, passes // FACTOR),
            factor=FACTOR,
            cv=self.folds,
            scoring=self.scoring,
            n_jobs=self.n_jobs,
            refit=False,
            error_score=math.nan,
            random_state=self.random_state,
        )
        with tried():
            search.fit(self.x, self.y)
        best = search.best_params_[self.keys["lr"]]
        return float(best["lr"] if self.peaks else best)


def parameter(known: Any, name: str) -> str:
    """The full name of a parameter that ends so, behind a pipeline's prefix. Raises InputError where there is none."""
    found = [key for key in known if key == name or key.endswith(f"__{name}")]
    if not found:
        raise InputError(
            f"estimator: it has no parameter {name!r}: expected an estimator of gpuopt.sklearn, or a pipeline of one"
        )
    return str(min(found, key=len))


def take(data: Any, rows: Any) -> Any:
    """These rows, of arrays and of pandas alike."""
    return sklearn("utils")._safe_indexing(data, rows)


@contextmanager
def tried() -> Iterator[None]:
    """Without the warnings of trainings that are short, or diverge, on purpose. Raises InputError where each of them failed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ValueError as error:
            said = str(error).strip().splitlines()
            raise InputError(f"data_or_model: no training came to an end: {said[-1] if said else error}") from error
