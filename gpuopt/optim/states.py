"""States of a parameter before its first step. Called by the engine, which keeps them; knows no kernel."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from gpuopt import arrays
from gpuopt.formats.dtypes import SAME, STORAGES, state_dtype
from gpuopt.optim import coded
from gpuopt.optim.parameters import Parameter
from gpuopt.pairs import filled
from gpuopt.rules.declared import IDENTITY, PARAMETER, State
from gpuopt.rules.language import Rule


def new_states(
    rule: Rule,
    formats: Mapping[str, str],
    group: Mapping[str, Any],
    p: Parameter,
    flags: Mapping[str, object],
    host: bool = False,
) -> dict[str, Any]:
    """The states that a parameter needs under these flags and has not, by role name. formats: the dtypes of states of the
    parameter's shape, as `kept_dtype` takes them. host: whether they are kept in host memory.
    """
    kind, dtype, found = arrays.kind_of(p.array, p.label), p.view.dtype, {}
    for state in rule.active_states(flags):
        if state.name in p.states:
            continue
        shape = None if state.walked else shape_of(rule, state, p, group)
        make = kind.hosted if host and state.large else kind.zeros
        array = make(p.array, kept_dtype(state, formats, dtype), shape)
        if state.init == PARAMETER:
            assign(array, p.array)
        elif state.init == IDENTITY:
            assign(array, np.broadcast_to(np.eye(array.shape[-1]), array.shape))
        elif init := arrays.number(rule.first(state, group)):
            assign(array, filled(init, array))
        found[state.name] = array
    for name, first in begins(rule, group, found):
        value = arrays.on_host(p.array) if first == PARAMETER else np.full(p.view.shape, first)
        for plane, made in coded.encoded(rule, name, value, (0, p.number, 0), p.shard).items():
            assign(found[plane], made)
    return found


def shape_of(rule: Rule, state: State, p: Parameter, group: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of a state beside a parameter; where another process has all rows of a matrix, of no such states."""
    if p.partial and not p.view.numel and not (state.cell or state.large):
        return 0, *rule.shape_of(state, p.whole, group)
    return rule.shape_of(state, p.view.shape, group)


def assign(state: Any, values: Any) -> None:
    """Bring values, or one, into a state, which may be in host memory and so of another library than its parameter."""
    arrays.kind_of(state, "state").assign(state, values)


def kept_dtype(state: State, formats: Mapping[str, str], dtype: str) -> str:
    """The dtype of a state's array beside a parameter of this one: a plane's own; of the parameter's shape, what `formats` says of
    it; else the compute type.
    """
    if state.plane:
        return dtype if state.plane == SAME else state.plane
    return state_dtype(formats[state.name], dtype) if state.walked else STORAGES[dtype].compute


def begins(rule: Rule, group: Mapping[str, Any], found: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Of the states in codes whose planes are among the found ones: what those are at first that are not 0."""
    for state in getattr(rule, "base", rule).states:
        own = getattr(rule, "of_states", {}).get(state.name, ())
        if own and own[0].name in found:
            first = state.init if state.init == PARAMETER else arrays.number(rule.first(state, group))
            if first:
                yield state.name, first
