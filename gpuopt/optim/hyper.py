"""Names, defaults and allowed ranges of hyperparameters; `beta1, beta2 ...` of a rule are `betas` of its optimizer.

Called by the optimizer when groups are made and once a step to turn a group into the floats a rule sees.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpuopt import arrays
from gpuopt.errors import DtypeError, InputError
from gpuopt.rules.language import Rule

# name -> the allowed range; one that is not here takes any finite number
RANGES = {
    **dict.fromkeys(
        ("lr", "eps", "weight_decay", "momentum", "lr_decay", "initial_accumulator_value", "l1"), "[0, inf)"
    ),
    "betas": "[0, 1)",
    "alpha": "[0, 1]",
    "clip_value": "[0, inf]",
    "max_grad_norm": "[0, inf]",
    "grad_scale": "(0, inf)",
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


def within(number: float, interval: str) -> bool:
    """Whether a number lies in an interval such as "[0, 1)"; NaN lies in none."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high)


def check_number(name: str, value: Any, label: str = "") -> float:
    """The value as a float. Raises InputError naming it unless it is a number within the range of `name`."""
    interval = RANGES.get(name, "(-inf, inf)")
    where = f"{label}: " if label else ""
    try:
        number = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, RuntimeError):  # torch's, of a tensor that holds more than one
        number = math.nan
    if not within(number, interval):
        raise InputError(f"{where}{name} = {value!r}: expected a number in {interval}")
    return number


def check_value(name: str, value: Any, rule: Rule, default: Any, label: str) -> None:
    """Raise InputError unless this hyperparameter can take this value."""
    choices = rule.tree.flags.get(name, (False, True) if isinstance(default, bool) else ())
    if choices:
        if not any(type(value) is type(c) and value == c for c in choices):
            raise InputError(f"{label}: {name} = {value!r}: expected one of {choices}")
    elif name == "betas":
        count, found = len(beta_names(rule)), members(value)
        if found is None or len(found) != count:
            raise InputError(f"{label}: betas = {value!r}: expected {count} numbers in [0, 1)")
        for beta in found:
            check_number("betas", beta, label)
    elif not (name == "lr" and callable(value)) and not (name == "clip_value" and value is None):
        check_number(name, value, label)
    on_gpu(value, f"{label}: {name}")


def members(value: Any, default: Any = None) -> Any:
    """The numbers of any sequence or array of them as a tuple; the default for what is none."""
    if type(value) is tuple:
        return value
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        return default
    if getattr(value, "ndim", 1) != 1:
        return default
    return tuple(value[k] for k in range(len(value)))


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
        check_value(name, value, rule, known[name], label)
    check_together({k: v for k, v in known.items() if v is not inspect.Parameter.empty} | dict(group), rule, label)


def check_together(group: Mapping[str, Any], rule: Rule, label: str) -> None:
    """Raise InputError if hyperparameters do not go with each other; nothing is asked before all of them are given."""
    if not rule.asked <= group.keys():
        unknown = sorted(rule.asked - defaults_of(rule).keys())
        if unknown:
            raise TypeError(
                f"require of {rule.name} asks for {unknown[0]!r}: expected one of {', '.join(defaults_of(rule))}"
            )
        return
    complaint = rule.complaint(group)
    if complaint:
        raise InputError(f"{label}: {complaint}")


def on_gpu(value: Any, label: str = "hyperparameter") -> bool:
    """Whether a hyperparameter is an array on a GPU. Raises DtypeError naming it unless it is one float32 or float64."""
    if isinstance(value, (int, float)):
        return False
    found = members(value)
    if found is not None:
        return True in [on_gpu(v, label) for v in found]  # each of them is checked
    if not hasattr(value, "shape") or isinstance(value, np.generic):
        return False
    view = arrays.describe(value, label)
    found = view.device.startswith("cuda")
    if found and (view.numel != 1 or view.dtype not in ("float32", "float64")):
        raise DtypeError(f"{label}: {view.dtype} {view.shape} on {view.device}: expected one float32 or float64")
    return found


def _number(value: Any) -> Any:
    return value if on_gpu(value) else float(value)


def environment(group: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The floats a rule and its options see, for the step-th step (1 for the first); arrays on a GPU, whose values kernels read
    there, stay what they are.
    """
    values: dict[str, Any] = {}
    for name, value in group.items():
        if name == "betas":
            values |= {f"beta{k + 1}": _number(b) for k, b in enumerate(members(value))}
        elif name == "lr":
            values["lr"] = check_number("lr", value(step - 1)) if callable(value) else _number(value)
        elif isinstance(value, (int, float)) or hasattr(value, "__float__"):
            values[name] = _number(value)
    clip = group.get("clip_value")
    values["direction"] = -1.0 if group.get("maximize") else 1.0
    values["clip_value"] = math.inf if clip is None else float(clip)
    values.setdefault("l1", 0.0)
    return values
