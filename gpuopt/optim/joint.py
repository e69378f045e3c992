"""What the tensors of one optimizer have in common, where a rule looks at all of them: states of one number for all, and sums over
all. Called by the engine when launches are planned; knows no kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpuopt import arrays
from gpuopt.compiler.parts import PerTensor
from gpuopt.compiler.program import Program
from gpuopt.errors import InputError
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch.launcher import Launch
from gpuopt.launch.table import OWNER
from gpuopt.optim.parameters import Parameter
from gpuopt.rules.language import Rule

Before = Sequence[tuple[Parameter, Mapping[str, Any]]]


def share(rule: Rule, before: Before) -> None:
    """Let all parameters of a device and a compute type have one array of each state that is one number for all tensors: the
    first that there was `before`, if any. Those without a gradient too: their copies would be out of date when they get one.
    """
    names = {s.name for s in rule.states if s.shape == "global"}
    found: dict[tuple[str, str, str], Any] = {}
    for known in ([p for p, old in before if names & set(old)], [p for p, _ in before if names]):
        for p in known:
            places = {n: (n, p.view.device, STORAGES[p.view.dtype].compute) for n in names & set(p.states)}
            shared = {n: found.setdefault(place, in_compute_type(p.states[n], p)) for n, place in places.items()}
            p.states = p.states | shared


def in_compute_type(array: Any, p: Parameter) -> Any:
    """A state that is not of its parameter's shape in the compute type of that; the array itself where it is."""
    view, compute = arrays.describe(array, "state"), STORAGES[p.view.dtype].compute
    if view.dtype == compute:
        return array
    kind = arrays.kind_of(p.array, p.label)
    made = kind.zeros(p.array, compute, view.shape)
    kind.assign(made, array)
    return made


def give_owners(launches: Sequence[Launch]) -> None:
    """The last tensor of each compute type stores the states that all tensors have in common: where states travel in portions, all
    others have read them by then.
    """
    owners = {launch.plan.program.compute: launch for launch in launches if len(launch.plan.table)}
    for launch in owners.values():
        for each in (launch, *launch.stages):
            each.plan.table[-1, OWNER] = 1


def check(rule: Rule, programs: Sequence[Program], devices: Sequence[str]) -> None:
    """Raise InputError where sums over all tensors would not be the same sums for all of them."""
    asked = [[step.over_all for step in program.schedule if isinstance(step, PerTensor)] for program in programs]
    counts = {tuple(len(totals) for totals in each if totals) for each in asked} - {()}
    if len(devices) > 1 and (counts or any(r.shared for program in programs for r in program.signature.cells)):
        found = ", ".join(sorted(devices))
        raise InputError(f"{rule.title} looks at all tensors at once: expected them on one device, found {found}")
    if len(counts) > 1:
        raise InputError(
            f"groups of {rule.title} whose flags make other sums over all tensors: expected groups with the same of these flags, "
            "or an optimizer for each"
        )
