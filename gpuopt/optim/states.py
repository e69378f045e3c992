"""States of a parameter before its first step. Called by the engine, which keeps them; knows no kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuopt import arrays
from gpuopt.formats.dtypes import STORAGES, state_dtype
from gpuopt.optim.parameters import Parameter
from gpuopt.pairs import filled
from gpuopt.rules.declared import PARAMETER
from gpuopt.rules.language import Rule


def new_states(
    rule: Rule, formats: Mapping[str, str], group: Mapping[str, Any], p: Parameter, flags: Mapping[str, object]
) -> dict[str, Any]:
    """The states that a parameter needs under these flags and has not, by role name. formats: of states of the parameter's shape;
    those of other shapes are of the compute type.
    """
    kind, dtype, found = arrays.kind_of(p.array, p.label), p.view.dtype, {}
    for state in rule.active_states(flags):
        if state.name in p.states:
            continue
        if state.walked:
            array = kind.zeros(p.array, state_dtype(formats[state.name], dtype))
        else:
            array = kind.zeros(p.array, STORAGES[dtype].compute, rule.shape_of(state, p.view.shape))
        if state.init == PARAMETER:
            kind.assign(array, p.array)
        elif init := arrays.number(rule.first(state, group)):
            kind.assign(array, filled(init, array))
        found[state.name] = array
    return found
