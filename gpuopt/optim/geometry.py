"""Options of groups that look at the lengths of gradients, updates and parameters: what each may be, the compile-time flags of its
fragment, and which of them contradict each other. The fragments are in `rules.geometry`.

Called by `optim.hyper`; knows no rule and no kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gpuopt import arrays
from gpuopt.compiler.names import OPTION
from gpuopt.errors import InputError

UNSCALED = "unscaled"


class Option(NamedTuple):
    """off: the value at which it is; flags: of its fragment, by the value; interval: of numbers; choices: of what is no number."""

    off: Any
    flags: tuple[str, ...]
    interval: str = ""
    choices: tuple[Any, ...] = ()
    rated: bool = True  # whether it needs a rate
    against: tuple[str, ...] = ()  # options that say otherwise


LENGTHS = ("update_norm", "clip_update_rms", "update_floor")
OPTIONS = {
    "adaptive_clip": Option(None, ("by_unit", "matrix"), "(0, inf)", rated=False),
    "cautious": Option(False, ("bent", "agreeing", "in_mean"), "", (False, True, UNSCALED), rated=False),
    "clip_update_rms": Option(None, ("bent", "measured", "clipped_update"), "(0, inf)"),
    "radial_brake": Option(None, ("bent", "measured", "braked"), "[0, 1]", rated=False),
    "update_floor": Option(None, ("bent", "measured", "floored"), "[0, inf)"),
    "update_norm": Option(
        None, ("bent", "measured", "relative"), "", (None, "relative"), against=("clip_update_rms", "update_floor")
    ),
    "row_update_floor": Option(None, ("bent", "floored_rows", "matrix"), "[0, inf)"),
    "hyperball": Option(
        False,
        ("bent", "measured", "on_sphere"),
        "",
        (False, True),
        against=(*LENGTHS, "row_update_floor", "weight_decay"),
    ),
}
DEFAULTS = {name: option.off for name, option in OPTIONS.items()}
RANGES = {name: option.interval for name, option in OPTIONS.items() if option.interval}
CHOICES = {name: option.choices for name, option in OPTIONS.items() if option.choices}
# What fragments are called with where an option is off.
NEUTRAL = dict.fromkeys(RANGES, 1.0)
FLAGS = {flag for option in OPTIONS.values() for flag in option.flags}


def on(group: Mapping[str, Any]) -> list[tuple[str, Option]]:
    """The options that a group has."""
    found = []
    for name, option in OPTIONS.items():
        value = group.get(name)
        if value is not None and value is not False:
            found.append((name, option))
    return found


def flags(group: Mapping[str, Any]) -> dict[str, bool]:
    """The compile-time flags of a group: each group has passes of its own, for those of others would cost it reads."""
    found = {flag for _, option in on(group) for flag in option.flags}
    if group.get("cautious") == UNSCALED:
        found -= {"in_mean"}
    return {OPTION + flag: flag in found for flag in FLAGS}


def by_rows(group: Mapping[str, Any]) -> bool:
    """Whether an option of the group looks at rows."""
    return any("matrix" in option.flags for _, option in on(group))


def check(group: Mapping[str, Any], title: str, rated: bool, label: str) -> None:
    """Raise InputError where options say something else of the same, or need a rate. rated: whether the rule has one."""
    for name, option in on(group):
        if option.rated and not rated:
            raise InputError(f"{label}: {name} = {group[name]!r} is of updates before lr, and {title} has no lr")
        for other in option.against:
            value = group.get(other)
            if value is not None and (callable(value) or arrays.is_array(value) or bool(value)):
                raise InputError(
                    f"{label}: {name} = {group[name]!r} with {other} = {value!r}: {REASONS.get(other, LENGTH)}: expected one of "
                    "the two"
                )


LENGTH = "both say how long an update is"
REASONS = {"weight_decay": "on a sphere there is nothing to decay to"}
