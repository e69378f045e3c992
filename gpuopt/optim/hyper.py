"""Names, defaults and allowed ranges of hyperparameters; `beta1, beta2 ...` of a rule are `betas` of its optimizer.

Called by the optimizer when groups are made and once a step to turn a group into the floats a rule sees.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gpuopt import arrays
from gpuopt.compiler.names import GIVEN, OPTION
from gpuopt.errors import DtypeError, InputError, KindError
from gpuopt.messages import abbreviated, suggestion
from gpuopt.optim import companions, decay, geometry
from gpuopt.rules.between import EVALUATE
from gpuopt.rules.definition import MATRIX, Definition
from gpuopt.rules.language import Rule, plain_flag

# name -> the allowed range; one that is not here takes any finite number
RANGES: dict[str, str] = {
    **dict.fromkeys(
        ("lr", "eps", "weight_decay", "momentum", "lr_decay", "initial_accumulator_value", "l1"), "[0, inf)"
    ),
    "betas": "[0, 1)",
    "clip_value": "[0, inf]",
    "max_grad_norm": "[0, inf]",
    "grad_scale": "(0, inf)",
    decay.PEAK: "(0, inf)",
    **geometry.RANGES,
    **companions.RANGES,
}
# Options that every group has besides the rule's own hyperparameters.
MODE = "train_mode"  # whether the parameters of a group are those to train; see `optim.between`
HEADS = "split_heads"  # equal parts of the rows of a matrix, each a matrix by itself
GROUP_KEYS = ("params", "param_names", "name", MODE)  # what a group has beside hyperparameters
GROUP_OPTIONS: dict[str, Any] = {
    "maximize": False,
    "l1": 0.0,
    "clip_value": None,
    "weight_decay": 0.0,  # where the rule has none of its own
    decay.MODE: None,
    decay.PEAK: None,
    **geometry.DEFAULTS,
    **companions.DEFAULTS,
}
# For which None is a value; bounds of which there is none then.
OPTIONAL = (*(name for name, value in GROUP_OPTIONS.items() if value is None), "max_grad_norm")
CHOICES: dict[str, tuple[object, ...]] = {decay.MODE: (None, *decay.MODES), **geometry.CHOICES, **companions.CHOICES}


def defaults_of(rule: Rule) -> dict[str, Any]:
    """Name -> default (inspect.Parameter.empty where required): the rule's own, then the options of every group."""
    own = own_defaults(rule)
    of_matrices: dict[str, Any] = {MATRIX: True} if rule.definition().multiplies and MATRIX in rule.tree.flags else {}
    of_matrices |= {HEADS: 1} if of_matrices and not any(s.multiplied for s in rule.states) else {}
    return own | {k: v for k, v in (GROUP_OPTIONS | of_matrices).items() if k not in own}


def own_defaults(rule: Rule) -> dict[str, Any]:
    """Name -> default of the rule's own hyperparameters, with its betas (and the like) as one tuple."""
    found: dict[str, Any] = {}
    made = rule.definition()
    together = {member: name for name, members in made.tuples.items() for member in members}
    for name, default in made.hyperparameters.items():
        if name in together:
            values = tuple(made.hyperparameters[member] for member in made.tuples[together[name]])
            found[together[name]] = inspect.Parameter.empty if inspect.Parameter.empty in values else values
        else:
            found[name] = default
    return found


def within(number: float, interval: str) -> bool:
    """Whether a number lies in an interval such as "[0, 1)"; NaN lies in none."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high)


def check_number(name: str, value: Any, label: str = "", ranges: Mapping[str, str] = RANGES) -> float:
    """The value as a float. Raises InputError naming it unless it is a number within the range of `name`; KindError for what is
    no number.
    """
    interval = ranges.get(name, "(-inf, inf)")
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
        raise error(f"{where}{name} = {abbreviated(value)}: expected a number in {interval}")
    return number


def whole(value: Any) -> int | None:
    """The value as Python's own whole number; None for what is none: text, fractions, flags, arrays of several."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def check_whole(name: str, value: Any, least: int, label: str = "") -> int:
    """The value as Python's own whole number. Raises InputError naming it unless it is one and at least `least`."""
    number = whole(value)
    if number is None or number < least:
        where = f"{label}: " if label else ""
        raise InputError(f"{where}{name} = {abbreviated(value)}: expected a whole number, {least} or more")
    return number


def check_value(name: str, value: Any, rule: Rule, made: Definition, default: Any, label: str) -> None:
    """Raise InputError unless this hyperparameter can take this value; made: what the rule means now."""
    if name == HEADS and name not in made.hyperparameters:
        check_whole(name, value, 1, label)
        return
    choices = CHOICES.get(name) or made.tree.flags.get(name, (False, True) if isinstance(default, bool) else ())
    if choices:
        if not any(type(plain_flag(value)) is type(c) and value == c for c in choices):
            raise InputError(f"{label}: {name} = {value!r}: expected one of {choices}")
    elif name in companions.PAIRS:
        if value is not None:
            companions.checked_pair(name, value, check_number, label)
    elif callable(value):
        return  # what it returns is looked at when it is asked
    elif name in made.tuples:
        checked_members(name, value, rule, made, label)
    elif not (name in OPTIONAL and value is None):
        check_number(name, value, label, RANGES | rule.ranges)
    on_gpu(value, f"{label}: {name}")


def intervals(name: str, rule: Rule, made: Definition) -> list[str]:
    """What each member of a tuple of hyperparameters may be."""
    ranges = RANGES | rule.ranges
    return [ranges.get(member, ranges.get(name, "(-inf, inf)")) for member in made.tuples[name]]


def checked_members(
    name: str, value: Any, rule: Rule, made: Definition, label: str = "", step: int | None = None
) -> tuple[Any, ...]:
    """The members of a tuple of hyperparameters. Raises InputError unless they are as many as the rule has, each a number that it
    can be, or None where that is its default. step: what schedules among them are asked for; those on a GPU are not read then.
    """
    each, found = intervals(name, rule, made), members(value)
    if found is None or len(found) != len(each):
        error = KindError if found is None else InputError
        where = " and ".join(dict.fromkeys(each))
        raise error(f"{label}{': ' if label else ''}{name} = {value!r}: expected {len(each)} numbers in {where}")
    asked_ = []
    for member, given, interval in zip(made.tuples[name], found, each, strict=True):
        if callable(given) and step is not None:
            given = given(step - 1)
        elif callable(given) or (step is not None and on_gpu(given)):
            asked_.append(given)
            continue
        none = given is None and made.hyperparameters[member] is None
        asked_.append(None if none else check_number(name, given, label, {name: interval}))
    return tuple(asked_)


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
    known, made = defaults_of(rule), rule.definition()
    for name, value in group.items():
        if name in GROUP_KEYS:
            continue
        if name not in known:
            names = [*known, *besides]
            raise InputError(
                f"{label}: unknown option {name!r} of {rule.title}; it takes {', '.join(names)}{suggestion(name, names)}"
            )
        if value is inspect.Parameter.empty:
            raise InputError(f"{label}: {rule.title} needs {name}{made.hint(name)}")
        check_value(name, value, rule, made, known[name], label)
    check_together({k: v for k, v in known.items() if v is not inspect.Parameter.empty} | dict(group), rule, label)


def check_together(group: Mapping[str, Any], rule: Rule, label: str) -> None:
    """Raise InputError if hyperparameters do not go with each other; nothing is asked before all of them are given."""
    own, together = rule.hyperparameters, rule.asked
    if group.get("l1") and "lr" not in own:
        raise InputError(
            f"{label}: l1 = {group['l1']}: its threshold is lr * l1, and {rule.title} has no lr: expected 0"
        )
    decay.check(group, rule.title, "weight_decay" in own, "lr" in own, label)
    geometry.check(group, rule.title, "lr" in own, label)
    companions.check(group, rule.states, EVALUATE in rule.between, rule.title, label)
    if not together <= group.keys() or any(changes(group[name]) for name in together):
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
    return name in GROUP_OPTIONS or name in rule.definition().tuples or name in rule.hyperparameters


def on_gpu(value: Any, label: str = "hyperparameter") -> bool:
    """Whether a hyperparameter is an array on a GPU. Raises DtypeError naming it unless it is one float32 or float64."""
    if value is None or isinstance(value, (int, float, str)):
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
    return math.inf if value is None else value if on_gpu(value) else float(value)


def asked(group: Mapping[str, Any], names: Sequence[str], step: int, rule: Rule) -> dict[str, Any]:
    """The group with what its schedules, under these names, say for the step-th step. Raises InputError for what cannot be used."""
    found, made = dict(group), rule.definition()
    for name in names:
        value = found[name](step - 1) if callable(found[name]) else found[name]
        if name in made.tuples:
            found[name] = checked_members(name, value, rule, made, step=step)
        else:
            found[name] = (
                None if name in OPTIONAL and value is None else check_number(name, value, "", RANGES | rule.ranges)
            )
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
    values: dict[str, Any] = {**geometry.NEUTRAL, **companions.NEUTRAL, GIVEN: group}
    made = rule.definition()
    tuples = made.tuples
    for name, value in group.items():
        if name in tuples:
            values |= {member: _number(v) for member, v in zip(tuples[name], members(value), strict=True)}
        elif hasattr(value, "__float__") or (arrays.is_array(value) and is_hyperparameter(name, rule)):
            values[name] = _number(value)  # some libraries make no number of an array on a GPU
        elif value is None and name in made.hyperparameters:
            values[name] = math.inf
    clip = group.get("clip_value")
    values["direction"] = -1.0 if group.get("maximize") else 1.0
    values["clip_value"] = math.inf if clip is None else float(clip)
    for name in companions.PAIRS:
        values |= {} if group.get(name) is None else companions.checked_pair(name, group[name], check_number)
    values.setdefault("l1", 0.0)
    values.setdefault("lr", 0.0)  # a rule without one has no use for it, and no l1
    mode = group.get(decay.MODE)
    values |= decay.scalars(mode, values)
    if mode:
        values["weight_decay"], values[GIVEN] = 0.0, {**group, "weight_decay": 0.0}
    return values


def switches(groups: Sequence[Mapping[str, Any]], scaled: bool, live: Collection[str] = ()) -> dict[str, bool]:
    """The compile-time flags of the options that cost no pass, on for all groups if any needs them; those that do are each group's
    own, see `geometry.flags`. scaled: whether gradients are multiplied by something whatever the groups say. live: hyperparameters
    whose derivative is asked for, which count even where they are 0.
    """
    modes = {group.get(decay.MODE) for group in groups}
    on = {
        "scaled": scaled or any(group.get("maximize") for group in groups),
        "clipped": any(group.get("clip_value") is not None for group in groups),
        "sparse": "l1" in live or any(group.get("l1") for group in groups),
    }
    for mode, (flag, _) in decay.MODES.items():
        on[flag] = on.get(flag, False) or mode in modes
    return {OPTION + name: bool(value) for name, value in on.items()}
