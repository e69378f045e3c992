"""What an emitter sees of a rule: a `Program` of straight-line passes, and the `Signature` that it was made for.

Made by `lower`, printed by `to_*`. Knows no target language and no rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from gpuopt.compiler.kinds import LINE_SUMS, Kind
from gpuopt.compiler.tree import Add, Assign, Expr
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch import table as t

if TYPE_CHECKING:
    from gpuopt.rules.definition import Definition
    from gpuopt.rules.language import Rule

WORD = 32  # random bits that one call of the generator gives an element
HALVES = (0, 16)  # the step count travels in two scalars, each exact in every compute type


@dataclass(frozen=True)
class Role:
    """One array per tensor that a kernel walks, or one number (`Signature.cells`): `storage` is a name in formats.dtypes."""

    name: str
    storage: str
    written: bool
    shape: str = "parameter"  # as of a State: "parameter", or of one number, or one a row or column

    @property
    def shared(self) -> bool:
        """Whether all tensors have it in common."""
        return self.shape == "global"


@dataclass(frozen=True)
class Signature:
    """What distinguishes one compiled kernel from another; hashable, the key of every kernel cache.

    Flags and roles of the options' fragments (`rules/options.py`) have an "@" in front: "@scaled", "@mask". cells: states of one
    number a tensor; vectors: of one a row or column; matrix: whether the tensors have rows and columns. The definition is what the
    rule means when the signature is made.
    """

    rule: Rule
    flags: tuple[tuple[str, object], ...]
    roles: tuple[Role, ...]
    compute: str
    cells: tuple[Role, ...] = ()
    vectors: tuple[Role, ...] = ()
    matrix: bool = True
    definition: Definition = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "definition", self.rule.definition())


@dataclass(frozen=True)
class Draw:
    """The random bits that storing a role takes: those from `shift` on of the element's word of `stream`."""

    stream: int
    shift: int


class Along(NamedTuple):
    """One number of each row, column or matrix."""

    kind: str
    expr: Expr


@dataclass(frozen=True)
class Pass:
    """One walk over the elements of a tensor, and what is computed once a tensor before it.

    derived: float64 statements on numbers of the tensor; values: those that the body uses, rounded to the compute type.
    body: element by element; a pass before the last only adds to `sums`, the totals from `first` on. stores: places of cells and
    of the values that they become, in the last pass. reads: the places of the roles that it reads.

    vectors: numbers of a row, column or matrix that the body uses; lines: the statements of such kinds that these and `kept` need,
    in the compute type; matrix_sums: of a number a row or column; kept: places of states of such shapes and what they become.
    """

    derived: tuple[Assign, ...]
    values: tuple[Expr, ...]
    body: tuple[Assign | Add, ...]
    reads: tuple[int, ...]
    first: int = 0
    sums: tuple[str, ...] = ()  # "tensor_sum" ...
    stores: tuple[tuple[int, int], ...] = ()
    along: bool = False  # its sums are along rows and columns
    vectors: tuple[Along, ...] = ()
    lines: tuple[tuple[str, Assign], ...] = ()
    matrix_sums: tuple[Along, ...] = ()
    kept: tuple[tuple[int, Expr], ...] = ()

    @property
    def lined(self) -> bool:
        """Whether something is computed once a row, column or matrix before it."""
        return bool(self.vectors or self.kept)

    @property
    def ahead(self) -> int:
        """Packs of each array that a lane of a pass that sums asks for before it measures the first: a half as many where it has a
        sum of each of its columns too.
        """
        return max(1, (4 if self.along else 8) // max(1, len(self.reads)))

    def batch(self, itemsize: int) -> int:
        """Rows of a block whose sums, one of each lane, fit into shared memory together: of all its rows, or each warp as many."""
        rows, size = t.BLOCK_ROWS, self.sums.count("row_sum") * (t.WARP + 1) * itemsize
        while rows * size > t.SHARED_BYTES and rows > t.CONSTANTS["WARPS"]:
            rows //= 2
        return rows


class Slot(NamedTuple):
    """An array with one number for each row, column or matrix of all tensors of a launch."""

    what: str
    kind: str


class Layout(NamedTuple):
    """What a pass that sums depends on besides itself: the arrays of a tensor, the compute type, and the scalars of a row."""

    roles: tuple[Role, ...]
    compute: str
    scalars: int
    # Of the numbers of rows, columns and matrices that a pass uses, kind and slot.
    slots: tuple[tuple[str, int], ...] = ()

    @property
    def lanes(self) -> int:
        """Elements that one GPU thread handles at once: 16 bytes of the narrowest floating type."""
        return 16 // min(STORAGES[r.storage].itemsize for r in self.roles if r.storage != "bool")


class PerMatrix(NamedTuple):
    """What is done once a matrix: sums of the blocks of a pass are joined, and the numbers of rows, columns and matrices that the
    next pass uses are computed. slot: of the first of these; states: those of one number a row or column, with their places in the
    table; along: the kinds of all sums along rows and columns.
    """

    joins: Pass | None
    derives: Pass | None
    compute: str
    scalars: int
    slot: int
    states: tuple[tuple[int, Role], ...]
    along: tuple[str, ...]

    def sums_along(self, kind: str) -> list[int]:
        """Which sums along rows (or columns) the next pass uses."""
        derives = self.derives
        if derives is None:
            return []
        exprs = [*(s.expr for _, s in derives.lines), *(v.expr for v in (*derives.vectors, *derives.matrix_sums))]
        exprs += [expr for _, expr in derives.kept]
        found = {int(p.args[0]) for e in exprs for p in e.parts() if p.op == "sum_along"}  # type: ignore[arg-type]
        return sorted(k for k in found if self.along[k] == f"{kind}_sum")

    def lines_before(self, kind: str) -> list[tuple[str, Assign]]:
        """The statements that sums over the rows (or columns) of a matrix need."""
        lines = self.derives.lines if self.derives else ()
        needed = {
            n for s in (self.derives.matrix_sums if self.derives else ()) if s.kind == kind for n in s.expr.names()
        }
        found: list[tuple[str, Assign]] = []
        for of, s in reversed(lines):
            if s.name in needed:
                needed |= s.expr.names()
                found.append((of, s))
        return found[::-1]

    @property
    def values(self) -> tuple[Expr, ...]:
        return self.derives.values if self.derives else ()

    @property
    def sums(self) -> tuple[tuple[int, str], ...]:
        """Which sums along rows and columns are joined."""
        return tuple(enumerate(self.joins.sums, self.joins.first)) if self.joins else ()


class PerTensor(NamedTuple):
    """What is done once a tensor: the sums of a pass are joined (None: of none), and the values of the next are computed (None: of
    none). totals: sums of all passes; wides: scalars of a row that stay float64; roles: arrays before the cells in the table.
    """

    joins: Pass | None
    derives: Pass | None
    compute: str
    totals: int
    wides: int = 0
    roles: int = 0
    cells: tuple[Role, ...] = ()

    @property
    def sums(self) -> tuple[str, ...]:
        return self.joins.sums if self.joins else ()

    @property
    def first(self) -> int:
        return self.joins.first if self.joins else 0

    @property
    def values(self) -> tuple[Expr, ...]:
        return self.derives.values if self.derives else ()

    @property
    def over_all(self) -> list[int]:
        """The totals that are joined over all tensors behind it."""
        return [self.first + k for k, kind in enumerate(self.sums) if kind == "global_sum"]


Step: TypeAlias = PerTensor | PerMatrix | Pass  # before the update


@dataclass(frozen=True)
class Program:
    """The passes of an update: the last one writes parameter and states, those before it are for sums. `row`: scalars that are
    rounded to the compute type, formulas of hyperparameters in float64; `wide`: those that stay float64, for numbers of a tensor.

    draws: role index -> Draw, for roles that are rounded at random; the last scalars of the row are then the step count's lower
    and upper 16 bits. calls: the kind of the argument of every sum, in the order in which Python makes them.
    """

    name: str
    signature: Signature
    passes: tuple[Pass, ...]
    row: tuple[Expr, ...]
    wide: tuple[Expr, ...] = ()
    calls: tuple[str, ...] = ()

    @cached_property
    def draws(self) -> dict[int, Draw]:
        return drawn(self.roles)

    @property
    def streams(self) -> int:
        """Words of random bits that an element takes."""
        return 1 + max((d.stream for d in self.draws.values()), default=-1)

    @property
    def update(self) -> Pass:
        return self.passes[-1]

    @property
    def cuts(self) -> tuple[Pass, ...]:
        """The passes before the update."""
        return self.passes[:-1]

    @property
    def totals(self) -> int:
        """Sums of all cuts, a tensor."""
        return sum(len(cut.sums) for cut in self.cuts if not cut.along)

    @property
    def local(self) -> bool:
        """Whether every element is updated from itself and the row alone."""
        return not self.cuts and not self.update.values and not self.update.lined

    @property
    def roles(self) -> tuple[Role, ...]:
        return self.signature.roles

    @property
    def addresses(self) -> int:
        """Arrays that a record of the table has the addresses of, and what it has behind them."""
        signature = self.signature
        return len(signature.roles) + len(signature.cells) + len(signature.vectors) + self.lined * len(t.MATRIX)

    @cached_property
    def lined(self) -> bool:
        """Whether the table says how many rows and columns there are: something is computed of them."""
        exprs = [e for each in self.passes for e in (*each.values, *(s.expr for s in each.derived))]
        counted = any(part.op in ("rows", "columns") for e in exprs for part in e.parts())
        return counted or any(each.lined or each.along for each in self.passes)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """What passes leave for later ones, one number a row, column or matrix: sums of blocks and whole sums, in float64 and in
        the compute type, then the numbers that each pass uses.
        """
        made = []
        for each in self.passes:
            for kind in each.sums if each.along else ():
                line = LINE_SUMS[kind][Kind.ELEMENT].name.lower()
                made += [Slot("blocks", line), Slot("sums", line)]
        for k, each in enumerate(self.passes):
            made += [Slot(f"pass {k}", vector.kind) for vector in each.vectors]
        return tuple(made)

    @property
    def compute(self) -> str:
        return self.signature.compute

    @property
    def layout(self) -> Layout:
        return Layout(self.roles, self.compute, len(self.row))

    def layout_of(self, each: Pass) -> Layout:
        """The layout as a pass sees it."""
        first = self._first_slot(each)
        return self.layout._replace(slots=tuple((v.kind, first + k) for k, v in enumerate(each.vectors)))

    @property
    def lanes(self) -> int:
        return self.layout.lanes

    def traffic(self, *before: Pass) -> int:
        """Bytes that a step moves for each element: what every pass reads, and what the update writes. before: passes besides, such
        as `lower.gradient_sums`. What there is one of a tensor, row or column is not in it: see `traffic_along`.
        """
        sizes = [STORAGES[r.storage].itemsize for r in self.roles]
        read = sum(sizes[k] for each in (*before, *self.passes) for k in each.reads)
        return read + sum(size for size, r in zip(sizes, self.roles, strict=True) if r.written)

    def traffic_along(self, rows: int, columns: int) -> int:
        """Bytes that a step moves besides for a matrix of this shape: its states, sums of blocks, whole sums and what passes use of
        them, each written once and read once.
        """
        counts = {"row": rows, "column": columns, "matrix": 1}
        blocks = {"row": rows * -(-columns // t.BLOCK_COLUMNS), "column": columns * -(-rows // t.BLOCK_ROWS)}
        number = STORAGES[self.compute].itemsize
        moved = sum(STORAGES[r.storage].itemsize * (1 + r.written) * counts[r.shape] for r in self.signature.vectors)
        for what, kind in self.slots:
            moved += 2 * (8 * blocks[kind] if what == "blocks" else number * counts[kind])
        return moved

    @cached_property
    def schedule(self) -> tuple[Step, ...]:
        """What comes before the update: passes that sum, what is done once a tensor, and once a matrix. Behind sums over all
        tensors that are joined but nothing is computed of, they are joined over all.
        """
        made: list[Step] = []
        sums = tuple(kind for each in self.passes if each.along for kind in each.sums)
        of = (self.compute, self.totals, len(self.wide), len(self.roles), self.signature.cells)
        for before, each in zip((None, *self.passes), self.passes, strict=False):
            flat = before if before and not before.along else None
            steps: list[tuple[Pass | None, Pass | None]] = [(flat, each if each.values else None)]
            if flat and "global_sum" in flat.sums:
                steps = [(flat, None), (None, steps[0][1])]
            made += [PerTensor(joins, derives, *of) for joins, derives in steps if joins or derives]
            along, lined = before if before and before.along else None, each if each.lined else None
            if along or lined:
                made.append(
                    PerMatrix(along, lined, self.compute, len(self.row), self._first_slot(each), self._lines(), sums)
                )
            if each is not self.update:
                made.append(each)
        return tuple(made)

    def _lines(self) -> tuple[tuple[int, Role], ...]:
        """The states of one number a row or column, each with its place among the addresses."""
        first = len(self.roles) + len(self.signature.cells)
        return tuple(enumerate(self.signature.vectors, first))

    def _first_slot(self, each: Pass) -> int:
        """Where the numbers that a pass uses of rows, columns and matrices begin among the slots."""
        sums = 2 * sum(len(other.sums) for other in self.passes if other.along)
        return sums + sum(len(other.vectors) for other in self.passes[: self.passes.index(each)])


def drawn(roles: tuple[Role, ...]) -> dict[int, Draw]:
    """Which random bits each role takes: as many roles share a word as fit into its 32 bits."""
    made: dict[int, Draw] = {}
    stream, used = 0, 0
    for k, role in enumerate(roles):
        needed = STORAGES[role.storage].random if role.written else 0
        if not needed:
            continue
        if used + needed > WORD:
            stream, used = stream + 1, 0
        made[k] = Draw(stream, used)
        used += needed
    return made
