"""Learning rates of `gpuopt.sklearn`: what `lr=` may be, and the peaks where nobody says one.

Called by `base.py`, which makes the optimizer, and by the training loop, which lets a named schedule change the rate. Knows no
network and no data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from gpuopt import schedules
from gpuopt.errors import InputError
from gpuopt.messages import unknown
from gpuopt.optim.hyper import check_number

DEFAULT = "cosine"  # what None stands for, in fit
PIECES = 50  # of a fit, in each of which a named schedule holds its rate: an optimizer works out its settings anew for a new one

# name -> schedule, from the peak and the number of steps of a fit
NAMES: dict[str, Callable[[float, int], Callable[[int], float]]] = {
    "constant": lambda peak, steps: schedules.constant(peak),
    "cosine": schedules.cosine,
    "linear": schedules.linear,
    "rex": schedules.rex,
    "one_cycle": schedules.one_cycle,
    "inverse_sqrt": lambda peak, steps: schedules.inverse_sqrt(peak, max(steps // 10, 1)),
    "warmup_cosine": lambda peak, steps: schedules.warm_up(
        schedules.cosine(peak, max(steps - steps // 20, 1)), steps // 20
    ),
    "warmup_stable_decay": lambda peak, steps: schedules.warmup_stable_decay(
        peak, steps // 20, steps - steps // 20 - steps // 5, max(steps // 5, 1)
    ),
}
# Peaks of steps that are about the rate long in each weight, for a network and for a linear model; with signs alone, less.
ADAPTIVE = ("adabelief", "adam", "adamatan2", "adamp", "adamw", "ademamix", "adopt", "came", "grams", "laprop", "madgrad", "nadam",
            "qhadam", "rmsprop", "stableadamw", "yogi", "adan", "adamax", "radam", "adammini", "lamb", "novograd", "mars",
            "adagrad", "schedulefreeadamw", "schedulefreeradam")  # fmt: skip
SIGNS = ("lion", "signsgd", "signum", "tiger", "focus", "sophiag")
PLAIN = ("sgd", "gd", "asgd", "schedulefreesgd")
UNDAMPED = ("dgd",)
PEAKS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(ADAPTIVE, (0.005, 0.02)),
    **dict.fromkeys(SIGNS, (0.001, 0.005)),
    **dict.fromkeys(PLAIN, (0.1, 0.05)),
    **dict.fromkeys(UNDAMPED, (0.001, 0.001)),
}


def check(lr: Any, options: dict[str, Any]) -> None:
    """Raise InputError unless `lr` is None, a number of 0 or more, a known name, or a function, and stands in one place only."""
    if isinstance(lr, str):
        if lr not in NAMES:
            raise InputError(f"lr: {unknown('schedule', lr, NAMES)}, a number, or a function of the step")
    elif lr is not None and not callable(lr):
        check_number("lr", lr)
    if lr is not None and not isinstance(lr, str) and "lr" in options:
        raise InputError(
            f"lr = {lr!r} and optimizer_options['lr'] = {options['lr']!r}: expected one of them, or lr the name of a schedule"
        )


def peak_of(optimizer: str, options: dict[str, Any], own: Any, linear: bool) -> float:
    """The peak of a named schedule: of the options, else of PEAKS, else the optimizer's own default. Raises InputError without."""
    peak = options.get("lr", PEAKS[optimizer][linear] if optimizer in PEAKS else own)
    if peak is inspect.Parameter.empty:
        raise InputError(f"optimizer = {optimizer!r} has no rate by default: expected lr, or optimizer_options['lr']")
    return check_number(
        "optimizer_options['lr']", peak, f"optimizer = {optimizer!r}", {"optimizer_options['lr']": "[0, inf)"}
    )


class Follower:
    """Sets the rate of an optimizer from a schedule, in pieces of `every` steps, counted from the first call on."""

    def __init__(self, schedule: Callable[[int], float], steps: int) -> None:
        self.schedule, self.every, self.step = schedule, max(steps // PIECES, 1), 0

    def __call__(self, optimizer: Any) -> None:
        """To be called before each step."""
        if self.step % self.every == 0:
            rate = self.schedule(self.step + (self.every - 1) // 2)
            for group in optimizer.param_groups:
                group["lr"] = rate
        self.step += 1
