"""What the engine is given of torch's parameters: a Parameter for each that has a gradient, with the states found in `self.state`.

Called by the optimizer when an engine is made. Parameters whose memory has gaps, or not the order that a rule needs, are stepped in
a dense copy. Parameters without a gradient are not looked at. Knows no kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gpuopt.errors import InputError
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch.launcher import StepCounter
from gpuopt.launch.shards import Shard
from gpuopt.optim import coded, geometry
from gpuopt.optim.beside import check_anchors, checked
from gpuopt.optim.keeping import uncoded
from gpuopt.optim.parameters import Parameter, parameter_view
from gpuopt.optim.settings import Settings
from gpuopt.optim.states import begins, kept_dtype
from gpuopt.pairs import filled
from gpuopt.rules.declared import IDENTITY, PARAMETER
from gpuopt.rules.language import Rule
from gpuopt.strides import is_dense
from gpuopt.torch import shards
from gpuopt.torch.tensors import DEVICES, NAMES, hosted, zeros

# What errors call a parameter, the parameter, its group, and its place among all.
Member = tuple[str, torch.Tensor, int, int]


def labelled(groups: Sequence[Mapping[str, Any]]) -> Iterator[Member]:
    """Every parameter, called by its name where it has one, else by its place."""
    number = 0
    for index, group in enumerate(groups):
        params = group["params"]
        names = group.get("param_names") or ()
        if len(names) != len(params):  # there are none, or someone changed one of the lists
            names = [f"param_groups[{index}]['params'][{k}]" for k in range(len(params))]
        for label, p in zip(names, params, strict=True):
            yield label, p, index, number
            number += 1


def any_has(groups: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Whether a flag is set in any of the groups."""
    return True in [bool(group.get(key)) for group in groups]


def state_dtypes(rule: Rule, settings: Settings, p: torch.Tensor) -> dict[str, str]:
    """State name -> the dtype in which a parameter's states are kept; those of float64 are float64."""
    dtype, formats = dtype_name(p), settings.formats(rule)
    return {s.name: kept_dtype(s, formats, dtype) for s in rule.states}


def dtype_name(p: torch.Tensor) -> str:
    """The name of a parameter's dtype, of its real and imaginary parts where it is complex."""
    name = NAMES.get(p.dtype, "")
    return name if name in STORAGES else "float32"


def shaped(rule: Rule, flags: Mapping[str, Any], p: torch.Tensor) -> dict[str, Any]:
    """A rule's flags for a parameter, by the shape of the whole tensor, so that all processes have the same."""
    found = rule.shaped(flags, tuple(p.shape), p.is_complex(), dtype_name(p))
    return found if blocks_whole(rule, p) else uncoded(found)


def blocks_whole(rule: Rule, p: torch.Tensor) -> bool:
    """Whether no process has only a part of a block of codes."""
    sizes = {s.per for planes in getattr(rule, "of_states", {}).values() for s in planes}
    return shards.blocks_whole(p, sorted(sizes))


def new_states(
    rule: Rule, settings: Settings, group: Mapping[str, Any], p: torch.Tensor, found: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """The states that a parameter needs and that are not found, by role name, as they are before its first step: of a part of a
    tensor those of the part. As in torch, both parts of a complex one begin alike.
    """
    dtypes, made = state_dtypes(rule, settings, p), {}
    flags, whole, p = shaped(rule, rule.flags(group), p), p, shards.local(p)
    for state in rule.active_states(flags):
        if state.name in found:
            continue
        shape = None if state.walked else shards.part_shape(whole, rule.shape_of(state, tuple(whole.shape), group))
        make = hosted if settings.on_host and state.large else zeros
        made[state.name] = make(p, dtypes[state.name], shape)
        if state.init == PARAMETER:
            made[state.name].copy_(p.detach())
        elif state.init == IDENTITY:
            set_identity(made[state.name], rule.shape_of(state, tuple(whole.shape), group), whole)
        elif init := float(rule.first(state, group)):
            made[state.name].fill_(filled(init, made[state.name]))
    for name, first in begins(rule, group, made):
        value = p.detach().float().cpu().numpy() if first == PARAMETER else np.full(tuple(p.shape), first)
        for plane, codes in coded.encoded(rule, name, value, (0, 0, 0), shards.part(whole, "a parameter")).items():
            made[plane].copy_(torch.from_numpy(codes))
    return made


def set_identity(state: torch.Tensor, shape: tuple[int, ...], p: torch.Tensor) -> None:
    """Square matrices of this shape become the identity, or what this process has of them as it has of a parameter."""
    if shards.whole(p):
        state.diagonal(dim1=-2, dim2=-1).fill_(1)
    elif state.numel():
        state.copy_(shards.part_of(torch.eye(shape[-1], device=state.device).expand(shape), p, "state"))


def shown(
    rule: Rule, p: torch.Tensor, states: Mapping[str, torch.Tensor], group: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """States by role name as `self.state` has them: of a part of a tensor, parts of states, but for single numbers. group: the
    parameter's.
    """
    if not shards.is_part(p):
        return dict(states)
    known, made = {s.name: s for s in rule.states}, {}
    for name, state in states.items():
        of, shape = known[name], tuple(p.shape)
        pairs = (2,) if state.ndim > p.ndim else ()
        shape = (*shape, *pairs) if of.walked else rule.shape_of(of, shape, group)
        made[name] = state if of.cell else shards.like(state, p, shape)
    return made


def show(
    rule: Rule, p: torch.Tensor, state: dict[str, Any], states: Mapping[str, torch.Tensor], group: Mapping[str, Any]
) -> None:
    """Bring states by role name into a parameter's entry of `self.state`, where they are not there yet."""
    keys, seen = {s.name: s.key for s in rule.states}, shards.locals_of(state)
    new = {name: t for name, t in states.items() if t is not seen.get(keys[name])}
    state.update({keys[name]: tensor for name, tensor in shown(rule, p, new, group).items()})


def local_states(rule: Rule, p: torch.Tensor, states: Mapping[str, torch.Tensor], label: str) -> dict[str, Any]:
    """The memory of these states by role name. Raises InputError where one is not cut as its parameter is."""
    known = {s.name: s for s in rule.states}
    for name, state in states.items() if shards.is_part(p) else ():
        if not known[name].cell and not shards.cut_alike(state, p):
            raise InputError(
                f"{known[name].key} of {label}: found {shards.described(state)}: expected {shards.described(p)}, as the "
                "parameter; load_state_dict() takes whole tensors too"
            )
    return shards.locals_of(states)


def in_rows(rule: Rule, groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the rows of tensors have to lie one behind the other: for the rule, formats of states, or options of a group."""
    return rule.definition().along or bool(getattr(rule, "codes", ())) or any(map(geometry.by_rows, groups))


def walked(p: torch.Tensor, label: str, along: bool = False) -> torch.Tensor:
    """The parameter itself, or a dense tensor to step in its place where its memory has gaps, or holds its values conjugated or
    negated, or its rows do not lie one behind the other. Raises InputError where elements share memory, as torch does.

    along: whether the rule looks at rows, which complex numbers and one axis have not.
    """
    if p.layout is not torch.strided or p.device.type not in DEVICES:
        return p  # to be refused in words
    rows = along and p.ndim > 1 and not p.is_complex()
    if not is_dense(tuple(p.shape), p.stride()):
        if overlaps_itself(p):
            raise InputError(f"{label}: shape {tuple(p.shape)} with strides {p.stride()} overlaps itself: use .clone()")
    elif not (p.is_conj() or p.is_neg() or (rows and not p.is_contiguous())):
        return p
    order = torch.contiguous_format if rows else torch.preserve_format
    return torch.empty_like(p, memory_format=order, requires_grad=False)


def overlaps_itself(p: torch.Tensor) -> bool:
    """Whether two elements lie in one place."""
    extent, apart = 0, True
    for stride, size in sorted((stride, size) for stride, size in zip(p.stride(), p.shape, strict=True) if size > 1):
        apart, extent = apart and stride > extent, extent + stride * (size - 1)
    if apart:
        return False
    grid = np.zeros(1, np.int64)
    for size, stride in zip(p.shape, p.stride(), strict=True):
        grid = np.unique(grid[:, None] + np.arange(size) * stride)
    return len(grid) < p.numel()


class Place:
    """Where a tensor lies, as NumPy takes it: nothing of the memory is read."""

    def __init__(self, p: torch.Tensor) -> None:
        strides = tuple(s * p.itemsize for s in p.stride())
        shape = tuple(p.shape)
        data = (p.data_ptr(), False)
        self.__array_interface__ = dict(shape=shape, strides=strides, data=data, typestr=f"|V{p.itemsize}", version=3)


def check_apart(members: Sequence[tuple[str, torch.Tensor, torch.Tensor]]) -> None:
    """Raise InputError if a parameter with gaps shares an element with another; (label, parameter, what is stepped for it).

    Those that are stepped where they lie are checked by the engine.
    """
    for k, (label, p, work) in enumerate(members):
        for j, (other, q, twin) in enumerate(members if p is not work else ()):
            if j == k or (j < k and q is not twin) or p.device != q.device or not p.numel() * q.numel():
                continue
            if np.shares_memory(np.asarray(Place(p)), np.asarray(Place(q))):
                raise InputError(
                    f"{other} overlaps {label} in memory: expected every parameter once, in memory of its own"
                )


def make_parameter(
    rule: Rule,
    p: torch.Tensor,
    work: torch.Tensor,
    label: str,
    counter: StepCounter,
    beside: Mapping[str, Any],
    states: dict[str, torch.Tensor],
    shard: Shard | None = None,
) -> Parameter:
    """What the engine steps for a parameter: work, its memory or a dense copy; beside: mask and bounds of its real numbers."""
    made = Parameter(label, work, parameter_view(work, label), counter.group, counter, {**beside}, states)
    made.shard, made.blocks = shard or shards.part(p, label), blocks_whole(rule, p)
    return made


class Beside:
    """The masks, bounds and anchors of an optimizer's parameters, given by these or by their names. Raises InputError for what is
    no parameter of it.
    """

    def __init__(self, given: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
        self.given = {name: of_parameters(name, given.get(name), groups) for name in ("mask", "bounds", "anchor")}
        for group in groups:
            check_anchors((self.given["anchor"].get(p) for p in group["params"]), group, "anchor")
        self.given["mask"] = {p: _of_parts(mask, p) for p, mask in self.given["mask"].items()}
        # The arrays that were made of them, and the kind of tensor that they were made for.
        self.made: dict[torch.Tensor, tuple[Any, dict[str, Any]]] = {}

    def of(self, rule: Rule, p: torch.Tensor, label: str, work: torch.Tensor | None = None) -> dict[str, Any]:
        """Those of a parameter, by name; work: what is stepped in its place. Raises InputError or DtypeError where one does not
        fit.
        """
        given = {name: of[p] for name, of in self.given.items() if of.get(p) is not None}
        if not given:
            return {}
        work = walked(shards.local(p).detach(), label) if work is None else work
        key = work.device, work.dtype, work.shape
        if p not in self.made or self.made[p][0] != key:
            counter = StepCounter(0, 0, lambda step: {})
            stepped = Parameter(label, work, parameter_view(work, label), 0, counter)
            if shards.is_part(p):
                given = {name: of_part(value, p, f"{name} of {label}") for name, value in given.items()}
            self.made[p] = key, checked(rule, stepped, given.get("mask"), given.get("bounds"), given.get("anchor"))
        return self.made[p][1]


def of_part(given: Any, p: torch.Tensor, label: str) -> Any:
    """What is given of a whole tensor, or as a DTensor, where the parameter is a part of one; numbers as they are."""
    if isinstance(given, (tuple, list)):
        return tuple(of_part(value, p, label) for value in given)
    shape = tuple(getattr(given, "shape", ()))
    if shape and shape[: p.ndim] != tuple(p.shape):
        raise InputError(f"{label}: shape {shape}: expected {tuple(p.shape)}, that of the whole parameter")
    return shards.part_of(given, p, label) if shape else given


def of_parameters(what: str, given: Any, groups: Sequence[Mapping[str, Any]]) -> dict[torch.Tensor, Any]:
    """The values by parameter; they may be given by name. Raises InputError for what is no parameter of the optimizer."""
    known = {p: p for group in groups for p in group["params"]}
    known |= {n: p for g in groups for n, p in zip(g.get("param_names", ()), g["params"], strict=False)}
    if given is not None and not isinstance(given, Mapping):
        raise InputError(
            f"{what}: found {type(given).__name__}: expected a dict with parameters or their names as keys"
        )
    for key in given or ():
        if not isinstance(key, (str, torch.Tensor)) or key not in known:
            found = f"a tensor of shape {tuple(key.shape)}" if isinstance(key, torch.Tensor) else repr(key)
            raise InputError(
                f"{what}: {found} is no parameter of this optimizer: expected its parameters as keys, or their names where it is "
                "made from named_parameters()"
            )
    return {known[key]: value for key, value in (given or {}).items()}


def _of_parts(mask: Any, p: torch.Tensor) -> Any:
    """A mask of complex numbers as one of their real and imaginary parts, which it may be already."""
    each = p.is_complex() and isinstance(mask, torch.Tensor) and mask.shape == p.shape
    return torch.stack((mask, mask), -1) if each else mask
