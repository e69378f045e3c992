"""What a checkpoint must hold before anything of it is taken, and the dtypes that its states are kept in.

Called by the optimizer around torch's own `load_state_dict`, which casts states to the parameter's dtype and takes whatever it is
given, to fail at the next step. Knows no engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from gpuopt import rules
from gpuopt.errors import InputError
from gpuopt.optim import coded
from gpuopt.optim.decay import PEAK
from gpuopt.optim.hyper import own_defaults
from gpuopt.optim.settings import Settings
from gpuopt.rules.language import Rule, State
from gpuopt.torch import shards
from gpuopt.torch.parameters import labelled, shaped, shown, state_dtypes
from gpuopt.torch.tensors import TYPES, storage


@cache
def everyones() -> frozenset[str]:
    """The names of the states of all optimizers."""
    return frozenset(state.key for name in rules.NAMES for state in rules.get(name).states)


def check_groups(rule: Rule, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError unless the groups of a checkpoint have the hyperparameters that steps need."""
    needed = [name for name, value in own_defaults(rule).items() if not isinstance(value, bool)]
    for index, group in enumerate(groups):
        missing = [name for name in needed if name not in group]
        if missing:
            raise InputError(
                f"state_dict: param_groups[{index}] has no {missing[0]!r}: expected a checkpoint of {rule.title}, "
                f"with {', '.join(needed)}"
            )


def with_peaks(groups: Sequence[Mapping[str, Any]], saved: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with the largest rates that the groups have here, where it tells none, as one of torch's own class."""
    peaks = [{PEAK: group[PEAK]} if PEAK in group else {} for group in groups]
    if not any(peaks) or len(peaks) != len(saved["param_groups"]):
        return saved
    return {**saved, "param_groups": [p | g for p, g in zip(peaks, saved["param_groups"], strict=True)]}


def check_origin(rule: Rule, entry: Mapping[str, Any], label: str) -> None:
    """Raise InputError if a parameter's state was made by another optimizer."""
    own = [state.key for state in rule.states]
    for key, value in entry.items():
        if value is not None and key in everyones() and key not in own:
            raise InputError(
                f"state of {label}: {key!r} belongs to another optimizer: expected {', '.join(own) or 'none'}, the states "
                f"of {rule.title}"
            )


def check_entry(
    rule: Rule, entry: Mapping[str, Any], needed: Sequence[State], group: Mapping[str, Any], counted: bool, p: torch.Tensor,
    label: str,
) -> None:  # fmt: skip
    """Raise InputError unless a parameter of this group can go on with this state: it has none, or all that are needed, each
    fitting it, and a step count if these are counted.
    """
    found = {state.key: entry[state.key] for state in rule.states if entry.get(state.key) is not None}
    if not found and not (counted and "step" in entry):
        return
    if counted:
        check_step(entry.get("step"), label)
    for state in needed:
        if counted and state.key not in found:
            raise InputError(f"state of {label}: {state.key!r} is missing, without which {rule.title} cannot go on")
    others = {s.key: rule.shape_of(s, tuple(p.shape), group) for s in rule.states if not s.walked}
    for key, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{key} of {label}: found {type(value).__name__}: expected a tensor")
        if key in others:
            same = tuple(value.shape) == others[key] or (not others[key] and value.numel() == 1)
            if not same or value.is_complex():
                what = f"real numbers of shape {others[key]}" if others[key] else "one real number"
                raise InputError(f"{key} of {label}: {value.dtype} {tuple(value.shape)}: expected {what}")
            continue
        pairs = p.is_complex() and not value.is_complex()
        shape = (*p.shape, 2) if pairs else tuple(p.shape)
        if tuple(value.shape) != shape:
            raise InputError(
                f"{key} of {label}: shape {tuple(value.shape)}: expected {tuple(p.shape)}, that of {label}"
            )
        if value.is_complex() and not p.is_complex():
            raise InputError(f"{key} of {label}: dtype {value.dtype}: expected real numbers, as {label}")


def check_step(step: Any, label: str) -> None:
    """Raise InputError unless this is a step count: a number or one in a tensor."""
    if step is None:
        raise InputError(f"state of {label}: 'step' is missing: expected the number of steps that were made")
    number = math.nan
    if not isinstance(step, bool) and getattr(step, "numel", lambda: 1)() == 1 and hasattr(step, "__float__"):
        number = float(step)
    if not 0 <= number < math.inf:
        raise InputError(f"step of {label}: {step!r}: expected a whole number, 0 or more")


def required(rule: Rule, group: Mapping[str, Any], p: torch.Tensor) -> tuple[State, ...]:
    """The states that a parameter cannot go on without under the options of a group: planes of a format begin anew."""
    return tuple(s for s in rule.active_states(shaped(rule, rule.flags(group), p)) if not s.plane)


def kept_as(
    rule: Rule, state: State, value: torch.Tensor, p: torch.Tensor, dtype: str, device: torch.device, group: Mapping[str, Any]
) -> torch.Tensor:  # fmt: skip
    """A loaded state in the dtype in which the parameter's states are kept, on this device; itself where it is already so. group:
    that it was loaded with.
    """
    if not state.walked:
        shape = shards.part_shape(p, rule.shape_of(state, tuple(p.shape), group))
        return value.detach().reshape(shape).to(device=device, dtype=TYPES[dtype])
    p = shards.local(p)
    like, kept = storage(p, dtype)
    value = value.detach() if value.requires_grad else value
    if value.is_complex() and not kept.is_complex:
        value = torch.view_as_real(value.resolve_conj())
    elif kept.is_complex and not value.is_complex():
        value = torch.view_as_complex(value.to(torch.float64).contiguous())
    assert value.shape == like.shape
    return value.to(device=device, dtype=kept)


def on_host(tensor: Any) -> Any:
    """A tensor, or array, on the host; of 16 bits as float32."""
    if not isinstance(tensor, torch.Tensor):
        return np.asarray(tensor)
    found = tensor.detach().cpu()
    return (found.float() if found.is_floating_point() else found).numpy()


def in_formats(rule: Rule, seed: int, groups: Sequence[Mapping[str, Any]], saved: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint whose states are kept as this optimizer keeps them, in codes or not, and cut as parameters are. What does not
    fit is left to be refused.
    """
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in saved["param_groups"]]:
        return saved
    indices = [i for group in saved["param_groups"] for i in group["params"]]
    state = dict(saved["state"])
    for index, (label, p, group, number) in zip(indices, labelled(groups), strict=True):
        entry = state.get(index) or {}
        if not isinstance(entry, Mapping) or not any(isinstance(t, torch.Tensor) for t in entry.values()):
            continue
        active = rule.active_states(shaped(rule, rule.flags({**groups[group], **saved["param_groups"][group]}), p))
        place = seed, number, int(entry.get("step", 0) or 0)
        parts = any(map(shards.is_part, entry.values()))  # else states are whole, and are cut as they are kept here
        entry = in_parts(rule, entry, p, label) if parts else entry
        shape, shard = tuple((shards.local(p) if parts else p).shape), shards.part(p, label) if parts else None
        made = coded.converted(rule, shards.locals_of(entry), active, shape, on_host, place, shard)
        if made.keys() != entry.keys():
            new = {k: as_tensor(v) for k, v in made.items() if k in _keys(rule)}
            entry = {**made, **(as_saved(rule, p, new, saved["param_groups"][group]) if parts else new)}
        state[index] = entry if parts else in_parts(rule, entry, p, label)
    return {**saved, "state": state}


def as_tensor(value: Any) -> torch.Tensor:
    """An array of NumPy as a tensor, or a tensor itself."""
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(value)


def in_parts(rule: Rule, entry: Mapping[str, Any], p: torch.Tensor, label: str) -> dict[str, Any]:
    """A parameter's saved states, of which this process has the part that it has of the parameter, where that is a DTensor. Raises
    InputError for states that are cut where the parameter is not.
    """
    numbers, found = {"step", *(s.key for s in rule.states if s.cell)}, dict(entry)
    for key, value in entry.items():
        if key in numbers or not isinstance(value, torch.Tensor):
            continue
        if shards.is_part(p) and value.ndim:
            made = shards.part_of(value, p, f"{key} of {label}")
            found[key] = shards.like(made, p, tuple(value.shape))
        elif shards.is_part(value):
            raise InputError(
                f"{key} of {label}: found {shards.described(value)}: expected a whole tensor, its full_tensor()"
            )
    return found


def as_saved(
    rule: Rule, p: torch.Tensor, of: Mapping[str, torch.Tensor], group: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """States by key, of this process, as `self.state` has them."""
    made = shown(rule, p, {s.name: of[s.key] for s in rule.states if s.key in of}, group)
    return {s.key: made[s.name] for s in rule.states if s.name in made}


def _keys(rule: Rule) -> set[str]:
    return {s.key for s in rule.states}


def without_large(rule: Rule, saved: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without the states that are to stay in host memory: torch would copy them all to the GPU first."""
    large = {s.key for s in rule.states if s.large}
    entries = {index: {k: v for k, v in of.items() if k not in large} for index, of in saved["state"].items()}
    return {**saved, "state": entries}


def entries(
    groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]
) -> Iterator[tuple[str, torch.Tensor, int, Mapping[str, Any]]]:
    """Label, parameter, group and saved state of every parameter."""
    indices = [i for group in saved["param_groups"] for i in group["params"]]
    for index, member in zip(indices, labelled(groups), strict=True):
        yield *member[:3], saved["state"].get(index) or {}


def restore(
    rule: Rule, settings: Settings, groups: Sequence[Mapping[str, Any]], known: Any, saved: Mapping[str, Any]
) -> None:
    """Torch casts loaded states to the parameter's dtype, which may be too narrow for them. known: `self.state`."""
    for _, p, index, entry in entries(groups, saved):
        dtypes = state_dtypes(rule, settings, p)
        for state in rule.states:
            if entry.get(state.key) is not None:
                host = settings.on_host and state.large
                device = torch.device("cpu") if host else p.device
                made = kept_as(
                    rule, state, shards.local(entry[state.key]), p, dtypes[state.name], device, groups[index]
                )
                made = made.pin_memory() if host and p.is_cuda else made
                known[p] |= as_saved(rule, p, {state.key: made}, groups[index])
