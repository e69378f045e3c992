"""What a `Program` is made of: the arrays and numbers of a kernel, a pass, and what is done between two passes.

Made by `lower` and `passes`, printed by `to_*`. Knows no target language and no rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from gpuopt.compiler.names import CODE
from gpuopt.compiler.tree import Add, Assign, Expr
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch import table as t

if TYPE_CHECKING:
    from gpuopt.formats.language import Format
    from gpuopt.rules.definition import Definition
    from gpuopt.rules.language import Rule


PARAMETER = "p"  # the name of its role in every signature
GRADIENT = 1  # the place of its role there


@dataclass(frozen=True)
class Role:
    """One array per tensor that a kernel walks, or one number (`Signature.cells`): `storage` is a name in formats.dtypes.

    per: elements of a row that one number of it is for; packed: of which it is the codes one after another, and not one for all.
    """

    name: str
    storage: str
    written: bool
    shape: str = "parameter"  # as of a State: "parameter", or of one number, or one a row or column
    per: int = 1
    packed: bool = False

    @property
    def code(self) -> bool:
        """Whether its elements are no numbers but codes: 32 bits to an emitter, not the compute type."""
        return STORAGES[self.storage].code

    @property
    def variable(self) -> str:
        """The variable that holds an element: of codes another one than of the value, which has the role's name."""
        return CODE + self.name.removeprefix(CODE) if self.code else self.name

    @property
    def shared(self) -> bool:
        """Whether all tensors have it in common."""
        return self.shape == "global"


@dataclass(frozen=True)
class Coded:
    """A value that is kept in a format: its name in the rule, and the names of the roles that are its planes. half: of a float16
    parameter. here: whether this program writes its codes, where a rule is several of them, see `stages`.
    """

    name: str
    format: Format
    planes: tuple[str, ...]
    half: bool
    written: bool
    here: bool = True


@dataclass(frozen=True)
class Product:
    """A product of matrices: which, the variables of its operand and its result, the values of the flags that it takes, and the
    names of states of matrices and scalars (DRAW: random numbers), for which whoever runs it gives memory and numbers, tensor by
    tensor.
    """

    kind: str
    operand: str
    result: str
    words: tuple[object, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signature:
    """What distinguishes one compiled kernel from another; hashable, the key of every kernel cache.

    Flags and roles of the options' fragments (`rules/options.py`) have an "@" in front: "@scaled", "@mask". cells: states of one
    number a tensor; vectors: of one a row or column; blocked: of one number for several elements of a row; matrix: whether the
    tensors have rows and columns; coded: values whose roles are planes of a format; picked: whether only some rows of each
    tensor are stepped; sharded: whether other processes have other parts of the tensors, and it matters; travelling: whether
    states come from host memory for each pass, so that the last one has to write all of them. The definition is what the rule
    means when the signature is made.
    """

    rule: Rule
    flags: tuple[tuple[str, object], ...]
    roles: tuple[Role, ...]
    compute: str
    cells: tuple[Role, ...] = ()
    vectors: tuple[Role, ...] = ()
    matrix: bool = True
    coded: tuple[Coded, ...] = ()
    blocked: tuple[Role, ...] = ()
    picked: bool = False
    sharded: bool = False
    travelling: bool = False
    definition: Definition = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "definition", self.rule.definition())


@dataclass(frozen=True)
class Draw:
    """The random bits that a value takes: those from `shift` on of the element's word of `stream`."""

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
    of the values that they become, in the last pass. reads, writes: the places of the roles that it reads, and of those that it
    stores, which a pass that sums does where fewer bytes move that way, see `passes`.

    vectors: numbers of a row, column or matrix that the body uses; lines: the statements of such kinds that these and `kept` need,
    in the compute type; matrix_sums: of a number a row or column; kept: places of states of such shapes and what they become;
    blocked: the places of the roles of blocks that it reads.
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
    blocked: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()

    @property
    def lined(self) -> bool:
        """Whether something is computed once a row, column or matrix before it."""
        return bool(self.vectors or self.kept)

    @property
    def ahead(self) -> int:
        """Packs of each array that a lane of a pass that sums asks for before it measures the first: a half as many where it has a
        sum of each of its columns too; one where it stores, as the update, since compilers move no load over a store.
        """
        return 1 if self.writes else max(1, (4 if self.along else 8) // max(1, len(self.reads)))

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
    # The roles of blocks that it reads, each with its place among the addresses, and how long a record of the table is.
    blocked: tuple[tuple[int, Role], ...] = ()
    record: int = 0

    @property
    def lanes(self) -> int:
        """Elements that one GPU thread handles at once: 16 bytes of the narrowest type, but for single bytes."""
        return 16 // min(size for r in self.roles if (size := STORAGES[r.storage].itemsize) > 1)


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
        return list(self.open(False))

    def open(self, sharded: bool) -> dict[int, str]:
        """The kinds of the totals that are not complete behind it, by their places: of parts of tensors all."""
        kinds = enumerate(self.sums, self.first)
        return {k: kind for k, kind in kinds if sharded or kind == "global_sum"}


Step: TypeAlias = PerTensor | PerMatrix | Pass  # before the update
