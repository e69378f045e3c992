"""Names, defaults and allowed ranges of hyperparameters; `beta1, beta2 ...` of a rule are `betas` of its optimizer.

Called by the optimizer when groups are made and once a step to turn a group into the floats a rule sees.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from gpuopt.errors import InputError
from gpuopt.rules.language import Rule

# name -> (lowest, highest, whether the highest is allowed)
RANGES: dict[str, tuple[float, float, bool]] = {
    "lr": (0, math.inf, False),
    "betas": (0, 1, False),
    "eps": (0, math.inf, False),
    "weight_decay": (0, math.inf, False),
    "momentum": (0, math.inf, False),
    "dampening": (-math.inf, math.inf, False),
    "alpha": (0, 1, True),
    "lr_decay": (0, math.inf, False),
    "initial_accumulator_value": (0, math.inf, False),
    "l1": (0, math.inf, False),
    "clip_value": (0, math.inf, True),
    "max_grad_norm": (0, math.inf, True),
    "grad_scale": (0, math.inf, False),
}
# Options that every group has besides the rule's own hyperparameters.
GROUP_OPTIONS: dict[str, Any] = {"maximize": False, "l1": 0.0, "clip_value": None}


def beta_names(rule: Rule) -> list[str]:
    """beta1, beta2, ... of a rule, in order."""
    return [n for n in rule.hyperparameters if n.startswith("beta") and n[4:].isdigit()]


def defaults_of(rule: Rule) -> dict[str, Any]:
    """Name -> default (inspect.Parameter.empty where required), with the rule's betas as one tuple, options last."""
    found: dict[str, Any] = {}
    betas = beta_names(rule)
    for name, default in rule.hyperparameters.items():
        if name in betas:
            found["betas"] = tuple(rule.hyperparameters[b] for b in betas)
        else:
            found[name] = default
    return found | {k: v for k, v in GROUP_OPTIONS.items() if k not in found}


def interval(name: str) -> str:
    """The allowed range in words."""
    low, high, closed = RANGES[name]
    return f"[{low:g}, {high:g}{']' if closed else ')'}"


def check_number(name: str, value: Any, label: str = "") -> None:
    """Raise InputError unless `value` is a number within the range of `name`."""
    low, high, closed = RANGES.get(name, (-math.inf, math.inf, True))
    where = f"{label}: " if label else ""
    if isinstance(value, bool) or (not isinstance(value, (int, float)) and not hasattr(value, "__float__")):
        raise InputError(f"{where}{name} = {value!r}: expected a number")
    number = float(value)
    if not (low <= number and (number < high or (closed and number <= high))):
        expected = interval(name) if name in RANGES else "a finite number"
        raise InputError(f"{where}{name} = {value!r}: expected a number in {expected}")


def check_group(group: Mapping[str, Any], rule: Rule, label: str) -> None:
    """Raise InputError naming group, value and allowed range for a hyperparameter that cannot be used."""
    known = defaults_of(rule)
    for name, value in group.items():
        if name in ("params", "param_names", "name"):
            continue
        if name not in known:
            raise InputError(f"{label}: unknown option {name!r} of {rule.title}; it takes {', '.join(known)}")
        if value is inspect.Parameter.empty:
            raise InputError(f"{label}: {rule.title} needs {name}")
        if name in rule.tree.flags or isinstance(known[name], bool):
            if value not in rule.tree.flags.get(name, (False, True)):
                raise InputError(f"{label}: {name} = {value!r}: expected one of {rule.tree.flags.get(name)}")
        elif name == "betas":
            if not isinstance(value, (tuple, list)) or len(value) != len(beta_names(rule)):
                raise InputError(f"{label}: betas = {value!r}: expected {len(beta_names(rule))} numbers in [0, 1)")
            for beta in value:
                check_number("betas", beta, label)
        elif not (name == "lr" and callable(value)) and not (name == "clip_value" and value is None):
            check_number(name, value, label)


def environment(group: Mapping[str, Any], step: int) -> dict[str, float]:
    """The floats a rule and its options see, for the step-th step (1 for the first)."""
    values: dict[str, float] = {}
    for name, value in group.items():
        if name == "betas":
            values |= {f"beta{k + 1}": float(b) for k, b in enumerate(value)}
        elif name == "lr":
            values["lr"] = float(value(step - 1) if callable(value) else value)
        elif isinstance(value, (int, float)) or hasattr(value, "__float__"):
            values[name] = float(value)
    clip = group.get("clip_value")
    values["direction"] = -1.0 if group.get("maximize") else 1.0
    values["clip_value"] = math.inf if clip is None else float(clip)
    values.setdefault("l1", 0.0)
    return values
