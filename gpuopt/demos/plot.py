"""The demo's picture: loss curves of the regression, and the digits classifier epoch by epoch. Called by the demo."""

from __future__ import annotations

from pathlib import Path

from gpuopt.demos.digits import Training
from gpuopt.demos.regression import TOLERANCE, Curve

FLOOR = 1e-9  # a loss that equals the least one must still appear on a logarithmic axis


def save(curves: list[Curve], training: Training, path: Path) -> Path:
    """Draw both problems side by side into the PNG `path`, needing no display, and return `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for curve in curves:
        left.plot((curve.losses / curve.least - 1).clip(FLOOR), label=curve.label)
    left.axhline(TOLERANCE, color="grey", linestyle=":", label="tolerance")
    left.set(title="Linear regression, diabetes", xlabel="step", ylabel="loss above the least, relative")
    left.set(xscale="symlog", yscale="log", xlim=(0, None))
    left.legend()

    epochs = range(1, len(training.losses) + 1)
    right.plot(epochs, training.losses, color="tab:blue", label="training loss")
    right.set(title=f"Two-layer network, digits, {training.optimizer}", xlabel="epoch", ylabel="cross-entropy")
    right.set_yscale("log")
    share = right.twinx()
    share.plot(epochs, training.accuracies, color="tab:orange", label="test accuracy")
    share.set_ylabel(f"test accuracy ({training.accuracy:.3f} at the end)")
    right.legend(handles=[*right.lines, *share.lines], loc="center right")
    figure.savefig(path, dpi=120)
    return path
