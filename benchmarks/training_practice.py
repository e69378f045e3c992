"""Whether the advice of `gpuopt.training` holds: rates of the range test, and winners of `compare`, against full grids.

Run by hand from the root of a checkout, `python benchmarks/training_practice.py`, in some minutes (`--rates`: rates alone); adds
rows to `benchmarks/results/training_practice.csv`. Its problems of loss and gradients are those of the tests.
"""

from __future__ import annotations

import csv
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import gpuopt
from gpuopt import training
from gpuopt.training import contenders, rates, validated
from gpuopt.training.problem import trained

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import training_problems  # noqa: E402  the folder is on the path now

RATES = np.geomspace(1e-4, 1, 12)
BETWEEN = np.sqrt(RATES[1:] * RATES[:-1])  # as good a grid, and what the best of one is worth
TRIALS = ((0, False), (5, False), (8, True))  # how many; whether they are as long as the training
RANGE_TESTED: dict[str, dict[str, Any]] = {"adamw": {}, "sgd": {"momentum": 0.9}, "lion": {}}
COMPARED = ("adamw", "sgd", "lion", "adagrad")
PASSES = {"digits": 18, "diabetes": 27, "breast cancer": 18, "wine": 27}
STEPS, REPEATS = 100, 3
FIELDS = (
    "run",
    "what",
    "problem",
    "optimizer",
    "advised",
    "reached",
    "grid_lr",
    "grid_best",
    "start",
    "winner",
    "grid_winner",
    "holds",
)


def reached(problem: training_problems.Problem, optimizer: str, lr: float, options: dict[str, Any]) -> float:
    """The loss of all data after training at one rate; inf where it is no number on the way."""
    with trained(problem.params, problem.loss).restored(), np.errstate(all="ignore"):
        opt = gpuopt.create(optimizer, problem.params, lr=lr, **options)
        for step in range(problem.steps):
            loss, grads = problem.loss(problem.params, step)
            if not math.isfinite(loss):
                return math.inf
            opt.step(grads)
        return problem.whole(problem.params)


def range_rows() -> list[dict[str, Any]]:
    """The range test on five problems with three optimizers, by TRIALS, and the best rate of the grid between. holds: nine tenths
    of what the best rate of the grid takes off the loss, or more.
    """
    rows = []
    for name, (make, *_) in training_problems.FIVE.items():
        for optimizer, options in RANGE_TESTED.items():
            problem = make()
            start = problem.whole(problem.params)
            on_grid, between = (
                {float(lr): reached(problem, optimizer, lr, options) for lr in grid} for grid in (RATES, BETWEEN)
            )
            best, other = (min(grid, key=grid.__getitem__) for grid in (on_grid, between))
            found = {"the grid between": (other, between[other])}
            for trials, long in TRIALS:
                steps = {"num_steps": problem.steps} if long else {}
                lr = training.lr_range_test(
                    problem.params, problem.loss, optimizer, trials=trials, **steps, **options
                ).advised
                what = f"lr_range_test, {trials} trials{' as long as training' if long else ''}"
                found[what] = lr, reached(problem, optimizer, lr, options)
            rows += [
                {
                    "what": what, "problem": name, "optimizer": optimizer, "advised": lr, "reached": loss, "grid_lr": best,
                    "grid_best": on_grid[best], "start": start, "holds": start - loss >= 0.9 * (start - on_grid[best]),
                }
                for what, (lr, loss) in found.items()
            ]  # fmt: skip
    return rows


def data(name: str) -> tuple[Any, Any]:
    """A data set of scikit-learn."""
    from sklearn import datasets

    return getattr(datasets, f"load_{name.replace(' ', '_')}")(return_X_y=True)  # type: ignore[no-any-return]


def validated_rows(name: str) -> list[dict[str, Any]]:
    """`compare` on data, and every optimizer at every rate with all passes on the same folds."""
    passes = PASSES[name]
    found = training.compare(data(name), COMPARED, passes)
    grid = validated.Validation(*data(name), None, None, 5, RATES.tolist(), 0, None, {})
    best = []
    for optimizer in COMPARED:
        each = [contenders.Contender(optimizer, lr, grid.scores(optimizer, lr, passes)[0], 0.0) for lr in RATES]
        best.append(max(each, key=lambda c: -math.inf if math.isnan(c.score) else c.score))
    return compared_rows(name, found, contenders.ranked(best, found.metric, True, ""))


def loss_rows() -> list[dict[str, Any]]:
    """`compare` on the small transformer by its loss, and every optimizer at every rate."""
    problem = training_problems.transformer()
    found = training.compare(problem.params, COMPARED, STEPS, loss=problem.loss, repeats=REPEATS)
    target, best = trained(problem.params, problem.loss), []
    for optimizer in COMPARED:
        each = []
        for lr in RATES:
            scores = tuple(rates.trial(target, optimizer, lr, {}, STEPS, k * STEPS) for k in range(REPEATS))
            each.append(contenders.Contender(optimizer, lr, scores, 0.0))
        best.append(min(each, key=lambda c: c.score))
    return compared_rows("transformer", found, contenders.ranked(best, "loss", False, ""))


def compared_rows(name: str, found: Any, grid: Any) -> list[dict[str, Any]]:
    """A row for each optimizer. holds: whether the winner of `compare` is the grid's, or tied with it in the grid, which is what
    `Comparison.tied` says: fold by fold, no further apart in the mean than two standard errors of the differences.
    """
    best = {c.optimizer: c for c in grid.contenders}
    return [
        {
            "what": f"compare, {found.metric}", "problem": name, "optimizer": c.optimizer, "advised": c.lr,
            "reached": c.score, "grid_lr": best[c.optimizer].lr, "grid_best": best[c.optimizer].score,
            "winner": found.winner, "grid_winner": grid.winner, "holds": found.winner in grid.tied,
        }
        for c in found.contenders
    ]  # fmt: skip


def main() -> int:
    """Measure, print and add the rows."""
    warnings.simplefilter("ignore")
    path, run = HERE / "results" / "training_practice.csv", time.strftime("%Y%m%dT%H%M%S")
    rows = range_rows()
    if "--rates" not in sys.argv[1:]:
        rows += [row for name in PASSES for row in validated_rows(name)] + loss_rows()
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        for row in rows:
            rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow({"run": run, **rounded})
            print(rounded)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
