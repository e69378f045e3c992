"""Schedules: functions of the number of steps already taken, for any hyperparameter of any optimizer, and for torch's LambdaLR.

`gpuopt.AdamW(params, lr=schedules.warm_up(schedules.cosine(1e-3, 10_000), 500))`. Each maker returns a `Schedule`, which is
called with 0 before the first step, compares equal to one made alike, and can be copied and pickled. Behind its last step a
schedule keeps its last value. Knows no optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec

from gpuopt.errors import InputError, entry

P = ParamSpec("P")

__all__ = [
    "Plateau", "Schedule", "constant", "cosine", "exponential", "inverse_sqrt", "join", "linear", "one_cycle", "plateau",
    "polynomial", "rex", "step", "warm_restarts", "warm_up", "warmup_stable_decay",
]  # fmt: skip


class Schedule:
    """A function of the number of steps taken, made by one of the functions of this module."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self.name, self.arguments = name, arguments

    def __call__(self, step: int) -> float:
        return float(_FORMULAS[self.name](step, **self.arguments))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.name, repr(self.arguments)))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})"


_FORMULAS: dict[str, Callable[..., float]] = {}


def _schedule(formula: Callable[Concatenate[int, P], float]) -> Callable[P, Schedule]:
    """The maker of schedules with this formula of the step and of what the maker is given."""
    known = signature(formula)
    name = formula.__name__
    parameters = list(known.parameters.values())[1:]
    given = known.replace(parameters=parameters, return_annotation=Schedule)
    _FORMULAS[name] = formula

    @entry
    @wraps(formula)
    def make(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        bound = given.bind(*args, **kwargs)
        bound.apply_defaults()
        for key, value in bound.arguments.items():
            _check(name, key, value)
        made = Schedule(name, dict(bound.arguments))
        made(0)  # what does not go together says so now
        return made

    make.__signature__ = given  # type: ignore[attr-defined]
    return make


# Arguments that are whole numbers, and the least; those that are no numbers; all others are numbers.
COUNTS = {"steps": 1, "every": 1, "warmup": 0, "stable": 0, "decay": 0, "factor": 1, "patience": 0, "cooldown": 0}
OTHERS = ("schedule", "schedules", "at", "shape")
POWERS = ("rate", "power")  # numbers, 0 or more


def _check(name: str, key: str, value: Any) -> None:
    """Raise InputError naming the argument, what was found and what is expected."""
    label = f"schedules.{name}: {key} = {value!r}"
    if key in OTHERS or (key == "every" and isinstance(value, (list, tuple))):
        return
    if key in COUNTS:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < COUNTS[key]:
            raise InputError(f"{label}: expected a whole number, {COUNTS[key]} or more")
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{label}: expected a number")
    elif key in POWERS and value < 0:
        raise InputError(f"{label}: expected a number, 0 or more")


def _share(step: int, steps: int) -> float:
    """How much of a schedule is done, from 0 to 1."""
    return min(max(step, 0), steps) / steps


def _half_cosine(done: float) -> float:
    """From 1 to 0."""
    return (1 + math.cos(math.pi * done)) / 2


@_schedule
def constant(step: int, value: float) -> float:
    """Always `value`."""
    return value


@_schedule
def linear(step: int, value: float, steps: int, end: float = 0.0) -> float:
    """A straight line from `value` to `end` in `steps` steps."""
    return value + (end - value) * _share(step, steps)


@_schedule
def polynomial(step: int, value: float, steps: int, power: float = 2.0, end: float = 0.0) -> float:
    """From `value` to `end`: end + (value - end) (1 - t)^power, t the share of `steps`."""
    return float(end + (value - end) * (1 - _share(step, steps)) ** power)


@_schedule
def cosine(step: int, value: float, steps: int, end: float = 0.0) -> float:
    """Half a cosine from `value` to `end` in `steps` steps: SGDR, Loshchilov & Hutter 2017, without restarts."""
    return end + (value - end) * _half_cosine(_share(step, steps))


@_schedule
def exponential(step: int, value: float, rate: float, steps: int = 1, end: float = 0.0) -> float:
    """value rate^(step / steps): a factor of `rate` in every `steps` steps, smoothly, and never below `end`."""
    return float(max(value * rate ** (step / steps), end))


@_schedule
def inverse_sqrt(step: int, value: float, steps: int) -> float:
    """`value` for `steps` steps, then value sqrt(steps / step): Vaswani et al. 2017 behind their warm-up, T5."""
    return value * math.sqrt(steps / max(step, steps))


@_schedule
def step(step: int, value: float, every: int | Sequence[int], rate: float = 0.1) -> float:
    """`value`, times `rate` after `every` steps, or at each of these numbers of steps."""
    times = step // every if isinstance(every, int) else sum(step >= at for at in every)
    return float(value * rate**times)


@_schedule
def warm_restarts(step: int, value: float, steps: int, factor: int = 1, end: float = 0.0) -> float:
    """Half a cosine from `value` to `end` again and again, each `factor` times as long as the one before: SGDR."""
    while step >= steps and factor > 1:
        step, steps = step - steps, steps * factor
    return end + (value - end) * _half_cosine(step % steps / steps)


@_schedule
def one_cycle(
    step: int, value: float, steps: int, warm: float = 0.3, divisor: float = 25.0, final_divisor: float = 1e4
) -> float:
    """Smith & Topin 2018, as torch's OneCycleLR: half a cosine from value / divisor to `value` in the share `warm` of `steps`,
    then one down to the start divided by `final_divisor`, reached at step steps - 1.
    """
    if not 0 <= warm <= 1 or divisor <= 0 or final_divisor <= 0:
        raise InputError(f"schedules.one_cycle: warm = {warm!r}, divisor = {divisor!r}, final_divisor = {final_divisor!r}: "
                         "expected a share from 0 to 1 and divisors above 0")  # fmt: skip
    start, turn, last = value / divisor, warm * steps - 1, steps - 1
    if step <= turn and turn > 0:
        return value + (start - value) * _half_cosine(step / turn)
    done = min((step - turn) / (last - turn), 1.0) if last > turn else 1.0
    return start / final_divisor + (value - start / final_divisor) * _half_cosine(done)


# What is left of a decay when a share of it is done.
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": _half_cosine,
    "sqrt": lambda done: 1 - math.sqrt(done),
}


@_schedule
def warmup_stable_decay(
    step: int, value: float, warmup: int, stable: int, decay: int, shape: str = "sqrt", end: float = 0.0
) -> float:
    """Linear from 0 in `warmup` steps, `value` for `stable`, down to `end` in `decay`: Hu et al. 2024 (MiniCPM); `shape`
    "sqrt", 1 - sqrt(t), is that of Hägele et al. 2024; or "linear" or "cosine".
    """
    if shape not in SHAPES:
        raise InputError(f"schedules.warmup_stable_decay: shape = {shape!r}: expected one of {', '.join(SHAPES)}")
    if step < warmup:
        return value * step / warmup
    done = (step - warmup - stable) / decay if decay else 1.0
    return end + (value - end) * SHAPES[shape](min(max(done, 0.0), 1.0))


@_schedule
def rex(step: int, value: float, steps: int, end: float = 0.0) -> float:
    """Reflected exponential, Chen, Wolfe & Kyrillidis 2022: end + (value - end) (1 - t) / (1 - t / 2)."""
    done = _share(step, steps)
    return end + (value - end) * (1 - done) / (1 - done / 2)


@_schedule
def warm_up(step: int, schedule: Callable[[int], float], steps: int, start: float = 0.0) -> float:
    """A straight line from `start` to the first value of another schedule in `steps` steps, then that one."""
    if not callable(schedule):
        raise InputError(f"schedules.warm_up: schedule = {schedule!r}: expected a schedule or a function of the step")
    if step >= steps:
        return schedule(step - steps)
    return start + (schedule(0) - start) * step / steps


@_schedule
def join(step: int, schedules: Sequence[Callable[[int], float]], at: Sequence[int]) -> float:
    """Several schedules, one behind the other: the second begins, with its own step 0, at step at[0], and so on."""
    if len(schedules) != len(at) + 1 or list(at) != sorted(at) or not all(map(callable, schedules)):
        raise InputError(
            f"schedules.join: {len(schedules)} schedules at {list(at)}: expected one more than growing step numbers"
        )
    which = sum(step >= begin for begin in at)
    return schedules[which](step - (at[which - 1] if which else 0))


class Plateau:
    """`value` until a metric stops getting better, then less: as torch's ReduceLROnPlateau. Made by `plateau`."""

    def __init__(self, value: float, rate: float, patience: int, threshold: float, cooldown: int, end: float) -> None:
        self.value, self.rate, self.patience, self.threshold = value, rate, patience, threshold
        self.cooldown, self.end = cooldown, end
        self.best, self.bad, self.cooling = math.inf, 0, 0

    def __call__(self, step: int) -> float:
        return self.value

    def update(self, metric: float) -> None:
        """Tell it the newest value of what is to become small, once an epoch say."""
        if metric < self.best * (1 - self.threshold):
            self.best, self.bad = float(metric), 0
        else:
            self.bad += 1
        if self.cooling:
            self.cooling, self.bad = self.cooling - 1, 0
        if self.bad > self.patience:
            self.value = max(self.value * self.rate, self.end)
            self.cooling, self.bad = self.cooldown, 0


@entry
def plateau(
    value: float, rate: float = 0.1, patience: int = 10, threshold: float = 1e-4, cooldown: int = 0, end: float = 0.0
) -> Plateau:
    """`value`, times `rate` whenever `update(metric)` found no improvement by more than the share `threshold` in more than
    `patience` calls in a row, but not within `cooldown` calls after the last time, and never below `end`.
    """
    given = {
        "value": value,
        "rate": rate,
        "patience": patience,
        "threshold": threshold,
        "cooldown": cooldown,
        "end": end,
    }
    for key, number in given.items():
        _check("plateau", key, number)
    return Plateau(**given)  # type: ignore[arg-type]
