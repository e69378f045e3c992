"""`gpuopt demo --all`: every optimizer on the digits, in Rosenbrock's valley and on a small transformer; one table, one picture.

Called by `gpuopt/demos/__init__.py`. Uses the problems of `digits.py` and `training.py`, and knows no rule.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuopt import drawing
from gpuopt.demos import digits, training
from gpuopt.spaces import one_blas_thread

NAME = "gpuopt-demo-all.png"
STEPS, QUICK_STEPS = 200, 30  # on the text
LAST = 10  # of its losses, of which the mean is shown
LEAST = 1e-12  # where the axis of the valley begins: below, an optimizer has arrived


@dataclass(frozen=True)
class Outcome:
    """What one optimizer reached. accuracy: share of the digits' test images; text: mean loss of its last steps, from `start`;
    valley: loss after all steps; seconds: of all three.
    """

    optimizer: str
    accuracy: float
    start: float
    text: float
    valley: float
    seconds: float


def outcomes(
    names: Iterable[str], xp: Any, backend: str | None, dtype: np.dtype[Any], *, quick: bool = False, seed: int = 0
) -> list[Outcome]:
    """Train with each, with the rates of `digits.TUNED` and `training.RATES`, else the documented defaults. xp, backend, dtype: of
    the digits' arrays; the other problems' are NumPy's, on the host.
    """
    found = []
    steps, climbs = (QUICK_STEPS, 10 * QUICK_STEPS) if quick else (STEPS, 10 * STEPS)
    for name in names:
        begin = time.perf_counter()
        trained = digits.train(name, xp, backend, dtype, quick=quick, seed=seed)
        with one_blas_thread():
            losses = training.transformer(name, steps, seed)
        valley = training.valley(name, climbs)[-1]
        last = float(np.mean(losses[-LAST:]))
        found.append(Outcome(name, trained.accuracy, losses[0], last, valley, time.perf_counter() - begin))
    return found


def report(found: list[Outcome], say: Callable[[str], None]) -> None:
    """Print the table, the best on the text first."""
    say(f"\n{'optimizer':<20}{'digits, right':>14}{'text, loss':>12}{'valley, loss':>14}{'seconds':>9}")
    for o in ranked(found):
        say(f"{o.optimizer:<20}{o.accuracy:>14.3f}{o.text:>12.3f}{o.valley:>14.1e}{o.seconds:>9.1f}")
    say(f"\nThe text's loss was {found[0].start:.3f} at the start, the valley's {training.rosenbrock_start():.1f}.")


def ranked(found: list[Outcome]) -> list[Outcome]:
    """By the loss on the text; what is no number comes last."""
    return sorted(found, key=lambda o: (np.isnan(o.text), o.text))


def save(found: list[Outcome], path: Path) -> Path:
    """Draw all outcomes into the PNG `path`, needing no display, and return `path`."""
    return drawing.save(picture(found), path)


def picture(found: list[Outcome]) -> Any:
    """The figure: a row an optimizer, the best on the text on top, and a dot in it for each problem."""
    rows = ranked(found)[::-1]
    figure = drawing.figure(10.5, 1.2 + 0.2 * len(rows))
    panels = figure.subplots(1, 3, sharey=True)
    columns = (
        ("Small transformer, loss on text", [o.text for o in rows]),
        ("Rosenbrock's valley, loss", [max(o.valley, LEAST) for o in rows]),
        ("Digits, test images wrong, %", [100 * (1 - o.accuracy) for o in rows]),
    )
    for k, (axes, (title, values)) in enumerate(zip(panels, columns, strict=True)):
        axes.hlines(
            range(len(rows)), 0, 1, transform=axes.get_yaxis_transform(), color="#EEEEEE", linewidth=0.8, zorder=0
        )
        axes.plot(values, range(len(rows)), "o", color=drawing.OURS[k], markersize=5)
        drawing.plain(axes, title)
        axes.grid(visible=False, axis="y")
    for axes, start in zip(panels, (rows[0].start, training.rosenbrock_start()), strict=False):
        axes.axvline(start, color=drawing.GREY, linestyle=(0, (4, 3)), linewidth=1)
        axes.annotate(
            "start", (start, len(rows) - 1), xytext=(-4, 0), textcoords="offset points", ha="right", va="center",
            color=drawing.GREY, fontsize=drawing.SMALL,
        )  # fmt: skip
    panels[1].set(xscale="log")
    panels[2].set(xlim=(0, None))
    panels[0].set_yticks(range(len(rows)), [o.optimizer for o in rows])
    panels[0].set_ylim(-0.7, len(rows) - 0.3)
    return figure
