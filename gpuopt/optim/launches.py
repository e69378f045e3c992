"""Launches of parameters: which of them share a kernel, and the plan of those that do. Called by the engine; knows no backend."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gpuopt import arrays, linalg
from gpuopt.compiler.lower import program_for
from gpuopt.compiler.names import DRAW, OPTION
from gpuopt.compiler.parts import Coded, PerTensor, Product, Role, Signature
from gpuopt.compiler.program import Program
from gpuopt.draws import Draw
from gpuopt.errors import InputError, LayoutError
from gpuopt.formats import formats
from gpuopt.formats.dtypes import CODED as HALF_CODES
from gpuopt.formats.dtypes import STORAGES
from gpuopt.formats.language import PACKED
from gpuopt.launch import ferry
from gpuopt.launch.launcher import Launch, StepCounter
from gpuopt.launch.plan import Plan
from gpuopt.launch.products import Batch, Given, Products, matrices_of
from gpuopt.launch.shards import Communicator
from gpuopt.optim import beside
from gpuopt.optim.full_precision import bytes_of
from gpuopt.optim.hyper import HEADS
from gpuopt.optim.keeping import CODED, NARROW
from gpuopt.optim.parameters import Parameter
from gpuopt.rules.definition import MATRIX, Definition
from gpuopt.rules.language import Rule
from gpuopt.strides import in_c_order


def signature_of(rule: Rule, p: Parameter, flags: Mapping[str, object], sharded: bool, host: bool = False) -> Signature:
    """What distinguishes the kernel of a parameter that has a gradient, in a group with these flags. sharded: whether any of the
    optimizer's is a part of a tensor; host: whether states are in host memory.
    """
    assert p.grad_view is not None
    states = {
        s.name: arrays.describe(p.states[s.name], f"{s.key} of {p.label}").dtype for s in rule.active_states(flags)
    }
    matrix = not rule.definition().along or (len(p.view.shape) > 1 and not p.view.pairs)
    everything = {**flags, **beside.flags(p)}
    made = signature(rule, everything, p.view.dtype, p.grad_view.dtype, states, matrix)
    if sharded and matters(program_for(made)):
        made = replace(made, sharded=True)
    if host and any(part.early for part in program_for(made).parts):
        made = replace(made, travelling=True)
    return made if p.pick is None else replace(made, picked=True)


def matters(program: Program) -> bool:
    """Whether a step of a part of a tensor is another than one of a tensor: it takes random numbers, or looks at whole tensors."""
    return not program.lined and (bool(program.draws) or program.whole)


def signature(
    rule: Rule, flags: Mapping[str, object], dtype: str, grad_dtype: str, states: Mapping[str, str], matrix: bool = True
) -> Signature:
    """The signature of parameters and gradients of these dtypes, and of states, by name, in arrays of these; flags: the options'
    too.
    """
    compute, base, kept = STORAGES[dtype].compute, getattr(rule, "base", rule), getattr(rule, "kept", None)
    active, narrow = rule.active_states(flags), dtype == "float16"
    kept = kept if flags.get(NARROW) else None
    roles = [Role("p", HALF_CODES[dtype] if kept else dtype, True), Role("g", grad_dtype, False)]
    coded = [Coded("p", kept, ("p", *(s.name for s in rule.of_parameter)), narrow, True)] if kept else []  # type: ignore[attr-defined]
    there = {state.name for state in active}
    for name, of in getattr(rule, "codes", ()):
        planes = rule.of_states[name]  # type: ignore[attr-defined]
        if planes[0].name in there:
            coded.append(Coded(name, of, tuple(s.name for s in planes), False, not planes[0].readonly))
    cells: list[Role] = []
    vectors: list[Role] = []
    blocked: list[Role] = []
    kinds = {"parameter": roles, "scalar": cells, "global": cells, "blocks": blocked}
    packed = {plane for c in coded for plane, of in zip(c.planes, c.format.planes, strict=True) if of.dtype == PACKED}
    for state in (s for s in active if not s.hidden):
        found = states[state.name]
        rounded = found == "bfloat16" and state.walked and not state.readonly and not state.plane
        if (
            rounded
        ):  # what accumulates there would be lost by rounding to nearest: 0.001 of it is less than half of a step
            coded.append(Coded(state.name, formats()["stochastic"], (state.name,), False, True))
        storage = HALF_CODES[found] if rounded else found
        role = Role(state.name, storage, not state.readonly, state.shape, state.per, state.name in packed)
        kinds.get(state.shape, vectors).append(role)
    roles += beside.storages(flags, dtype)
    own = {name: value for name, value in flags.items() if name not in (NARROW, CODED, OPTION + HEADS)}
    return Signature(
        base,
        tuple(sorted(own.items())),
        tuple(roles),
        compute,
        tuple(cells),
        tuple(vectors),
        matrix,
        tuple(coded),
        tuple(blocked),
    )


def check_rows(p: Parameter, what: str) -> None:
    """Raise LayoutError unless the rows of a tensor lie one behind the other, as what is said of the optimizer needs."""
    if p.view.numel and not in_c_order(p.view.shape, p.view.strides):
        raise LayoutError(
            f"{p.label}: shape {p.view.shape} with strides {p.view.strides} (in elements): this optimizer {what} and "
            "expects them in C order, the last axis contiguous; make a contiguous copy"
        )


def check_whole(program: Program, parameters: Sequence[Parameter]) -> None:
    """Raise InputError where a step of parts of tensors would be another than one of tensors."""
    title, parts = program.signature.rule.title, [p for p in parameters if p.partial]
    for p in parts:
        if program.lined and p.view.numel:
            raise InputError(
                f"{p.label}: shape {p.view.shape}, a part of {p.whole}: {title} looks at rows, columns or products of "
                "matrices and expects each matrix whole on one process"
            )
        if program.picked:
            raise InputError(f"{p.label}: a part of a tensor: expected all rows, found some")
    if program.lined and parts and any(isinstance(s, PerTensor) and s.over_all for s in program.schedule):
        raise InputError(f"{title} has sums over all tensors and looks at rows or columns: expected it on one process")


def make_launches(
    rule: Rule, parameters: Sequence[Parameter], flags: Sequence[Mapping[str, object]], seed: int, host: bool
) -> list[Launch]:
    """Those of the parameters on one device: one for each signature, and, where states are in host memory, for each in each
    portion of these, and for each communicator of shards. flags: of each parameter.
    """
    sharded = any(p.shard is not None for p in parameters)
    hosted = {s.name: s.per for s in rule.states if s.large} if host else dict[str, int]()
    sizes = [bytes_on_host(p, hosted) for p in parameters]
    found: dict[tuple[int, Signature, Communicator | None], list[Parameter]] = {}
    for p, of, portion in zip(parameters, flags, ferry.cut(sizes, ferry.PORTION), strict=True):
        communicator = None if p.shard is None else p.shard.communicator
        found.setdefault((portion, signature_of(rule, p, of, sharded, host), communicator), []).append(p)
        heads: Any = of.get(OPTION + HEADS, 1)
        p.heads = operator.index(heads) if of.get(MATRIX) else 1
    return [
        make_launch(signature, of, seed, hosted, portion, communicator)
        for (portion, signature, communicator), of in found.items()
    ]


def bytes_on_host(p: Parameter, hosted: Mapping[str, int]) -> int:
    """Of these states of a parameter, each with how many elements share a number; of a part of a tensor, what an even part would
    have: portions are the same on all processes, which exchange sums in their order.
    """
    found = [(a, hosted[name]) for name, a in p.states.items() if name in hosted]
    if p.shard is None or p.shard.communicator is None:
        return sum(bytes_of(a) for a, _ in found)
    elements = -(-p.shard.numel // p.shard.communicator.size)
    return sum(STORAGES[arrays.describe(a, "state").dtype].itemsize * -(-elements // per) for a, per in found)


def make_launch(
    signature: Signature, parameters: Sequence[Parameter], seed: int, hosted: Collection[str] = (), portion: int = 0,
    communicator: Communicator | None = None,
) -> Launch:  # fmt: skip
    """The launch of tensors that share a signature; empty tensors have no place in it, but for empty parts of others: every process
    has as many. seed: of random numbers; hosted: the states that are in host memory; portion: with which others they travel.
    """
    every = {id(p.counter): p.counter for p in parameters}  # an empty tensor's count advances with the launch
    parameters = [p for p in parameters if p.view.numel or p.partial]
    program = program_for(signature)
    of = []
    for p in parameters:
        of.append({"p": p.array, "g": p.grad, "@given": p.given, **beside.by_role(p), **p.states})
    if program.picked and program.whole:
        raise InputError(
            f"{signature.rule.title} looks at whole tensors (sums, products, or one number for each): expected all rows, and no "
            "sparse gradient; found some rows"
        )
    needs = "keeps states in blocks of rows" if program.in_blocks else "sums along rows and columns"
    needs = "multiplies matrices" if program.products else "steps some rows" if program.picked else needs
    if program.lined or program.in_blocks or program.picked:
        for p in parameters:
            check_rows(p, needs)
    check_whole(program, parameters)
    batches = operands(program, parameters, of)
    each = (parameters, list(every.values()), of, seed, hosted, portion)
    made = launch_of(program, *each)
    made.private = {"parameters": parameters, "indices": np.array([p.index for p in parameters], np.intp)}
    if program.products:
        made.multiplied = [multiplied(signature, p, seed) for p in parameters]
        both = zip(parameters, made.multiplied, strict=True)
        given = [partial(taken, signature.definition, p.counter, known) for p, known in both]
        made.stages = [launch_of(stage, *each) for stage in program.stages]
        for k, stage in enumerate(made.stages):
            stage.stage, stage.products = k, []
            for product in stage.plan.program.products:
                stage.products.append(
                    Products(product, batched(product, signature, batches[product.operand], of, given))
                )
    for part in (made, *made.stages):  # GPUs run the stages in its place, and measure gradients by them
        part.communicator = communicator
    return made


def batched(
    product: Product, signature: Signature, batches: Sequence[tuple[Any, list[int]]], of: Sequence[dict[str, Any]],
    given: Sequence[Given],
) -> list[Batch]:  # fmt: skip
    """The batches of a product. batches: its operands by shapes, and whose; of: the arrays of each tensor."""
    alone = any(state.hidden and state.name in product.names for state in signature.rule.states)
    if alone:
        return [Batch(o[product.operand], [o[product.operand]], [find]) for o, find in zip(of, given, strict=True)]
    return [
        Batch(whole, [of[k][product.operand] for k in which], [given[k] for k in which]) for whole, which in batches
    ]


def multiplied(signature: Signature, p: Parameter, seed: int) -> dict[str, Any]:
    """What products take of a tensor, by name: states, as matrices, and its random numbers."""
    found: dict[str, Any] = {DRAW: Draw(seed, p.number)}
    rows, columns = signature.rule.matrix(p.view.shape)
    for state in (s for s in signature.rule.active_states(dict(signature.flags)) if s.multiplied):
        array, label = p.states[state.name], f"{state.key} of {p.label}"
        shapes = {"row": (rows, 1), "column": (1, columns)}
        found[state.name] = matrices_of(array, label, shapes.get(state.shape, array.shape[-2:]))
    return found


def taken(definition: Definition, counter: StepCounter, of: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """What these names stand for in the step that is made: states of matrices, None where a tensor has none, and scalars."""
    known = {**counter.values(), **of}
    if any(name in definition.prepared for name in names):
        known |= counter.prepared(definition)
    return [known.get(name) for name in names]


def check_counts(device: str, launches: Sequence[Launch]) -> None:
    """Raise InputError for products of matrices that depend on a step count which stays on this device."""
    for launch in launches if device != "cpu" else ():
        if launch.plan.program.counted:
            raise InputError(
                f"{launch.plan.program.signature.rule.title} multiplies matrices by the step count, which stays on the GPU where a "
                "step may be skipped or captured: expected no skip_nonfinite, capturable, found_inf, and neither grad_scale nor a "
                "rate on the GPU"
            )


def launch_of(
    program: Program,
    parameters: Sequence[Parameter],
    counters: Sequence[StepCounter],
    of: list[dict[str, Any]],
    seed: int,
    hosted: Collection[str],
    portion: int,
) -> Launch:
    """The launch of one program. of: the arrays of each tensor by their roles; hosted, portion: see make_launch."""
    signature, places = program.signature, {id(counter): k for k, counter in enumerate(counters)}
    names = [r.name for r in (*signature.roles, *signature.cells, *signature.vectors, *signature.blocked)]
    views = [[arrays.describe(o[n], n).address for n in names] for o in of]
    addresses = np.array(views, np.int64).reshape(len(parameters), len(names))
    rows = [places[id(p.counter)] for p in parameters]
    shapes = [matrix_of(program.signature.rule, p) for p in parameters]
    numels = [p.view.numel for p in parameters]
    by_rows = program.in_blocks or program.picked
    widths = [math.prod(p.view.shape[1:]) if by_rows else p.view.numel for p in parameters]
    shards, labels = [p.shard for p in parameters], [p.label for p in parameters]
    plan = Plan(program, numels, rows, addresses, [p.number for p in parameters], seed, shapes, widths, shards, labels)
    streamed = tuple(k for k, name in enumerate(names) if name in hosted)
    return Launch(plan, counters, of, dict(signature.flags), streamed, portion)


def matrix_of(rule: Rule, p: Parameter) -> tuple[int, int]:
    """Rows and columns of each matrix of a tensor. Raises InputError where its rows are not divided by its heads."""
    rows, columns = rule.matrix(p.whole)
    if rows % p.heads:
        raise InputError(f"{p.label}: shape {p.view.shape}: {HEADS} = {p.heads} does not divide its {rows} rows")
    return rows // p.heads, columns


def operands(
    program: Program, parameters: Sequence[Parameter], of: Sequence[dict[str, Any]]
) -> dict[str, list[tuple[Any, list[int]]]]:
    """Memory for what is multiplied in each product, by its operand's name, and for the result: equal matrices one behind the
    other, one array for each shape, and the places of their tensors. Every tensor is told of its part.
    """
    found: dict[tuple[int, int], list[int]] = {}
    for k, p in enumerate(parameters if program.products else ()):
        found.setdefault(matrix_of(program.signature.rule, p), []).append(k)
    results = {product.operand: product.result for product in program.products}
    batches: dict[str, list[tuple[Any, list[int]]]] = {operand: [] for operand in results}
    for (shape, members), operand in itertools.product(found.items(), results):
        like, counts = parameters[members[0]], [parameters[k].view.numel // math.prod(shape) for k in members]
        whole = sum(counts), *shape
        if like.view.device == "cpu":  # NumPy multiplies them, whoever they are of
            batch = np.zeros(whole, program.compute)
        else:
            batch = linalg.multipliable(
                arrays.kind_of(like.array, like.label).zeros(like.array, program.compute, whole)
            )
        batches[operand].append((batch, members))
        first = 0
        for k, count in zip(members, counts, strict=True):
            of[k] |= dict.fromkeys((operand, results[operand]), batch[first : first + count])
            first += count
    return batches
