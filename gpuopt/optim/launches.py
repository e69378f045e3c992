"""Launches of parameters: which of them share a kernel, and the plan of those that do. Called by the engine; knows no backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gpuopt import arrays
from gpuopt.compiler.lower import program_for
from gpuopt.compiler.parts import Role, Signature
from gpuopt.errors import LayoutError
from gpuopt.formats.dtypes import STORAGES, state_storage
from gpuopt.launch.launcher import Launch
from gpuopt.launch.plan import Plan
from gpuopt.optim import beside
from gpuopt.optim.parameters import Parameter
from gpuopt.rules.language import Rule


def signature_of(rule: Rule, p: Parameter, flags: Mapping[str, object]) -> Signature:
    """What distinguishes the kernel of a parameter that has a gradient, in a group with these flags."""
    assert p.grad_view is not None
    roles = [Role("p", p.view.dtype, True), Role("g", p.grad_view.dtype, False)]
    cells: list[Role] = []
    vectors: list[Role] = []
    kinds = {"parameter": roles, "scalar": cells, "global": cells}
    for state in rule.active_states(flags):
        view = arrays.describe(p.states[state.name], f"{state.key} of {p.label}")
        made = Role(state.name, state_storage(view.dtype), not state.readonly, state.shape)
        kinds.get(state.shape, vectors).append(made)
    everything = {**flags, **beside.flags(p)}
    roles += beside.storages(everything, p.view.dtype)
    compute = STORAGES[p.view.dtype].compute
    matrix = not rule.definition().along or (len(p.view.shape) > 1 and not p.view.pairs)
    return Signature(
        rule, tuple(sorted(everything.items())), tuple(roles), compute, tuple(cells), tuple(vectors), matrix
    )


def check_rows(p: Parameter) -> None:
    """Raise LayoutError unless the rows of a tensor lie one behind the other, as sums along them need."""
    expected, size = [], 1
    for length in reversed(p.view.shape):
        expected.append(size)
        size *= max(1, length)
    if arrays.canonical(p.view.shape, p.view.strides) != arrays.canonical(p.view.shape, tuple(expected[::-1])):
        raise LayoutError(
            f"{p.label}: shape {p.view.shape} with strides {p.view.strides} (in elements): this optimizer sums along rows and "
            "columns and expects them in C order, the last axis contiguous; make a contiguous copy"
        )


def make_launch(signature: Signature, parameters: Sequence[Parameter], seed: int) -> Launch:
    """The launch of tensors that share a signature; empty tensors have no place in it. seed: of random numbers."""
    every = {id(p.counter): p.counter for p in parameters}  # an empty tensor's count advances with the launch
    parameters = [p for p in parameters if p.view.numel]
    program = program_for(signature)
    counters = list(every)
    of = []
    for p in parameters:
        of.append({"p": p.array, "g": p.grad, "@given": p.given, **beside.by_role(p), **p.states})
    names = [r.name for r in (*signature.roles, *signature.cells, *signature.vectors)]
    views = [[arrays.describe(o[n], n).address for n in names] for o in of]
    addresses = np.array(views, np.int64).reshape(len(parameters), len(names))
    rows = [counters.index(id(p.counter)) for p in parameters]
    shapes = [signature.rule.matrix(p.view.shape) for p in parameters]
    if program.lined:
        for p in parameters:
            check_rows(p)
    numels = [p.view.numel for p in parameters]
    plan = Plan(program, numels, rows, addresses, [p.number for p in parameters], seed, shapes)
    return Launch(
        plan,
        list(every.values()),
        of,
        dict(signature.flags),
        {"parameters": parameters, "indices": np.array([p.index for p in parameters], np.intp)},
    )
