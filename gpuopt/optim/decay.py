"""Weight decay as an option of every rule: the modes, and the scalars by which the fragments of `rules.options` carry them out.

With a mode the rule itself sees a decay of 0. Called by `optim.hyper`; knows no rule and no kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuopt import arrays
from gpuopt.errors import InputError

MODE, PEAK = "weight_decay_mode", "lr_max"
# mode -> the compile-time flag of its fragment, and the scalar that is 1 for it
MODES = {
    "coupled": ("decayed", "decay_coupled"),  # g + weight_decay p, before the update
    "decoupled": ("decayed", "decay_shrinking"),  # p (1 - lr weight_decay), before it
    "lr_ratio": ("decayed", "decay_shrinking"),  # p (1 - lr / lr_max weight_decay), before it
    "corrected": ("decayed", "decay_corrected"),  # p (1 - lr^2 / lr_max weight_decay), before it
    "proximal": ("proximal", "decay_proximal"),  # p / (1 + lr weight_decay), after it
    "cautious": (
        "cautious",
        "decay_cautious",
    ),  # p - lr weight_decay p_old, where the update has not moved p away from 0
}
BY_PEAK = ("lr_ratio", "corrected")
NONE = {"decay_value": 0.0, "decay_peak": 1.0, **{scalar: 0.0 for _, scalar in MODES.values()}}


def scalars(mode: str | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """The scalars of a group in this mode, given the numbers of its hyperparameters, which may be arrays on a GPU."""
    if mode is None:
        return NONE
    return NONE | {MODES[mode][1]: 1.0} | {scalar: values[name] for name, scalar in names({MODE: mode}).items()}


def names(group: Mapping[str, Any]) -> dict[str, str]:
    """Hyperparameter -> the scalar that it is for the fragments, of those that the rule does not see in this group's mode."""
    mode = group.get(MODE)
    peak = {PEAK: "decay_peak"} if mode in BY_PEAK else {}
    return {} if mode is None else {"weight_decay": "decay_value", **peak}


def peak_of(group: Mapping[str, Any]) -> dict[str, float]:
    """lr_max of a new group that needs it and does not say it: its rate as it is given; nothing where that tells no number."""
    rate = group.get("lr")
    if group.get(MODE) not in BY_PEAK or group.get(PEAK) is not None or callable(rate):
        return {}
    try:
        number = arrays.number(rate)
    except (TypeError, ValueError):  # whoever checks the group says what is wrong with its rate
        return {}
    return {PEAK: number} if number > 0 else {}


def check(group: Mapping[str, Any], title: str, own: bool, rated: bool, label: str) -> None:
    """Raise InputError if the decay of a group cannot be carried out. own: whether the rule has one; rated: whether it has lr."""
    mode, decay = group.get(MODE), group.get("weight_decay")
    if mode is None:
        if not own and decay is not None and (callable(decay) or arrays.is_array(decay) or decay):
            raise InputError(
                f"{label}: weight_decay = {decay}: {title} has no decay of its own: expected weight_decay_mode = one of "
                f"{', '.join(MODES)} with it"
            )
        return
    if mode != "coupled" and not rated:
        raise InputError(f"{label}: {MODE} = {mode!r} decays by lr, and {title} has no lr: expected 'coupled'")
    if mode in BY_PEAK and group.get(PEAK) is None:
        raise InputError(
            f"{label}: {MODE} = {mode!r} needs {PEAK}, the largest rate: it is taken from lr only where that is a number above 0 "
            f"when the group is made"
        )
