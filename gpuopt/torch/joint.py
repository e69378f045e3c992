"""States that are one number for all parameters of an optimizer, in `self.state`: one tensor that every entry refers to, where
torch gives each parameter a copy. Called by the optimizer; the twin of `optim.joint`. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gpuopt.formats.dtypes import STORAGES
from gpuopt.rules.language import Rule
from gpuopt.torch.parameters import labelled
from gpuopt.torch.tensors import NAMES

Common = dict[tuple[object, ...], torch.Tensor]


def states(rule: Rule, groups: Sequence[Mapping[str, Any]], known: Mapping[Any, Any]) -> Common:
    """Those that there are, by place: of each the first in the order of the parameters. known: `self.state`."""
    found: Common = {}
    for state in (s for s in rule.states if s.shape == "global"):
        for _, p, *_ in labelled(groups):
            value = known[p].get(state.key) if p in known else None
            if isinstance(value, torch.Tensor):
                found.setdefault(place(state.name, p), value)
    return found


def of(rule: Rule, common: Common, p: torch.Tensor) -> dict[str, torch.Tensor]:
    """Those of one parameter, by the rule's names."""
    places = {s.name: place(s.name, p) for s in rule.states} if common else {}
    return {name: common[at] for name, at in places.items() if at in common}


def share(rule: Rule, groups: Sequence[Mapping[str, Any]], known: Mapping[Any, Any]) -> None:
    """Let all parameters have the same tensors."""
    common, keys = states(rule, groups, known), {s.name: s.key for s in rule.states}
    for _, p, *_ in labelled(groups) if common else ():
        mine = {keys[name]: value for name, value in of(rule, common, p).items()}
        if p in known:
            known[p].update({key: value for key, value in mine.items() if key in known[p]})


def place(name: str, p: torch.Tensor) -> tuple[object, ...]:
    """Parameters of a device and a compute type have a state of this name in common."""
    return name, p.device, STORAGES.get(NAMES.get(p.dtype, ""), STORAGES["float32"]).compute
