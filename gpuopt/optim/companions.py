"""Options of groups that keep another parameter beside each, among its states: averaged weights, slow weights.

The optimizer itself has to be asked for them, since it makes the states; groups may have other numbers, or None. The fragments are
in `rules.companions`. Called by `optim.hyper` and `optim.keeping`; knows no kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from gpuopt.compiler.names import OPTION
from gpuopt.errors import InputError
from gpuopt.formats.dtypes import SAME
from gpuopt.messages import abbreviated
from gpuopt.optim import decay
from gpuopt.rules.declared import PARAMETER, State


class Option(NamedTuple):
    """state: its name; flag: of its fragment; scalars: what it says, a number or a pair of them; intervals: what these may be."""

    state: str
    flag: str
    scalars: tuple[str, ...]
    intervals: tuple[str, ...]
    against: tuple[str, ...] = ()


OPTIONS = {
    "ema_decay": Option("ema", "averaged", ("ema_decay",), ("[0, 1)",), against=("tail_ema",)),
    "tail_ema": Option("ema", "averaged", ("tail_start", "tail_length"), ("[0, inf)", "[1, inf)")),
    "lookahead": Option("slow", "pulled", ("lookahead_steps", "lookahead_pull"), ("[1, inf)", "[0, 1]")),
    "anchor": Option("start", "from_start", (), ()),
}
INITIAL = "initial"
CHOICES = {"anchor": (None, INITIAL)}  # arrays are for the whole optimizer, see `optim.beside`
READ = {"start": "anchor"}  # states that are only read, in the parameter's dtype -> their names in `state_dict`
DEFAULTS: dict[str, Any] = dict.fromkeys(OPTIONS)
RANGES = {name: option.intervals[0] for name, option in OPTIONS.items() if len(option.scalars) == 1}
PAIRS = {name: option for name, option in OPTIONS.items() if len(option.scalars) > 1}
WHOLE = ("tail_start", "lookahead_steps")  # numbers of steps
# What fragments are called with where an option is off.
NEUTRAL = {"ema_decay": 0.0, "tail_start": 0.0, "tail_length": 1.0, "lookahead_steps": 1.0, "lookahead_pull": 1.0}
FLAGS = {option.flag for option in OPTIONS.values()}
AVERAGE = OPTION + "ema"


def states_of(group: Mapping[str, Any]) -> tuple[str, ...]:
    """The states that these options need, by name."""
    return tuple(dict.fromkeys(option.state for name, option in OPTIONS.items() if group.get(name) is not None))


def state(name: str) -> State:
    """It begins as the parameter is. What changes is in the compute type: a step of an average is less than 16 bits resolve."""
    flag = next(option.flag for option in OPTIONS.values() if option.state == name)
    if name in READ:
        return State(OPTION + name, READ[name], OPTION + flag, PARAMETER, readonly=True, plane=SAME)
    return State(OPTION + name, name, OPTION + flag, PARAMETER, exact=True)


def flags(group: Mapping[str, Any]) -> dict[str, bool]:
    """The compile-time flags of a group."""
    found = {option.flag for name, option in OPTIONS.items() if group.get(name) is not None}
    return {OPTION + flag: flag in found for flag in FLAGS}


def checked_pair(name: str, value: Any, check: Any, label: str = "") -> dict[str, float]:
    """The numbers of a pair, by the scalars that they are. check: of one number, `hyper.check_number`. Raises InputError."""
    option, where = PAIRS[name], f"{label}: " if label else ""
    if not isinstance(value, (tuple, list)) or len(value) != len(option.scalars):
        wanted = ", ".join(scalar.rpartition("_")[2] for scalar in option.scalars)
        raise InputError(f"{where}{name} = {abbreviated(value)}: expected None or a pair ({wanted})")
    made = {}
    for scalar, number, interval in zip(option.scalars, value, option.intervals, strict=True):
        made[scalar] = check(name, number, label, {name: interval})
        if scalar in WHOLE and not made[scalar].is_integer():
            raise InputError(f"{where}{name} = {abbreviated(value)}: expected a whole number of steps")
    return made


def check(group: Mapping[str, Any], states: Collection[State], evaluated: bool, title: str, label: str) -> None:
    """Raise InputError where options contradict each other, or an option has no state here. states: those of the rule; evaluated:
    whether it evaluates an average of its own.
    """
    there = {s.name for s in states}
    for name, option in OPTIONS.items():
        if group.get(name) is None:
            continue
        for other in option.against:
            if group.get(other) is not None:
                raise InputError(
                    f"{label}: {name} = {group[name]!r} with {other} = {group[other]!r}: expected one average"
                )
        if name == "anchor" and group.get(decay.MODE) is None:
            raise InputError(
                f"{label}: anchor = {group[name]!r}: what it draws is a decay: expected a {decay.MODE} with it"
            )
        if evaluated and option.state == "ema":
            raise InputError(f"{label}: {name} = {group[name]!r}: {title} has an average of its own: expected None")
        if OPTION + option.state not in there:
            raise InputError(
                f"{label}: {name} = {group[name]!r}: its state is made where the optimizer itself is given {name}, of which groups "
                "may have other values, or None"
            )
