"""Optimizers side by side on the user's own problem: a table, a picture, and advice in words.

Called by users as `gpuopt.training.compare`. `validated` holds what is cross-validated on data (by scikit-learn), this file what a
comparison is, and how a loss closure is compared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuopt import drawing, rules
from gpuopt.errors import InputError, entry
from gpuopt.messages import abbreviated, unknown
from gpuopt.training.checks import choice, real, whole
from gpuopt.training.problem import ArrayProblem, ModelProblem, trained
from gpuopt.training.rates import SHARE, lr_range_test

UNITS = ("passes", "steps", "seconds")
TRIALS = 5  # runs of the range test of each optimizer
CLOCK = 5  # steps whose time says how many fit into a budget of seconds


@dataclass(frozen=True)
class Contender:
    """One optimizer with the rate that suits it best. scores: one for each fold or run; seconds: of one training."""

    optimizer: str
    lr: float
    scores: tuple[float, ...]
    seconds: float

    @property
    def score(self) -> float:
        """The mean of the scores."""
        return float(np.mean(self.scores))

    @property
    def error(self) -> float:
        """The standard error of that mean; 0 of a single score."""
        return float(np.std(self.scores, ddof=1) / math.sqrt(len(self.scores))) if len(self.scores) > 1 else 0.0


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. contenders: the best first. metric: what the scores are. greater: whether more of it is better.
    training: in words, such as "30 passes". rate: what `lr` is, the rate of all steps or the peak of a schedule.
    """

    contenders: tuple[Contender, ...]
    metric: str
    greater: bool
    training: str
    rate: str = "lr"

    @property
    def winner(self) -> str:
        """The optimizer with the best mean score."""
        return self.contenders[0].optimizer

    @property
    def tied(self) -> tuple[str, ...]:
        """The winner, and those that may be as good: whose scores differ from the winner's, fold by fold, by no more in the mean
        than the standard error of these differences.
        """
        return tuple(c.optimizer for c in self.contenders if not behind(self.contenders[0].scores, c.scores))

    @property
    def advice(self) -> str:
        """What to do, in words."""
        best, tied = self.contenders[0], [c for c in self.contenders if c.optimizer in self.tied]
        words = f"Train with {best.optimizer} at {self.rate}={best.lr:.2g}: {self.metric} {best.score:.4g} after {self.training}."
        others = [c.optimizer for c in tied[1:]]
        if others:
            words += f" {' and '.join(others)} {'is' if len(others) == 1 else 'are'} as good within the noise."
            fastest = min(tied, key=lambda c: c.seconds)
            if fastest is not best and fastest.seconds < 0.8 * best.seconds:
                words += f" {fastest.optimizer} is the fastest of them, {best.seconds / fastest.seconds:.1f} times."
        elif len(self.contenders) > 1:
            words += f" It is better than {self.contenders[1].optimizer}, the next one, by more than the noise."
        if not math.isfinite(best.score):
            words = f"No optimizer reached a finite {self.metric}: scale the data, or try lower rates."
        return words

    def table(self) -> str:
        """The contenders as text, those as good as the winner marked by a star."""
        lines = [f"{'optimizer':<20}{self.rate:>10}{self.metric:>22}{'+/-':>10}{'seconds':>10}"]
        for c in self.contenders:
            star = " *" if c.optimizer in self.tied else ""
            lines.append(f"{c.optimizer:<20}{c.lr:>10.2g}{c.score:>22.4g}{c.error:>10.2g}{c.seconds:>10.2f}{star}")
        return "\n".join([*lines, self.advice])

    def figure(self) -> Any:
        """A row for each optimizer: every score a dot, their mean a bar; a matplotlib Figure."""
        rows = self.contenders[::-1]
        made = drawing.figure(7.2, 1.3 + 0.35 * len(rows))
        axes = made.subplots()
        for k, c in enumerate(rows):
            colour = drawing.STRONG[0] if c.optimizer in self.tied else drawing.GREY
            axes.plot(c.scores, [k] * len(c.scores), "o", color=colour, markersize=4, alpha=0.4, markeredgewidth=0)
            axes.plot([c.score], [k], "|", color=colour, markersize=16, markeredgewidth=2.5)
        axes.set_yticks(range(len(rows)), [f"{c.optimizer}, lr {c.lr:.2g}" for c in rows])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_xlabel(f"{self.metric}, {'more' if self.greater else 'less'} is better")
        drawing.plain(
            axes, f"After {self.training}: {self.winner}" + (" or one as good (blue)" if self.tied[1:] else "")
        )
        return made

    def plot(self, path: str | Path) -> Path:
        """Save the figure as PNG and return its path."""
        return drawing.save(self.figure(), Path(path))


def behind(best: Sequence[float], other: Sequence[float]) -> bool:
    """Whether scores differ from the best ones by more than noise: see `Comparison.tied`."""
    if best is other:
        return False
    apart = np.abs(np.mean(best) - np.mean(other))
    if not math.isfinite(apart):
        return True
    if len(best) < 2:
        return bool(apart > 0)
    differences = np.subtract(best, other)
    return bool(apart > np.std(differences, ddof=1) / math.sqrt(len(differences)))


@entry
def compare(
    data_or_model: Any,
    optimizers: Sequence[str],
    budget: float,
    *,
    unit: str | None = None,
    loss: Callable[[Any, int], Any] | None = None,
    estimator: Any = None,
    scoring: Any = None,
    cv: Any = 5,
    rates: Sequence[float] | None = None,
    repeats: int = 3,
    random_state: int = 0,
    n_jobs: int | None = None,
    **options: Any,
) -> Comparison:
    """Train with each optimizer at the rate that suits it, score, and say which one to take.

    data_or_model: data `(X, y)`, as scikit-learn takes them; or, with `loss`, arrays in any container or a torch.nn.Module.
    optimizers: names. budget: of one training with one optimizer, in `unit`: "passes" over the data (the default for data), "steps"
    (the default with a loss) or "seconds".

    Of data: `estimator` (by default an MLPClassifier or MLPRegressor of gpuopt.sklearn, regression where y are floating numbers,
    behind a StandardScaler; any estimator or pipeline with the parameters optimizer, lr and max_iter) is cross-validated with the
    folds of `cv` and the metric of `scoring` (both as scikit-learn's cross_validate; by default the estimator's own score). The
    rate is chosen among `rates` (nine from 1e-4 to 1) by scikit-learn's HalvingGridSearchCV on the same folds. n_jobs: as there.

    Of a loss, `loss(params, step)` as in `lr_range_test`: the rate is that of a range test with five trials; each training goes
    from where the parameters are, `repeats` times on steps of other numbers (3), and its score is the mean loss of its last fifth.
    All is put back bit for bit. random_state: of the estimators and folds. options: of the optimizers, or of the default estimator.

    Raises InputError naming the argument, GpuoptError where scikit-learn is missing.
    """
    names = checked_names(optimizers)
    amount = real("budget", budget)
    chosen = choice("unit", unit or ("passes" if loss is None else "steps"), UNITS)
    if loss is None:
        if chosen == "steps":
            raise InputError("unit = 'steps': expected 'passes' or 'seconds' for data")
        from gpuopt.training import validated

        how = validated.Validation(
            *validated.checked_data(data_or_model), estimator, scoring, cv, rates, random_state, n_jobs, options
        )
        return how.compare(names, amount, chosen)
    if chosen == "passes":
        raise InputError("unit = 'passes': expected 'steps' or 'seconds' with a loss")
    problem = trained(data_or_model, loss)
    times = whole("repeats", repeats, 1)
    found = [of_loss(problem, name, amount, chosen, times, options) for name in names]
    return ranked(found, "loss", False, f"{amount:g} {chosen}")


def checked_names(optimizers: Any) -> list[str]:
    """The names, each once. Raises InputError naming what is none."""
    if isinstance(optimizers, str) or not hasattr(optimizers, "__iter__"):
        raise InputError(f"optimizers = {abbreviated(optimizers)}: expected names, such as ['adamw', 'sgd']")
    names = list(dict.fromkeys(optimizers))
    for name in names:
        if not isinstance(name, str) or name.lower() not in rules.NAMES:
            raise InputError(f"optimizers: {unknown('optimizer', name, rules.NAMES)}")
    if not names:
        raise InputError("optimizers: expected at least one name, found none")
    return names


def whole_budget(budget: float) -> int:
    """A budget of steps or passes. Raises InputError naming it where it is a fraction."""
    return whole("budget", int(budget) if budget.is_integer() else budget, 1)


def ranked(found: Sequence[Contender], metric: str, greater: bool, training: str, rate: str = "lr") -> Comparison:
    """The best first; what is no number comes last."""
    sign = -1 if greater else 1
    order = sorted(found, key=lambda c: (not math.isfinite(c.score), sign * c.score))
    return Comparison(tuple(order), metric, greater, training, rate)


def of_loss(
    problem: ArrayProblem | ModelProblem, name: str, budget: float, unit: str, repeats: int, options: dict[str, Any]
) -> Contender:
    """Train a problem with one optimizer, from where it is, `repeats` times."""
    params = problem.params if isinstance(problem, ArrayProblem) else problem.model
    steps = whole_budget(budget) if unit == "steps" else fitting(problem, name, budget, options)
    tested = lr_range_test(params, problem.loss, name, num_steps=min(max(steps, 10), 100), trials=TRIALS, **options)
    scores, begin = [], time.perf_counter()
    for k in range(repeats):
        scores.append(run(problem, name, tested.advised, steps, k * steps, options))
    return Contender(name, tested.advised, tuple(scores), (time.perf_counter() - begin) / repeats)


def run(
    problem: ArrayProblem | ModelProblem, name: str, lr: float, steps: int, first: int, options: dict[str, Any]
) -> float:
    """The mean loss over the last fifth of the steps with these numbers; inf where it is no number any more."""
    losses: list[float] = []
    with problem.restored(), np.errstate(all="ignore"):
        opt = problem.optimizer(name, lr, options)
        for step in range(first, first + steps):
            value, gradients = problem.evaluate(step)
            if not math.isfinite(value):
                return math.inf
            losses.append(value)
            problem.step(opt, gradients)
    return float(np.mean(losses[-max(1, steps // SHARE) :]))


def fitting(problem: ArrayProblem | ModelProblem, name: str, seconds: float, options: dict[str, Any]) -> int:
    """How many steps go into so many seconds."""
    with problem.restored():
        opt = problem.optimizer(name, 0.0, options)
        taken = []
        for step in range(CLOCK + 1):
            begin = time.perf_counter()
            problem.step(opt, problem.evaluate(step)[1])
            taken.append(time.perf_counter() - begin)
    return max(1, int(seconds / np.median(taken[1:])))
