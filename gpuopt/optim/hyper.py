"""Names, defaults and allowed ranges of hyperparameters; `beta1, beta2 ...` of a rule are `betas` of its optimizer.

Called by the optimizer when groups are made and once a step to turn a group into the floats a rule sees.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gpuopt import arrays
from gpuopt.compiler.names import GIVEN
from gpuopt.errors import DtypeError, InputError, KindError
from gpuopt.messages import shown, suggestion
from gpuopt.rules.language import Rule, plain_flag

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
GROUP_KEYS = ("params", "param_names", "name")  # what a group has beside hyperparameters
GROUP_OPTIONS: dict[str, Any] = {"maximize": False, "l1": 0.0, "clip_value": None}


def defaults_of(rule: Rule) -> dict[str, Any]:
    """Name -> default (inspect.Parameter.empty where required), with the rule's betas as one tuple, options last."""
    found: dict[str, Any] = {}
    made = rule.definition()
    for name, default in made.hyperparameters.items():
        if name in made.betas:
            betas = tuple(made.hyperparameters[b] for b in made.betas)
            found["betas"] = inspect.Parameter.empty if inspect.Parameter.empty in betas else betas
        else:
            found[name] = default
    return found | {k: v for k, v in GROUP_OPTIONS.items() if k not in found}


def within(number: float, interval: str) -> bool:
    """Whether a number lies in an interval such as "[0, 1)"; NaN lies in none."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high)


def check_number(name: str, value: Any, label: str = "") -> float:
    """The value as a float. Raises InputError naming it unless it is a number within the range of `name`; KindError for what is
    no number.
    """
    interval = RANGES.get(name, "(-inf, inf)")
    where = f"{label}: " if label else ""
    error: type[InputError] = InputError
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        number = arrays.number(value)
    except TypeError:
        number, error = math.nan, KindError
    except (ValueError, RuntimeError, OverflowError):  # of an array that holds more than one number, of a huge one
        number = math.nan
    if not within(number, interval):
        raise error(f"{where}{name} = {shown(value)}: expected a number in {interval}")
    return number


def check_value(name: str, value: Any, rule: Rule, default: Any, label: str) -> None:
    """Raise InputError unless this hyperparameter can take this value."""
    choices = rule.tree.flags.get(name, (False, True) if isinstance(default, bool) else ())
    if choices:
        if not any(type(plain_flag(value)) is type(c) and value == c for c in choices):
            raise InputError(f"{label}: {name} = {value!r}: expected one of {choices}")
    elif callable(value):
        return  # what it returns is looked at when it is asked
    elif name == "betas":
        for beta in checked_betas(value, rule, label):
            if not callable(beta):
                check_number("betas", beta, label)
    elif not (name == "clip_value" and value is None):
        check_number(name, value, label)
    on_gpu(value, f"{label}: {name}")


def checked_betas(value: Any, rule: Rule, label: str) -> tuple[Any, ...]:
    """The members of `betas`, not looked at yet. Raises InputError unless there are as many as the rule has."""
    count, found = len(rule.definition().betas), members(value)
    if found is None or len(found) != count:
        error = KindError if found is None else InputError
        raise error(f"{label}{': ' if label else ''}betas = {value!r}: expected {count} numbers in [0, 1)")
    return tuple(found)


def members(value: Any, default: Any = None) -> Any:
    """The numbers of any sequence or array of them as a tuple; the default for what is none."""
    if type(value) is tuple:
        return value
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        return default
    if getattr(value, "ndim", 1) != 1:
        return default
    return tuple(value[k] for k in range(len(value)))


def check_group(group: Mapping[str, Any], rule: Rule, label: str, besides: Sequence[str] = ()) -> None:
    """Raise InputError naming group, value and allowed range for a hyperparameter that cannot be used; besides: other options that
    could have been meant there.
    """
    known = defaults_of(rule)
    for name, value in group.items():
        if name in GROUP_KEYS:
            continue
        if name not in known:
            names = [*known, *besides]
            raise InputError(
                f"{label}: unknown option {name!r} of {rule.title}; it takes {', '.join(names)}{suggestion(name, names)}"
            )
        if value is inspect.Parameter.empty:
            raise InputError(f"{label}: {rule.title} needs {name}{rule.definition().hint(name)}")
        check_value(name, value, rule, known[name], label)
    check_together({k: v for k, v in known.items() if v is not inspect.Parameter.empty} | dict(group), rule, label)


def check_together(group: Mapping[str, Any], rule: Rule, label: str) -> None:
    """Raise InputError if hyperparameters do not go with each other; nothing is asked before all of them are given."""
    if group.get("l1") and "lr" not in rule.hyperparameters:
        raise InputError(
            f"{label}: l1 = {group['l1']}: its threshold is lr * l1, and {rule.title} has no lr: expected 0"
        )
    if not rule.asked <= group.keys() or any(changes(group[name]) for name in rule.asked):
        return  # what follows a schedule is looked at when it has been asked
    complaint = rule.complaint(group)
    if complaint:
        raise InputError(f"{label}: {complaint}")


def changes(value: Any) -> bool:
    """Whether a hyperparameter is a function of the number of steps taken, or one of several that are."""
    return callable(value) or (isinstance(value, (tuple, list)) and any(map(callable, value)))


def scheduled(group: Mapping[str, Any], rule: Rule) -> list[str]:
    """The hyperparameters of a group that are functions of the number of steps taken."""
    return [name for name, value in group.items() if changes(value) and is_hyperparameter(name, rule)]


def is_hyperparameter(name: str, rule: Rule) -> bool:
    """Whether a rule or the options of every group know this name; a group may hold anything else beside."""
    return name in GROUP_OPTIONS or name == "betas" or name in rule.hyperparameters


def on_gpu(value: Any, label: str = "hyperparameter") -> bool:
    """Whether a hyperparameter is an array on a GPU. Raises DtypeError naming it unless it is one float32 or float64."""
    if isinstance(value, (int, float)):
        return False
    found = members(value)
    if found is not None:
        return True in [on_gpu(v, label) for v in found]  # each of them is checked
    if not arrays.is_array(value):
        return False
    view = arrays.describe(value, label)
    found = view.device.startswith("cuda")
    if found and (view.numel != 1 or view.dtype not in ("float32", "float64")):
        raise DtypeError(f"{label}: {view.dtype} {view.shape} on {view.device}: expected one float32 or float64")
    return found


def _number(value: Any) -> Any:
    return value if on_gpu(value) else float(value)


def asked(group: Mapping[str, Any], names: Sequence[str], step: int, rule: Rule) -> dict[str, Any]:
    """The group with what its schedules, under these names, say for the step-th step. Raises InputError for what cannot be used."""
    found = dict(group)
    for name in names:
        value = found[name](step - 1) if callable(found[name]) else found[name]
        if name == "betas":
            given = [b(step - 1) if callable(b) else b for b in checked_betas(value, rule, "")]
            found[name] = tuple(b if on_gpu(b) else check_number(name, b) for b in given)
        else:
            found[name] = None if name == "clip_value" and value is None else check_number(name, value)
    complaint = rule.complaint(found) if not rule.asked.isdisjoint(names) else None
    if complaint:
        raise InputError(complaint)
    return found


def environment(group: Mapping[str, Any], step: int, rule: Rule) -> dict[str, Any]:
    """The floats a rule and its options see, for the step-th step (1 for the first); arrays on a GPU, whose values kernels read
    there, stay what they are. The group itself is among them, for a `prepare` that tells 2 from 2.0 or reads a word.
    """
    names = scheduled(group, rule)
    group = asked(group, names, step, rule) if names else group
    values: dict[str, Any] = {GIVEN: group}
    for name, value in group.items():
        if name == "betas":
            values |= {beta: _number(b) for beta, b in zip(rule.definition().betas, members(value), strict=True)}
        elif hasattr(value, "__float__") or (arrays.is_array(value) and is_hyperparameter(name, rule)):
            values[name] = _number(value)  # some libraries make no number of an array on a GPU
    clip = group.get("clip_value")
    values["direction"] = -1.0 if group.get("maximize") else 1.0
    values["clip_value"] = math.inf if clip is None else float(clip)
    values.setdefault("l1", 0.0)
    values.setdefault("lr", 0.0)  # a rule without one has no use for it, and no l1
    return values
