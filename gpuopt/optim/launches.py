"""Launches of slots: which of them share a kernel, and the plan of those that do. Called by the engine; knows no backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gpuopt import arrays
from gpuopt.compiler.lower import Role, Signature, program_for
from gpuopt.formats.dtypes import STORAGES, state_storage
from gpuopt.launch.launcher import Launch
from gpuopt.launch.plan import Plan
from gpuopt.optim.slots import Slot
from gpuopt.rules.language import Rule


def signature_of(rule: Rule, slot: Slot, flags: Mapping[str, object]) -> Signature:
    """What distinguishes the kernel of a slot that has a gradient, in a group with these flags."""
    assert slot.grad_view is not None
    roles = [Role("p", slot.view.dtype, True), Role("g", slot.grad_view.dtype, False)]
    for state in rule.active_states(flags):
        view = arrays.describe(slot.states[state.name], f"{state.key} of {slot.label}")
        roles.append(Role(state.name, state_storage(view.dtype), not state.readonly))
    if slot.mask is not None:
        roles.append(Role("@mask", "bool", False))
    everything = {**flags, "@masked": slot.mask is not None}
    return Signature(rule, tuple(sorted(everything.items())), tuple(roles), STORAGES[slot.view.dtype].compute)


def make_launch(signature: Signature, slots: Sequence[Slot], seed: int) -> Launch:
    """The launch of tensors that share a signature; empty tensors have no place in it. seed: of random numbers."""
    every = {id(s.clock): s.clock for s in slots}  # an empty tensor's count advances with the launch
    slots = [s for s in slots if s.view.numel]
    program = program_for(signature)
    clocks = list(every)
    of = []
    for s in slots:
        of.append({"p": s.array, "g": s.grad, "@given": s.given, "@mask": s.mask, **s.states})
    names = [r.name for r in signature.roles]
    views = [[arrays.describe(o[n], n).address for n in names] for o in of]
    addresses = np.array(views, np.int64).reshape(len(slots), len(names))
    rows = [clocks.index(id(s.clock)) for s in slots]
    plan = Plan(program, [s.view.numel for s in slots], rows, addresses, [s.number for s in slots], seed)
    return Launch(
        plan,
        list(every.values()),
        of,
        dict(signature.flags),
        {"slots": slots, "indices": np.array([s.index for s in slots], np.intp)},
    )
