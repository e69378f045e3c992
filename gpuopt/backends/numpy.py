"""The NumPy backend: the reference. The rule itself runs on arrays, in blocks that stay in the cache; nothing is compiled."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.backends.host import HostBackend
from gpuopt.backends.numpy_memory import Elements, elements_of, memories, of_whole, part, put_back
from gpuopt.compiler.lower import correction, gradient_sums
from gpuopt.compiler.names import OPTION
from gpuopt.compiler.program import Program
from gpuopt.compiler.tree import Assign, Expr
from gpuopt.formats import philox
from gpuopt.formats.dtypes import STORAGES, numpy_dtype
from gpuopt.launch import table as t
from gpuopt.launch.launcher import Launch
from gpuopt.launch.products import RUNS
from gpuopt.launch.sums import Joined, chunk_sums, column_sums, matrix_sums, row_sums, tensor_total
from gpuopt.native.memory import memory
from gpuopt.rules import options
from gpuopt.rules.fragments import Fragment
from gpuopt.rules.language import Rule
from gpuopt.rules.primitives import NON_LOCAL, PRIMITIVES, Number, compute_dtype, reductions
from gpuopt.rules.products import ON_MATRICES

BLOCK = 16384  # elements: five float32 temporaries of 64 KB stay in a 1 MB cache


def missing() -> str | None:
    """NumPy is a dependency of gpuopt and always there."""
    return None


class Backend(HostBackend):
    """See gpuopt.backends."""

    name = "numpy"

    @np.errstate(all="ignore")
    def update(self, launch: Launch, multiplier: float) -> None:
        """Run the options before the rule, the rule, and the options behind it, on each block of each tensor, or on the whole
        tensor where the rule asks for sums.
        """
        program = launch.plan.program
        scalars = self.scalars(launch, multiplier)
        for index, record in enumerate(launch.plan.table):
            count, step = int(record[t.NUMEL]), launch.counters[int(record[t.ROW])].step
            if no_matrices(program, record):
                continue
            flats = memories(program, record)
            width, whole = int(record[t.WIDTH]), max(1, count)
            by_rows = program.in_blocks or program.picked
            size = whole if program.whole else max(1, BLOCK // width) * width if by_rows else BLOCK
            for begin in range(
                0, max(count, program.sharded), size
            ):  # of a part that is empty, nothing is stepped once
                elements = elements_of(program, record, begin, min(size, count - begin))
                block = part(program, record, flats, begin, elements)
                known = launch.private["sums"][index] if program.whole else None
                x = run(program, block, scalars[int(record[t.ROW])], known, width)
                store(program, block, x, random_bits(program, record, step, elements), width)
                put_back(program, flats, block, width, elements)
            first = len(program.roles) + len(program.signature.cells)
            for k, vector in enumerate(program.signature.vectors):
                if vector.written:
                    vector_of(program, record, first, k)[...] = x[vector.name]
            for k, cell in enumerate(program.signature.cells):
                if cell.written and (record[t.OWNER] or not cell.shared):
                    cell_of(program, record, k)[...] = x[cell.name]

    def passes(self, launch: Launch, multiplier: float) -> Iterator[Joined]:
        """Run the rule as often as it asks for a sum over all tensors or processes that is not known yet; see HostBackend."""
        program, table = launch.plan.program, launch.plan.table
        scalars = self.scalars(launch, multiplier)
        multiplied = launch.multiplied or [{}] * len(table)
        launch.private["sums"] = every = [Sums(program, *each) for each in zip(table, multiplied, strict=True)]
        while True:
            asked = []
            for record, found in zip(table, every, strict=True):
                if no_matrices(program, record):
                    continue
                try:
                    run(program, memories(program, record), scalars[int(record[t.ROW])], found, int(record[t.WIDTH]))
                except Unknown as unknown:
                    asked.append((unknown.total, unknown.kind))
            if not asked:
                return
            totals = np.array([total for total, _ in asked]).reshape(-1, 1)
            yield Joined(totals, {0: asked[0][1]}, launch.plan, launch.communicator)
            for found, (value,) in zip(every, totals, strict=True):
                found.known.append(value)

    def parts(self, launch: Launch) -> Sequence[Launch]:
        """The launch itself: products of matrices are made where the rule asks for them."""
        return (launch,)

    def sums(self, launch: Launch) -> bool:
        return launch.plan.program.whole

    def scalars(self, launch: Launch, multiplier: float) -> list[tuple[dict[str, float], dict[str, float]]]:
        """Hyperparameters and what `prepare` derives from them, for each counter."""
        definition = launch.plan.program.signature.definition
        return [
            (
                {**counter.values(), "grad_multiplier": multiplier, "step": counter.step},
                dict(counter.prepared(definition)),
            )
            for counter in launch.counters
        ]

    def rehearse(self, launch: Launch, multiplier: float) -> None:
        """The rule on no elements: what it raises for these scalars, a division by zero say, it raises here."""
        program = launch.plan.program
        for values in self.scalars(launch, multiplier):
            every = (*program.roles, *program.blocked)
            nothing = {r.name: np.empty(0, np.uint8 if r.code else program.compute) for r in every}
            run(program, nothing, values, Nothing(program))

    def gradients(self, launch: Launch) -> Joined:
        """Squares and counts of what is not finite, of the gradient of every tensor: [tensors, 2]."""
        layout, cut = gradient_sums(launch.plan.program.roles[1].storage, launch.plan.program.compute)
        totals = []
        for record in launch.plan.table:
            values = memories(launch.plan.program, record)["g"].astype(layout.compute)
            with compute_dtype(np.dtype(layout.compute)), np.errstate(all="ignore"):
                terms = options.sums.function(values)
                totals.append(
                    [
                        of_tensor(np.asarray(x, layout.compute), kind, layout.lanes)
                        for x, kind in zip(terms, cut.sums, strict=True)
                    ]
                )
        made = np.array(totals).reshape(-1, len(cut.sums))
        return Joined(made, dict(enumerate(cut.sums)), launch.plan, launch.communicator)


def values_of(program: Program, block: Mapping[str, NDArray[Any]], width: int) -> dict[str, NDArray[Any]]:
    """The values that the rule works on, of these elements of all arrays, and their corrections. width: of a row."""
    planes = {name for coded in program.signature.coded for name in coded.planes}
    found = {name: array.astype(program.compute) for name, array in block.items() if name not in planes}
    shape = len(found["g"]) // width, width
    for coded in program.signature.coded:
        made = coded.format.decoded([block[name] for name in coded.planes], coded.half, shape)
        found |= zip((coded.name, correction(coded)), made, strict=False)
    return found


def store(
    program: Program, block: Mapping[str, NDArray[Any]], x: Mapping[str, Any], bits: Mapping[int, NDArray[np.uint32]],
    width: int,
) -> None:  # fmt: skip
    """What the rule has made of these elements goes into the arrays: x, by the names of values; bits: see `random_bits`."""
    count = len(block["g"])
    planes = {name for coded in program.signature.coded for name in coded.planes}
    made = {r.name: x[r.name] for r in program.roles if r.written and r.name not in planes}
    for place, coded in enumerate(program.signature.coded):
        if coded.written:
            whole = np.empty(count, np.float32)
            whole[...] = np.asarray(x[coded.name], np.float32).reshape(-1)
            codes = coded.format.encoded(whole, coded.half, bits.get(place), (count // width, width))
            made |= zip(coded.planes, codes, strict=True)
    for name, values in made.items():
        block[name][...] = np.asarray(values).reshape(-1).astype(block[name].dtype)


def no_matrices(program: Program, record: NDArray[np.int64]) -> bool:
    """Whether another process has the matrices of a tensor, which are whole on one."""
    return bool(program.lined and not record[t.NUMEL])


def cell_of(program: Program, record: NDArray[np.int64], k: int) -> NDArray[Any]:
    """The memory of a state of one number."""
    address, role = int(record[t.ADDRESS + len(program.roles) + k]), program.signature.cells[k]
    return memory(address, numpy_dtype(role.storage)).reshape(())


def vector_of(program: Program, record: NDArray[np.int64], first: int, k: int) -> NDArray[Any]:
    """The memory of a state of one number a row or column: [matrices, rows, 1] or [matrices, 1, columns]."""
    role, (rows, columns) = program.signature.vectors[k], record[-len(t.MATRIX) :][:2].tolist()
    shape = (-1, rows, 1) if role.shape == "row" else (-1, 1, columns)
    count = int(record[t.NUMEL]) // (columns if role.shape == "row" else rows)
    return memory(int(record[t.ADDRESS + first + k]), numpy_dtype(role.storage), count).reshape(shape)


def run(
    program: Program, block: Mapping[str, NDArray[Any]], scalars: tuple[Any, Any], found: Any, width: int = 1
) -> dict[str, Any]:
    """The rule with its options on these elements: the new values by the names of the roles. width: of a row, where states are kept
    in blocks.
    """
    compute = np.dtype(program.compute)
    shape = found.shape if found else (-1,)
    x: dict[str, Any] = {name: values.reshape(shape) for name, values in values_of(program, block, width).items()}
    x |= found.begin() if found else {}
    epsilon = STORAGES[program.roles[0].storage].epsilon
    with compute_dtype(compute, epsilon), np.errstate(all="ignore"), reductions(found):
        apply(program.signature.rule, dict(program.signature.flags), x, *scalars, program.corrected)
    return x


class Unknown(Exception):
    """A sum over all tensors or processes is not known yet; total: that of this tensor here; kind: of the sum."""

    def __init__(self, total: Any, kind: str) -> None:
        self.total, self.kind = total, kind


class Sums:
    """The reductions of one tensor in one step. multiplied: what products take of it, states that they write among it; cells and
    vectors: states of one number, and of one a row or column, as they were before anything was written; known: the sums over all
    tensors or processes in the order in which the rule asks for them.
    """

    def __init__(self, program: Program, record: NDArray[np.int64], multiplied: Mapping[str, Any]) -> None:
        self.program, self.given = program, multiplied
        self.asked = self.called = self.multiplied = 0
        self.products: list[NDArray[Any]] = []  # those that are made, in the order in which the rule asks for them
        rows, columns = record[-len(t.MATRIX) :][:2].tolist() if program.lined else (1, 1)
        self.sizes = {"numel": int(record[t.WHOLE]), "rows": rows, "columns": columns}
        self.shape = (-1, rows, columns) if program.lined else (-1,)
        names = [r.name for r in program.signature.vectors]
        first = len(program.roles) + len(program.signature.cells)
        self.vectors = {name: vector_of(program, record, first, k).copy() for k, name in enumerate(names)}
        self.known: list[float] = []
        self.cells = {r.name: Number(cell_of(program, record, k)) for k, r in enumerate(program.signature.cells)}

    def begin(self) -> dict[str, Any]:
        """The rule is run from its beginning."""
        self.asked = self.called = self.multiplied = 0
        return {**self.given, **self.cells, **self.vectors}

    def reduce(self, kind: str, x: Any) -> Any:
        if kind in self.sizes:
            return Number(self.sizes[kind])
        argument, self.called = self.program.calls[self.called], self.called + 1
        values = np.asarray(x, self.program.compute)
        if kind in ("row_sum", "column_sum"):
            if argument != "element":
                return matrix_sums(values.reshape(len(values), -1))
            return row_sums(values, self.program.lanes) if kind == "row_sum" else column_sums(values)
        total = of_tensor(values.reshape(-1), kind, self.program.lanes)
        if kind != "global_sum" and not self.program.sharded:
            return Number(total)
        self.asked += 1
        if self.asked > len(self.known):
            raise Unknown(total, kind)
        return Number(self.known[self.asked - 1])

    def product(self, kind: str, x: Any, *words: Any) -> Any:
        """A product of matrices, made once in a step."""
        self.multiplied += 1
        if self.multiplied > len(self.products):
            operand = np.empty(self.shape_of_all(), self.program.compute)
            operand[...] = x
            made = self.program.products[len(self.products)]
            named = zip_longest(made.names, words[len(made.words) :])
            found = [self.given.get(name, word) for name, word in named]
            self.products.append(RUNS[kind](operand, *made.words, *found))
        return self.products[self.multiplied - 1]

    def shape_of_all(self) -> tuple[int, int, int]:
        """Matrices, rows and columns of the tensor."""
        rows, columns = self.sizes["rows"], self.sizes["columns"]
        return self.sizes["numel"] // (rows * columns), rows, columns


class Nothing:
    """The reductions of no tensor: numbers that no arithmetic refuses."""

    def __init__(self, program: Program) -> None:
        self.shape = (-1, 1, 1) if program.lined else (-1,)
        self.cells: dict[str, Any] = {r.name: Number(1.0) for r in program.signature.cells}
        self.cells |= {r.name: np.ones((0, 1, 1), program.compute) for r in program.signature.vectors}

    def begin(self) -> dict[str, Any]:
        return self.cells

    def reduce(self, kind: str, x: Any) -> Any:
        return x if kind in ("row_sum", "column_sum") else Number(1.0)

    def product(self, kind: str, x: Any, *words: Any) -> Any:
        return x


def of_tensor(terms: NDArray[Any], kind: str, pack: int) -> float:
    """What all elements of a tensor give."""
    return tensor_total(chunk_sums(terms, kind, pack), kind)


def random_bits(
    program: Program, record: NDArray[np.int64], step: int, elements: Elements
) -> dict[int, NDArray[np.uint32]]:
    """Place among the coded values -> the random bits of these elements, of those that take some."""
    seed, tensor = int(record[t.SEED]), int(record[t.TENSOR])
    of = (seed, tensor, step)
    if program.sharded:
        elements = of_whole(record, elements)
    words = [
        philox.words(*of, stream, elements.start, len(elements), program.bits)
        if isinstance(elements, range)
        else philox.words_of(*of, stream, elements, program.bits)
        for stream in range(program.streams)
    ]
    return {k: words[draw.stream] >> np.uint32(draw.shift) for k, draw in program.draws.items()}


def apply(
    rule: Rule, flags: Mapping[str, Any], x: dict[str, Any], scalars: Mapping[str, Any], prepared: Mapping[str, Any],
    corrected: Sequence[Assign] = (),
) -> None:  # fmt: skip
    """The functions themselves, on arrays; `x` maps roles to values and is updated. corrected: what is done in the place of the
    rule's own statements, where formats correct the uses of states.
    """
    shared = {**scalars, **{n.removeprefix(OPTION): v for n, v in flags.items() if n.startswith(OPTION)}}
    around: dict[str, Any] = {**dict.fromkeys(options.variables()), "p": x["p"], "g": x["g"]}
    around |= {name.removeprefix(OPTION): array for name, array in x.items() if name.startswith(OPTION)}
    through(options.AHEAD, around, shared)
    x |= {"p": around["p"], "g": around["g"]}
    own = {**{s.name: None for s in rule.states}, **scalars, **prepared, **flags, **x}
    names = ("p", *(s.name for s in rule.states if not s.readonly))
    if corrected:
        found = evaluated(corrected, own)
        results: tuple[Any, ...] = tuple(found.get(name) for name in names)
    else:
        result = call(rule.function, own)
        results = result if isinstance(result, tuple) else (result,)
    x |= {n: value for n, value in zip(names, results, strict=True) if n in x}
    around["p"] = x["p"]
    through(options.BEHIND, around, shared)
    x |= {"p": around["p"]} | {n: around[n.removeprefix(OPTION)] for n in x if n.startswith(OPTION)}


def through(fragments: Sequence[Fragment], around: dict[str, Any], shared: Mapping[str, Any]) -> None:
    """Run fragments one after another on these variables, which become what they return."""
    for fragment in fragments:
        found = call(fragment.function, {**shared, **around})
        around |= zip(fragment.tree.outputs, found if isinstance(found, tuple) else (found,), strict=True)


def evaluated(statements: Sequence[Assign], values: Mapping[str, Any]) -> dict[str, Any]:
    """Statements of a rule one after another, as Python would run them."""
    known = dict(values)
    for s in statements:
        known[s.name] = value_of(s.expr, known)
    return known


def value_of(expr: Expr, known: Mapping[str, Any]) -> Any:
    """An expression as Python would compute it."""
    if expr.op == "name":
        return known[str(expr.args[0])]
    if expr.op == "const":
        return expr.args[0]
    given = [value_of(child, known) for child in expr.children()]
    return OPERATIONS[expr.op](*given, *(known[flag] for flag in expr.args if isinstance(flag, str)))


_OPERATORS = ("add", "sub", "mul", "neg", "lt", "le", "gt", "ge", "eq", "ne")
OPERATIONS: dict[str, Callable[..., Any]] = {name: getattr(operator, name) for name in _OPERATORS}
OPERATIONS |= {"div": operator.truediv, **PRIMITIVES, **NON_LOCAL, **ON_MATRICES}


def call(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """The function with each of its arguments by name."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return function(
        *(values[n] for n in names[: code.co_argcount]), **{n: values[n] for n in names[code.co_argcount :]}
    )
