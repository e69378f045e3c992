"""What a comparison of optimizers is: contenders with their scores, who is tied with the winner, the table, the picture, the words.

Made by `comparison` and `validated`, which measure. Knows no training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuopt import drawing
from gpuopt.optim.hyper import check_whole

NOISE = 2  # standard errors of the differences


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
        than two standard errors of these differences.
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
    return bool(apart > NOISE * np.std(differences, ddof=1) / math.sqrt(len(differences)))


def whole_budget(budget: float) -> int:
    """A budget of steps or passes. Raises InputError naming it where it is a fraction."""
    return check_whole("budget", int(budget) if budget.is_integer() else budget, 1)


def ranked(found: Sequence[Contender], metric: str, greater: bool, training: str, rate: str = "lr") -> Comparison:
    """The best first; what is no number comes last."""
    sign = -1 if greater else 1
    order = sorted(found, key=lambda c: (not math.isfinite(c.score), sign * c.score))
    return Comparison(tuple(order), metric, greater, training, rate)
