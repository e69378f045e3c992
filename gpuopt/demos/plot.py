"""The demo's picture: how the optimizers approach the least loss, and the digits classifier epoch by epoch. Called by the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gpuopt import drawing
from gpuopt.demos.digits import Training
from gpuopt.demos.regression import TOLERANCE, Curve

LOWEST = 1e-6  # where the axis of the first panel ends: below, rounding decides in float32
TINY = 1e-18  # for logarithms, of a loss that is the least one
SMOOTHING = 0.07  # decades of steps
GRID = 1000  # points a decade
DOTS: dict[str, Any] = {"marker": ".", "linestyle": "", "markersize": 3, "alpha": 0.35, "markeredgewidth": 0}


def save(curves: list[Curve], training: Training, path: Path) -> Path:
    """Draw both problems into the PNG `path`, needing no display, and return `path`."""
    return drawing.save(picture(curves, training), path)


def picture(curves: list[Curve], training: Training) -> Any:
    """The figure: the regression at the left, loss over accuracy of the digits at the right."""
    figure = drawing.figure(11.5, 4.8)
    left, loss, accuracy = figure.subplot_mosaic([["regression", "loss"], ["regression", "accuracy"]]).values()
    draw_regression(left, curves)
    draw_digits(loss, accuracy, training)
    return figure


def draw_regression(axes: Any, curves: list[Curve]) -> None:
    """The optimizers' losses above the least one, both axes logarithmic."""
    ends = []
    for curve, colour in zip(curves, drawing.STRONG, strict=False):
        excess = np.maximum(curve.losses / curve.least - 1, TINY)[1:]
        taken = np.arange(1, len(excess) + 1)
        axes.plot(taken, excess, color=colour, **DOTS)
        steps, line = smooth(taken, np.log10(excess))
        axes.plot(steps, 10**line, color=colour, linewidth=1.8)
        inside = np.flatnonzero(10**line >= LOWEST)[-1]
        ends.append((steps[inside], 10 ** line[inside], curve.label, colour))
    axes.axhline(TOLERANCE, color=drawing.GREY, linestyle=(0, (4, 3)), linewidth=1)
    axes.text(1.06, 0.9 * TOLERANCE, "1 % above", va="top", color=drawing.GREY, fontsize=drawing.SMALL)
    bottom = 10 ** np.floor(np.log10(min(y for _, y, _, _ in ends)))
    axes.set(xscale="log", yscale="log", xlim=(1, len(curves[0].losses) - 1), ylim=(bottom, 2))
    axes.set(xlabel="step (one dot each; lines are smoothed)", ylabel="loss above the least, relative")
    drawing.plain(axes, "Linear regression on the diabetes data")
    drawing.name_ends(axes, ends)


def draw_digits(loss: Any, accuracy: Any, training: Training) -> None:
    """Training loss above, test accuracy below, over the same epochs."""
    colour = drawing.STRONG[0]
    batches = len(training.batch_losses) / len(training.losses)
    checked, shares = (np.array(values) for values in zip(*training.checks[1:], strict=True))
    taken = np.arange(1, len(training.batch_losses) + 1)
    loss.plot(taken / batches, training.batch_losses, color=colour, **DOTS)
    steps, line = smooth(taken, np.log10(np.maximum(training.batch_losses, TINY)))
    loss.plot(steps / batches, 10**line, color=colour, linewidth=1.8)
    loss.set(yscale="log", ylabel="loss of a minibatch")
    loss.tick_params(labelbottom=False)
    accuracy.plot(checked / batches, 100 * shares, color=colour, **DOTS)
    steps, line = smooth(checked, 100 * shares)
    accuracy.plot(steps / batches, line, color=colour, linewidth=1.8)
    accuracy.set(xlabel="epoch", ylabel="test accuracy, %")
    drawing.plain(loss, f"Two-layer network on the digits data, {training.optimizer}")
    drawing.plain(accuracy, "")
    end = len(training.losses)
    for axes in (loss, accuracy):
        axes.set_xlim(0, end)
    accuracy.set_ylim(
        5 * (100 * training.accuracies[0] // 5), 101
    )  # what the first epoch reached is where it gets interesting
    drawing.name_ends(loss, [(end, training.losses[-1], f"{training.losses[-1]:.2g}", colour)])
    drawing.name_ends(accuracy, [(end, 100 * training.accuracy, f"{100 * training.accuracy:.1f} %", colour)])


def smooth(steps: Any, values: Any) -> tuple[Any, Any]:
    """(positions, values there): a line fitted around each position, with Gaussian weights over the logarithm of the step."""
    known = np.log10(steps)
    where = np.linspace(known[0], known[-1], max(2, round(GRID * (known[-1] - known[0]))))
    reach = round(4 * SMOOTHING * GRID)
    away = np.arange(-reach, reach + 1) / (SMOOTHING * GRID)
    weights = np.exp(-0.5 * away**2)
    given = np.interp(where, known, values)

    def weighed(power: int, of: Any) -> Any:
        return np.convolve(of, (weights * away**power)[::-1])[reach : reach + len(where)]

    n, x, xx = (weighed(power, np.ones_like(where)) for power in (0, 1, 2))
    y, xy = weighed(0, given), weighed(1, given)
    return 10**where, (xx * y - x * xy) / (n * xx - x * x)
