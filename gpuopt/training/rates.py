"""The learning-rate range test: which rate an optimizer needs on this problem, from one short run. Smith 2017.

Called by users as `gpuopt.training.lr_range_test` and by `comparison`. Knows what is trained only through `problem`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuopt import drawing
from gpuopt.errors import InputError, entry
from gpuopt.optim.hyper import check_whole
from gpuopt.training.checks import increasing, real
from gpuopt.training.problem import ArrayProblem, ModelProblem, set_rate, trained

Array = np.ndarray[Any, Any]
FADING = 0.8  # of the running mean that says when the losses diverge
FIRST = 10  # losses before it is asked
LEAST_LOSSES = 5  # of which a rate can be advised
SHARE = 5  # of a trial run the last fifth counts


@dataclass(frozen=True)
class LearningRates:
    """What a range test found.

    rates: tried, ascending, float64 (n,). losses: at each rate before its step, (n,). smoothed: the same, smoothed, (n,).
    advised: the rate to train with. steepest, lowest: the rates where the smoothed loss falls fastest and is least.
    diverged: whether the test ended before the highest rate. trials: rate -> loss reached, of the trial runs that were asked for.
    """

    rates: Array
    losses: Array
    smoothed: Array
    advised: float
    steepest: float
    lowest: float
    diverged: bool
    trials: dict[float, float]

    def figure(self) -> Any:
        """Losses over rates, with the advised one marked; a matplotlib Figure."""
        made = drawing.figure(6.4, 3.8)
        axes = made.subplots()
        axes.plot(self.rates, self.losses, ".", color=drawing.STRONG[0], markersize=3, alpha=0.4)
        axes.plot(self.rates, self.smoothed, color=drawing.STRONG[0], linewidth=1.8)
        axes.axvline(self.advised, color=drawing.STRONG[1], linewidth=1.5)
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss before the step")
        finite = self.smoothed[np.isfinite(self.smoothed)]
        room = 0.1 * (finite.max() - finite.min()) or 1.0
        axes.set_ylim(finite.min() - room, finite.max() + 2 * room)
        drawing.plain(axes, f"Learning-rate range test: train with {self.advised:.2g}")
        return made

    def plot(self, path: str | Path) -> Path:
        """Save the figure as PNG and return its path."""
        return drawing.save(self.figure(), Path(path))


@entry
def lr_range_test(
    params: Any,
    loss: Callable[[Any, int], Any],
    optimizer: Any = "adamw",
    *,
    min_lr: float = 1e-6,
    max_lr: float = 10.0,
    num_steps: int = 100,
    divergence: float = 4.0,
    smoothing: float = 3.0,
    trials: int = 0,
    **options: Any,
) -> LearningRates:
    """Raise the rate geometrically from step to step, see where the loss falls and where it diverges, and advise a rate.

    params: arrays in any container that optimizers take, with `loss(params, step) -> (loss, gradients)`; or a torch.nn.Module, with
    `loss(model, step) -> tensor of one element`, whose backward() is called. step: 0, 1, 2 ..., to choose a batch by.
    optimizer: a name, or a class of gpuopt, gpuopt.torch or torch.optim. options: more of its arguments.
    min_lr, max_lr: the range (1e-6 to 10). num_steps: rates in it (100). divergence: the test ends where the running mean of the
    losses is this many times its least (4). smoothing: width of a Gaussian over the losses, in steps (3).
    trials: how many rates from half the steepest to the lowest are tried in a run of num_steps each, from the same start; the one
    with the least loss over its last fifth is advised (0: none).

    Advised without trials: the geometric mean of the rate where the smoothed loss falls fastest and the one where it is least,
    since the first is on the safe side and the second too high. Parameters, and a model's buffers, gradients and modes, are put
    back bit for bit.

    Source: Smith 2017, Cyclical learning rates for training neural networks. Raises InputError naming the argument.
    """
    low, high = increasing(("min_lr", "max_lr"), min_lr, max_lr)
    steps, tried = check_whole("num_steps", num_steps, 2 * LEAST_LOSSES), check_whole("trials", trials, 0)
    bound, width = real("divergence", divergence, "(1, inf)"), real("smoothing", smoothing)
    problem = trained(params, loss)
    with problem.restored():
        rates, losses = sweep(
            problem, problem.optimizer(optimizer, low, options), np.geomspace(low, high, steps), bound
        )
    if len(rates) < LEAST_LOSSES:
        raise InputError(f"min_lr = {low:g}: the loss diverges from there on, {losses.tolist()}: expected a lower one")
    smoothed = smooth(losses, width)
    at = int(smoothed.argmin())
    steepest, lowest = float(rates[np.gradient(smoothed)[: at + 1].argmin()]), float(rates[at])
    found = {
        float(rate): trial(problem, optimizer, float(rate), options, steps)
        for rate in (np.geomspace(steepest / 2, lowest, tried) if tried else ())
    }
    advised = min(found, key=lambda rate: found[rate]) if found else math.sqrt(steepest * lowest)
    return LearningRates(rates, losses, smoothed, advised, steepest, lowest, len(rates) < steps, found)


def sweep(problem: ArrayProblem | ModelProblem, opt: Any, rates: Array, divergence: float) -> tuple[Array, Array]:
    """(rates, losses before the step at each) until the losses diverge or are no numbers."""
    losses: list[float] = []
    mean, least = 0.0, math.inf
    with np.errstate(all="ignore"):
        for step, rate in enumerate(rates):
            value, gradients = problem.evaluate(step)
            if not math.isfinite(value):
                break
            losses.append(value)
            mean = FADING * mean + (1 - FADING) * value
            unbiased = mean / (1 - FADING ** (step + 1))
            least = min(least, unbiased)
            if step >= FIRST and unbiased > divergence * least > 0:
                break
            set_rate(opt, float(rate))
            problem.step(opt, gradients)
    return rates[: len(losses)], np.array(losses)


def smooth(losses: Array, width: float) -> Array:
    """Means with Gaussian weights of this width around each place; what exceeds four times the first loss is cut there."""
    cut = np.minimum(losses, losses[0] + 3 * abs(losses[0]))
    places = np.arange(len(losses))
    weights = np.exp(-0.5 * ((places[:, None] - places) / width) ** 2)
    return np.asarray(weights @ cut / weights.sum(1))


def trial(
    problem: ArrayProblem | ModelProblem,
    optimizer: Any,
    rate: float,
    options: dict[str, Any],
    steps: int,
    first: int = 0,
) -> float:
    """The mean loss over the last fifth of a run at one rate, from where the parameters are, which are put back; inf if it
    diverges. first: the number of the first step, which the loss is asked for.
    """
    losses: list[float] = []
    with problem.restored(), np.errstate(all="ignore"):
        opt = problem.optimizer(optimizer, rate, options)
        for step in range(first, first + steps):
            value, gradients = problem.evaluate(step)
            if not math.isfinite(value):
                return math.inf
            losses.append(value)
            problem.step(opt, gradients)
    return float(np.mean(losses[-max(1, steps // SHARE) :]))
