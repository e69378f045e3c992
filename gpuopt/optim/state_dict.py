"""`state_dict` and `load_state_dict` of an optimizer, in torch's form: plain dicts, arrays and numbers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpuopt import arrays
from gpuopt.errors import InputError
from gpuopt.optim.hyper import check_group
from gpuopt.optim.slots import Slot
from gpuopt.rules.language import Rule

VERSION = 1


def save(rule: Rule, slots: Sequence[Slot], groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"state": {index: {"step": int, key: array}}, "param_groups": [{..., "params": [index]}], "rule", "version"}.

    Arrays are copies. A callable lr is saved as None and left as it is on loading.
    """
    keys = {s.name: s.key for s in rule.states}
    state = {
        index: {"step": slot.clock.step, **{keys[n]: arrays.kind_of(a, n).clone(a) for n, a in slot.states.items()}}
        for index, slot in enumerate(slots)
        if slot.states or slot.clock.step
    }
    saved_groups, start = [], 0
    for group in groups:
        plain = {k: (None if callable(v) else v) for k, v in group.items() if k != "params"}
        saved_groups.append(plain | {"params": list(range(start, start + len(group["params"])))})
        start += len(group["params"])
    return {"state": state, "param_groups": saved_groups, "rule": rule.name, "version": VERSION}


def load(
    rule: Rule,
    slots: Sequence[Slot],
    groups: Sequence[Mapping[str, Any]],
    saved: Mapping[str, Any],
    allocate: Callable[[Slot, Mapping[str, object]], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Check everything, then fill the slots; returns the hyperparameters of each group. Raises InputError."""
    if saved.get("rule") != rule.name or saved.get("version") != VERSION:
        found = f"{saved.get('rule')!r} version {saved.get('version')!r}"
        raise InputError(f"state_dict: found rule {found}: expected {rule.name!r} version {VERSION}")
    sizes = [len(g["params"]) for g in saved["param_groups"]]
    expected = [len(g["params"]) for g in groups]
    if sizes != expected:
        raise InputError(f"state_dict: groups of {sizes} tensors: expected {expected}")
    values = [{k: v for k, v in g.items() if k != "params" and v is not None} for g in saved["param_groups"]]
    for index, (value, group) in enumerate(zip(values, groups, strict=True)):
        check_group({**group, **value}, rule, f"state_dict param_groups[{index}]")
    plans = [(slot, *_checked(rule, slot, saved["state"].get(index, {}))) for index, slot in enumerate(slots)]
    for slot, step, states in plans:
        flags = rule.flags({**groups[slot.group], **values[slot.group]})
        slot.states = allocate(slot, flags) | states if states else {}
        slot.clock = type(slot.clock)(slot.group, step, slot.clock.environment)
    return values


def _checked(rule: Rule, slot: Slot, entry: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """The step count and the states of one tensor, as new arrays in its memory order."""
    names = {s.key: s.name for s in rule.states}
    kind = arrays.kind_of(slot.array, slot.label)
    states = {}
    for key, value in entry.items():
        if key == "step":
            continue
        if key not in names:
            raise InputError(f"state_dict of {slot.label}: unknown state {key!r}: expected {', '.join(names)}")
        view = arrays.describe(value, f"{key} of {slot.label}")
        if view.shape != slot.view.shape:
            raise InputError(f"{key} of {slot.label}: shape {view.shape}: expected {slot.view.shape}")
        states[names[key]] = kind.relayout(value, slot.array, None)
    step = entry.get("step", 0)
    if not isinstance(step, int) or step < 0:
        raise InputError(f"step of {slot.label}: {step!r}: expected a whole number, 0 or more")
    return step, states
