"""`gpuopt.sklearn` beside scikit-learn's own estimators: score and seconds of a fit at equal passes over the data.

    python benchmarks/bench_sklearn.py  # the small data, then 1e6 x 100; rows go to benchmarks/results/sklearn.csv
    python benchmarks/bench_sklearn.py --rows 20000 --out sklearn.csv

Digits, breast cancer and diabetes: means over five folds, standardized, seconds of all five fits, the median of `--repeats` rounds.
Synthetic data: one fit in each round on nine tenths of the rows, scored on the rest. Rounds go A B A B in one process, after a fit
that compiles; linear models have the same penalties, networks their own defaults. A pass of LogisticRegression is one evaluation of
the loss and its gradient, which go through the data twice; L-BFGS makes one before its first iteration, and one or more in each.
The threads of BLAS are those of the environment, and stand in the column `machine`. Rows are only ever added.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import linear_model, neural_network
from sklearn.base import clone, is_classifier
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

import gpuopt.sklearn as ours
from gpuopt.bench.machine import device_name
from gpuopt.bench.rows import append

FEATURES, SHARE = 100, 10
PASSES = 20, 5, 2  # on the small data; of a linear model, of a network on the large ones
FEW = 2  # in which a classifier of ours is where L-BFGS is after the passes of a linear model
ALPHA = 1e-4  # l2 of SGDRegressor and SGDClassifier
RESULTS = Path(__file__).parent / "results" / "sklearn.csv"


@dataclass(frozen=True)
class Row:
    """One pair on one data set; ratio: their seconds over ours. passes, passes_ours: at most; in rows without the latter they are
    those of both, and LogisticRegression had one more. loss: mean negative logarithm of the probability of the true class, of rows
    that are scored.
    """

    date: str
    machine: str
    data: str
    theirs: str
    ours: str
    passes: int
    score_theirs: float
    score_ours: float
    seconds_theirs: float
    seconds_ours: float
    ratio: float
    loss_theirs: float | None
    loss_ours: float | None
    passes_ours: int | None


Fold = tuple[Any, Any, Any, Any]  # X and y to train on, then those to score


def pairs(classes: bool, passes: int, network_passes: int, rows: int) -> Iterable[tuple[Any, Any, int]]:
    """Their estimator, ours, and the passes of theirs."""
    sgd = {"max_iter": passes, "tol": None, "alpha": ALPHA, "random_state": 0}
    mlp: dict[str, Any] = {"max_iter": network_passes, "random_state": 0, "tol": 0.0, "n_iter_no_change": 10**6}
    mine = {"max_iter": passes, "random_state": 0}
    if classes:
        yield linear_model.SGDClassifier(loss="log_loss", **sgd), ours.LogisticClassifier(l2=ALPHA, **mine), passes
        lbfgs = linear_model.LogisticRegression(max_iter=passes - 1)
        yield lbfgs, ours.LogisticClassifier(l2=1 / rows, **mine), passes
        if passes < PASSES[0]:
            yield lbfgs, ours.LogisticClassifier(l2=1 / rows, **mine | {"max_iter": FEW}), passes
        theirs, made = neural_network.MLPClassifier, ours.MLPClassifier
    else:
        yield linear_model.SGDRegressor(**sgd), ours.LinearRegressor(l2=ALPHA, **mine), passes
        theirs, made = neural_network.MLPRegressor, ours.MLPRegressor
    yield theirs(**mlp), made(max_iter=network_passes, random_state=0), network_passes


def small() -> Iterable[tuple[str, bool, list[Fold]]]:
    """Name, whether it has classes, and five standardized folds of each data set of scikit-learn's."""
    loaders = (
        ("diabetes", load_diabetes, False),
        ("digits", load_digits, True),
        ("breast cancer", load_breast_cancer, True),
    )
    for name, load, classes in loaders:
        X, y = load(return_X_y=True)
        splits = (StratifiedKFold if classes else KFold)(5, shuffle=True, random_state=0).split(X, y)
        folds = []
        for train, test in splits:
            scaler = StandardScaler().fit(X[train])
            folds.append((scaler.transform(X[train]), y[train], scaler.transform(X[test]), y[test]))
        yield f"{name} {X.shape[0]} x {X.shape[1]}", classes, folds


def large(rows: int, dtype: str) -> Iterable[tuple[str, bool, list[Fold]]]:
    """Normal features, a third of which matter: a linear regression, and classes by the logistic distribution; one split."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, FEATURES), dtype=np.float32)
    weights = np.where(rng.random(FEATURES) < 1 / 3, rng.normal(size=FEATURES), 0).astype(np.float32)
    line = X @ weights
    X = X.astype(dtype, copy=False)
    kept = rows - rows // SHARE
    name = f"synthetic {rows} x {FEATURES} {dtype}"
    for classes in (False, True):
        y = line / line.std() * 2 + rng.logistic(size=rows) > 0 if classes else line + 2 * rng.standard_normal(rows)
        y = y.astype(np.int64 if classes else dtype)
        yield f"{name}, {'classes' if classes else 'regression'}", classes, [(X[:kept], y[:kept], X[kept:], y[kept:])]


def measured(estimator: Any, folds: list[Fold]) -> tuple[float, float | None, float]:
    """Mean score, mean loss of a classifier, and the seconds of all fits."""
    seconds, scores, losses = 0.0, [], []
    for X, y, X_test, y_test in folds:
        made = clone(estimator)
        begin = time.perf_counter()
        made.fit(X, y)
        seconds += time.perf_counter() - begin
        scores.append(made.score(X_test, y_test))
        if is_classifier(made):
            shares = made.predict_proba(X_test).astype(np.float64)
            losses.append(log_loss(y_test, shares / shares.sum(axis=1, keepdims=True)))
    return float(np.mean(scores)), float(np.mean(losses)) if losses else None, seconds


def compared(data: str, theirs: Any, mine: Any, passes: int, folds: list[Fold], repeats: int) -> Row:
    """Both in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    scores = [0.0, 0.0]
    losses: list[float | None] = [None, None]
    for _ in range(repeats):
        for k, estimator in enumerate((theirs, mine)):
            scores[k], losses[k], seconds = measured(estimator, folds)
            times[k].append(seconds)
    seconds_theirs, seconds_ours = map(statistics.median, times)
    return Row(
        f"{datetime.now(UTC):%Y-%m-%d}", machine(), data, type(theirs).__name__, type(mine).__name__, passes, *scores,
        seconds_theirs, seconds_ours, seconds_theirs / seconds_ours, *losses, mine.max_iter,
    )  # fmt: skip


def machine() -> str:
    """The processor, and the threads that BLAS takes."""
    found = [entry["num_threads"] for entry in threadpool_info() if entry["user_api"] == "blas"]
    return f"{device_name('cpu')}, BLAS on {max(found, default=1)}"


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure, print and write rows."""
    parser = argparse.ArgumentParser(description="gpuopt.sklearn beside scikit-learn")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the synthetic data; 0 leaves them out")
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32"], help="of the synthetic data")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--large-only", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", ConvergenceWarning)
    for estimator, y in ((ours.LinearRegressor, np.arange(200.0)), (ours.MLPClassifier, np.arange(200) % 2)):
        estimator(max_iter=1, l2=ALPHA).fit(np.ones((200, 9), np.float32), y)  # compiles
        estimator(max_iter=1).fit(np.ones((200, 9), np.float32), y)
    rows = []
    for (data, classes, folds), passes, network in cases(options):
        for theirs, mine, both in pairs(classes, passes, network, len(folds[0][0])):
            rows.append(row := compared(data, theirs, mine, both, folds, options.repeats))
            append(options.out, [row])
            print(
                f"{row.data:45} {row.theirs:18} {row.passes:3} and {row.passes_ours} passes  "
                f"score {row.score_theirs:.4f} {row.score_ours:.4f}  "
                f"loss {row.loss_theirs or 0:.5f} {row.loss_ours or 0:.5f}  "
                f"seconds {row.seconds_theirs:.3f} {row.seconds_ours:.3f}  ratio {row.ratio:.2f}",
                flush=True,
            )
    return rows


def cases(options: argparse.Namespace) -> Iterable[tuple[tuple[str, bool, list[Fold]], int, int]]:
    """Each data set, the passes of a linear model and of a network; made one after the other, since some are large."""
    for case in () if options.large_only else small():
        yield case, PASSES[0], PASSES[0]
    for dtype in options.dtypes if options.rows else ():
        for case in large(options.rows, dtype):
            yield case, *PASSES[1:]


if __name__ == "__main__":
    main()
