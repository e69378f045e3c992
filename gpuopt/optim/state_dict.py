"""`state_dict` and `load_state_dict` of an optimizer, in torch's form: plain dicts, arrays and numbers only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpuopt import arrays
from gpuopt.errors import InputError
from gpuopt.formats.dtypes import PARAMETER_DTYPES, numpy_dtype
from gpuopt.optim import coded
from gpuopt.optim.hyper import OPTIONAL, changes, check_group
from gpuopt.optim.keeping import every_plane
from gpuopt.optim.parameters import Parameter
from gpuopt.optim.states import assign
from gpuopt.pairs import alike
from gpuopt.rules.language import Rule

VERSION = 1


def save(rule: Rule, parameters: Sequence[Parameter], groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"state": {index: {"step": int, key: array}}, "param_groups": [{..., "params": [index]}], "rule", "version"}.

    Arrays are copies. A hyperparameter that is a function of the step is saved as None and stays the caller's on loading.
    """
    keys = {s.name: s.key for s in rule.states}
    state = {
        index: {
            "step": p.counter.step,
            **{keys[n]: arrays.kind_of(a, n).clone(a) for n, a in p.states.items()},
        }
        for index, p in enumerate(parameters)
        if p.states or p.counter.step
    }
    saved_groups = []
    for number, group in enumerate(groups):
        plain = {k: (None if changes(v) else v) for k, v in group.items() if k != "params"}
        saved_groups.append(plain | {"params": [k for k, p in enumerate(parameters) if p.group == number]})
    return {"state": state, "param_groups": saved_groups, "rule": rule.name, "version": VERSION}


def load(
    rule: Rule,
    parameters: Sequence[Parameter],
    groups: Sequence[Mapping[str, Any]],
    saved: Mapping[str, Any],
    allocate: Callable[[Parameter, Mapping[str, object], Mapping[str, Any]], dict[str, Any]],
    in_place: bool = False,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Check and allocate everything, then fill the parameters; returns the hyperparameters of each group. Raises InputError.

    in_place: into the arrays and step counts that are there, which CUDA graphs use; where none were saved, as for the first step.
    """
    saved = as_saved(saved)
    check_form(rule, saved)
    sizes = [len(g["params"]) for g in saved["param_groups"]]
    expected = [len(g["params"]) for g in groups]
    if sizes != expected:
        raise InputError(f"state_dict: groups of {sizes} tensors: expected {expected}")
    unknown = set(saved["state"]) - set(range(len(parameters)))
    if unknown:
        raise InputError(f"state_dict: state of tensor {min(unknown, key=str)!r}: expected 0 to {len(parameters) - 1}")
    values = []
    for index, (found, group) in enumerate(zip(saved["param_groups"], groups, strict=True)):
        kept = {k for k, v in found.items() if v is None and (k not in OPTIONAL or changes(group.get(k)))}  # schedules
        values.append({k: plain(v) for k, v in found.items() if k != "params" and k not in kept})
        check_group({**group, **values[-1]}, rule, f"state_dict param_groups[{index}]")
    made = []
    for index, p in enumerate(parameters):
        group = {**groups[p.group], **values[p.group]}
        flags = rule.shaped(rule.flags(group), p.whole, p.view.pairs, p.view.dtype)
        step, states = restored(rule, p, saved["state"].get(index), flags, group, allocate, seed)
        if in_place and p.states and not states:
            states = allocate(without_states(p), flags, group)
        made.append((p, step, states))
    for p, step, states in made:
        p.states = {name: written(p.states.get(name), new) for name, new in states.items()} if in_place else states
        word = p.counter.word if in_place else None
        p.counter = type(p.counter)(p.group, step, p.counter.environment, word=word)
    return values


def without_states(p: Parameter) -> Parameter:
    return Parameter(p.label, p.array, p.view, p.group, p.counter, shard=p.shard)


def written(old: Any, new: Any) -> Any:
    """The old array with what the new one holds, where it fits into it; else the new one."""
    if old is None:
        return new
    kind, view, like = arrays.kind_of(old, "state"), arrays.describe(old, "state"), arrays.describe(new, "state")
    if (view.shape, view.strides, view.dtype) != (like.shape, like.strides, like.dtype):
        return new
    kind.assign(old, new)
    return old


def as_saved(saved: Any) -> Any:
    """What came back from JSON or npz in the form in which it was saved: indices are whole numbers, lists of numbers and the
    two bytes that npz makes of bfloat16 are arrays, arrays of no dimension are what they hold.
    """
    saved = plain(saved)
    if not isinstance(saved, Mapping):
        return saved
    saved = {key: plain(value) for key, value in saved.items()}
    if isinstance(saved.get("state"), Mapping):
        saved["state"] = {index_of(index): states_of(plain(entry)) for index, entry in saved["state"].items()}
    return saved


def plain(value: Any) -> Any:
    """What an array of no dimension holds, or a number of NumPy is, in Python's own type; anything else as it is."""
    held = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim)
    return value.item() if held else value


def index_of(index: Any) -> Any:
    return int(index) if isinstance(index, str) and index.isdecimal() else index


def value_of(found: Any) -> Any:
    """A list or number as an array, in which whole numbers are floating ones; what is no such thing as it is."""
    try:
        made = np.asarray(found) if isinstance(found, (list, int, float)) else found
    except ValueError:  # lists of unequal lengths
        return found
    if getattr(made, "dtype", None) == np.dtype("V2"):
        return made.view(numpy_dtype("bfloat16"))
    return made.astype(np.float64) if made is not found and made.dtype.kind == "i" else made


def states_of(entry: Any) -> Any:
    """The step count and states of one parameter."""
    if not isinstance(entry, Mapping):
        return entry
    return {key: plain(value) if key == "step" else value_of(value) for key, value in entry.items()}


def check_form(rule: Rule, saved: Any) -> None:
    """Raise InputError for what is no state dict of this rule."""
    if not isinstance(saved, Mapping):
        raise InputError(f"state_dict: found {type(saved).__name__}: expected what state_dict() returned")
    if saved.get("rule") != rule.name or saved.get("version") != VERSION:
        found = f"{saved.get('rule')!r} version {saved.get('version')!r}"
        raise InputError(f"state_dict: found rule {found}: expected {rule.name!r} version {VERSION}")
    for key in ("param_groups", "state"):
        if key not in saved:
            raise InputError(f"state_dict: {key} is missing: expected what state_dict() returned")


def restored(
    rule: Rule,
    p: Parameter,
    entry: Mapping[str, Any] | None,
    flags: Mapping[str, object],
    group: Mapping[str, Any],
    allocate: Callable[[Parameter, Mapping[str, object], Mapping[str, Any]], dict[str, Any]],
    seed: int = 0,
) -> tuple[int, dict[str, Any]]:
    """The step count of one tensor and its states, new arrays in the memory order and the formats of this optimizer; of a part of a
    tensor, its part of the states that were saved of the whole. seed: of what is rounded at random where they come from another
    format.
    """
    if entry is None:
        return 0, {}
    names = {s.key: s.name for s in rule.states}
    planes = {s.key: s.plane for s in rule.states}
    shapes = {s.key: rule.shape_of(s, p.whole, group) for s in rule.states}
    step = entry.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise InputError(f"step of {p.label}: {step!r}: expected a whole number, 0 or more")
    dropped = every_plane() - set(names)  # of another format: the parameter is what it shows
    states = {key: value for key, value in entry.items() if key != "step" and key not in dropped}
    active = rule.active_states(flags)
    place = seed, p.number, step
    states = coded.converted(rule, states, active, p.whole, arrays.on_host, place)
    for key in states:
        if key not in names:
            raise InputError(f"state_dict of {p.label}: unknown state {key!r}: expected {', '.join(names)}")
        view = arrays.describe(states[key], f"{key} of {p.label}")
        if view.pairs and not p.view.pairs:
            raise InputError(f"{key} of {p.label}: complex: expected a real one, as its parameter is")
        if view.shape != shapes[key]:
            raise InputError(f"{key} of {p.label}: shape {view.shape}: expected {shapes[key]}")
        if view.dtype not in (planes.get(key), *PARAMETER_DTYPES):
            raise InputError(f"{key} of {p.label}: dtype {view.dtype}: expected a floating type")
    missing = coded.missing(rule, active, states) if states or step else None
    if missing:
        raise InputError(f"state_dict of {p.label}: {missing} is missing")
    if not states:
        return step, {}
    made = allocate(without_states(p), flags, group)
    for state in rule.states:
        if state.name in made and state.key in states and (state.cell or p.view.numel):
            value = part(states[state.key], p) if state.large else states[state.key]
            assign(made[state.name], alike(value, made[state.name]))
    return step, made


def part(value: Any, p: Parameter) -> Any:
    """The rows of a state of the whole tensor that belong to the part that a parameter is."""
    if p.shard is None:
        return value
    rows = p.view.shape[0] if p.view.shape else 1
    first = p.shard.first // max(1, math.prod(p.shard.shape[1:]))
    return (value if value.shape else value.reshape(1))[first : first + rows]
