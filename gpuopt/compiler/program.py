"""What an emitter sees of a rule: a `Program` of straight-line passes, made for one `Signature`.

Made by `lower`, printed by `to_*`. Knows no target language and no rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from gpuopt.compiler.extremes import Extreme
from gpuopt.compiler.kinds import LINE_SUMS, Kind
from gpuopt.compiler.parts import (
    PARAMETER,
    Coded,
    Draw,
    Layout,
    Pass,
    PerMatrix,
    PerTensor,
    Product,
    Role,
    Signature,
    Slot,
    Step,
)
from gpuopt.compiler.tree import Assign, Expr
from gpuopt.formats.dtypes import STORAGES
from gpuopt.formats.philox import WORD, per_call
from gpuopt.launch import table as t

APART = 8  # random bits of a state above those that a parameter takes too
COUNT_BITS = (0, 16)  # the step count travels in two scalars, each exact in every compute type


@dataclass(frozen=True)
class Program:
    """The passes of an update: the last one writes parameter and states, those before it are for sums, and write what states that
    are known by then become, where that saves bytes. `row`: scalars that are
    rounded to the compute type, formulas of hyperparameters in float64; `wide`: those that stay float64, for numbers of a tensor.

    draws: place among the coded values -> Draw, of those that take random bits; the last scalars of the row are then the step
    count's lower and upper 16 bits. calls: the kind of the argument of every sum, in the order in which Python makes them.

    Where states are kept in blocks, the update is followed, once the `extremes` of a block are known, by `behind`, which makes its
    codes of the variables `kept` from before. corrected: the body of the rule itself, where it is not what the author wrote: some
    formats correct the uses of a state. products: of matrices, behind it where it is a stage; of a program that has stages,
    which NumPy runs as a whole, all of them.
    """

    name: str
    signature: Signature
    passes: tuple[Pass, ...]
    row: tuple[Expr, ...]
    wide: tuple[Expr, ...] = ()
    calls: tuple[str, ...] = ()
    extremes: tuple[Extreme, ...] = ()
    behind: tuple[Assign, ...] = ()
    kept: tuple[str, ...] = ()
    corrected: tuple[Assign, ...] = ()
    products: tuple[Product, ...] = ()
    stages: tuple[Program, ...] = ()

    @cached_property
    def draws(self) -> dict[int, Draw]:
        return drawn(self.signature.coded)

    @property
    def streams(self) -> int:
        """Words of random bits that an element takes."""
        return 1 + max((d.stream for d in self.draws.values()), default=-1)

    @cached_property
    def bits(self) -> int:
        """Random bits of each stream that an element has."""
        return share(self.signature.coded)

    @property
    def per_call(self) -> int:
        """Elements whose random bits are made together."""
        return per_call(self.bits)

    @property
    def update(self) -> Pass:
        return self.passes[-1]

    @property
    def cuts(self) -> tuple[Pass, ...]:
        """The passes before the update."""
        return self.passes[:-1]

    @property
    def early(self) -> bool:
        """Whether a pass before the update writes states."""
        return any(cut.writes for cut in self.cuts)

    @property
    def totals(self) -> int:
        """Sums of all cuts, a tensor."""
        return sum(len(cut.sums) for cut in self.cuts if not cut.along)

    @property
    def local(self) -> bool:
        """Whether every element is updated from itself and the row alone."""
        return not self.stages and not self.cuts and not self.update.values and not self.update.lined

    @property
    def parts(self) -> tuple[Program, ...]:
        """What runs one after another: the stages, or itself."""
        return self.stages or (self,)

    @property
    def walks(self) -> int:
        """How often a step goes through the tensors."""
        return sum(len(part.passes) for part in self.parts)

    @property
    def whole(self) -> bool:
        """Whether NumPy has to run the rule on all of a tensor at once."""
        return bool(self.products) or not self.local

    @property
    def counted(self) -> bool:
        """Whether its products take what `prepare` makes of the step count, which the host has to know."""
        return any(name in self.signature.definition.prepared for each in self.products for name in each.names)

    @property
    def roles(self) -> tuple[Role, ...]:
        return self.signature.roles

    @property
    def blocked(self) -> tuple[Role, ...]:
        """The arrays of one number for several elements of a row."""
        return self.signature.blocked

    @property
    def in_blocks(self) -> bool:
        """Whether that is the walk of its update."""
        return bool(self.blocked or self.extremes)

    @property
    def picked(self) -> bool:
        """Whether its update walks over some rows of each tensor."""
        return self.signature.picked

    @property
    def sharded(self) -> bool:
        """Whether the arrays are parts of tensors: random numbers are those of the whole, and sums are completed by others."""
        return self.signature.sharded

    @property
    def first_blocked(self) -> int:
        """Their first place among the addresses."""
        return len(self.roles) + len(self.signature.cells) + len(self.signature.vectors)

    @property
    def addresses(self) -> int:
        """Arrays that a record of the table has the addresses of, and what it has behind them."""
        behind = self.lined * len(t.MATRIX) + self.picked * len(t.PICKED) + self.sharded * len(t.SHARD)
        return self.first_blocked + len(self.blocked) + behind

    @cached_property
    def lined(self) -> bool:
        """Whether the table says how many rows and columns there are: something is computed of them."""
        exprs = [e for each in self.passes for e in (*each.values, *(s.expr for s in each.derived))]
        counted = any(part.op in ("rows", "columns") for e in exprs for part in e.parts())
        return counted or bool(self.products) or any(each.lined or each.along for each in self.passes)

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
        return self.layout._replace(
            slots=tuple((v.kind, first + k) for k, v in enumerate(each.vectors)),
            blocked=tuple((self.first_blocked + k, self.blocked[k]) for k in each.blocked),
            record=t.ADDRESS + self.addresses,
        )

    @property
    def lanes(self) -> int:
        return self.layout.lanes

    def traffic(self, *before: Pass) -> float:
        """Bytes that a step moves for each element: what every pass reads and writes. before: passes besides, such as
        `lower.gradient_sums`. What there is one of a tensor, row or column is not in it, see `traffic_along`, nor what products
        of matrices move between stages; operands are written and results read.
        """
        if self.stages:
            return sum(stage.traffic(*(before if stage is self.stages[0] else ())) for stage in self.stages)
        roles, blocked = ([STORAGES[r.storage].itemsize / r.per for r in of] for of in (self.roles, self.blocked))
        moved = sum(roles[k] for each in (*before, *self.passes) for k in (*each.reads, *each.writes))
        moved += sum(blocked[k] for each in self.passes for k in each.blocked)
        moved += sum(size for size, r in zip(blocked, self.blocked, strict=True) if r.written)
        return int(moved) if moved == int(moved) else moved

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
        """What comes before the update: passes that sum, what is done once a tensor, and once a matrix. Behind sums that
        are joined but nothing is computed of, they are joined over all tensors or processes.
        """
        made: list[Step] = []
        sums = tuple(kind for each in self.passes if each.along for kind in each.sums)
        of = (self.compute, self.totals, len(self.wide), len(self.roles), self.signature.cells)
        for before, each in zip((None, *self.passes), self.passes, strict=False):
            flat = before if before and not before.along else None
            steps: list[tuple[Pass | None, Pass | None]] = [(flat, each if each.values else None)]
            if flat and (self.sharded or "global_sum" in flat.sums):
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


def drawn(coded: tuple[Coded, ...]) -> dict[int, Draw]:
    """Which random bits each value takes: as many values share a word as fit into its 32 bits. What `lent` says has those of
    another.
    """
    needed, of = taken(coded), lent(coded)
    made: dict[int, Draw] = {}
    stream, used = 0, 0
    for k, bits in enumerate(needed):
        if not bits or k in of:
            continue
        if used + bits > WORD:
            stream, used = stream + 1, 0
        made[k] = Draw(stream, used)
        used += bits
    made |= {k: made[other] for k, other in of.items()}
    return {k: made[k] for k in sorted(made) if coded[k].here}


def share(coded: tuple[Coded, ...]) -> int:
    """Of each word an element's bits: half of them where that is enough for all values."""
    of = lent(coded)
    together = sum(bits for k, bits in enumerate(taken(coded)) if k not in of)
    return WORD // 2 if 0 < together <= WORD // 2 else WORD


def taken(coded: tuple[Coded, ...]) -> list[int]:
    """Random bits that each value takes, whichever stage writes it."""
    return [value.format.random if value.written else 0 for value in coded]


def lent(coded: tuple[Coded, ...]) -> dict[int, int]:
    """A parameter -> the state whose lowest random bits it takes too, where that has at least APART more.

    Both are rounded as by bits of their own: what is right on average depends on each alone. Nor do they go together: which way the
    state is rounded is decided by the bits above, but for one time in 2^APART.
    """
    needed = taken(coded)
    shown = [k for k, value in enumerate(coded) if needed[k] and value.name == PARAMETER]
    others = [k for k in range(len(coded)) if k not in shown]
    found = ((k, next((s for s in others if needed[s] >= needed[k] + APART), None)) for k in shown)
    return {k: state for k, state in found if state is not None}
