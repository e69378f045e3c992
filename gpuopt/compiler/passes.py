"""The passes of a rule that `cuts` has read: which sums each makes, and of every pass the statements that these and it need.

What a state becomes is stored by the last pass, or by one that sums, if that computes it anyway and fewer bytes move: later passes
then read it, instead of all that it is made of, or need neither. So LAMB's averages are made once, and Prodigy's s is read once.

Used by `lower` only. Knows no text of any language; a sum, a number of a tensor and one of a row have their places here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from gpuopt.compiler.cuts import Cutter
from gpuopt.compiler.kinds import LINE_SUMS, VECTORS, Kind, mapped
from gpuopt.compiler.parts import GRADIENT, Along, Pass, Role
from gpuopt.compiler.tree import SIZES, Add, Assign, Expr, inputs
from gpuopt.formats.dtypes import STORAGES

Cut = tuple[int, bool]


class Way(NamedTuple):
    """One way to divide a rule: the statements of each pass that sums and of the update, in which of the former each sum is made,
    what states of one number and those of a row or column become, and the variables of states that passes that sum store, each with
    its pass.
    """

    bodies: dict[Cut, list[Assign | Add]]
    update: list[Assign | Add]
    made_in: dict[int, Cut]
    cells: dict[int, Expr]
    kept: dict[int, Expr]
    early: Mapping[str, Cut]


class Slicer:
    """Makes the passes of the rule whose statements a `Cutter` has taken, all of them."""

    def __init__(self, of: Cutter) -> None:
        self.of = of
        self.last = {s.name: k for k, s in enumerate(of.code) if isinstance(s, Assign)}  # where it gets its last value

    def passes(self) -> tuple[tuple[Pass, ...], tuple[Expr, ...], tuple[Expr, ...]]:
        """All passes, the scalars of the row, and the wide ones."""
        plain = self._way({})
        found = min(
            (way for way in (plain, *map(self._way, self._choices(plain))) if self._sound(way)), key=self._moved
        )
        order = sorted(found.made_in, key=lambda k: (found.made_in[k], k))
        places = {
            k: place for of in (False, True) for place, k in enumerate(k for k in order if found.made_in[k][1] is of)
        }
        written = {r.variable for r in self.of.signature.roles if r.written} - {*found.early}
        made = [
            self._made(found.bodies[cut], places, {}, {}, stored_in(found.early, cut), cut[1])
            for cut in sorted(found.bodies)
        ]
        update = self._made(found.update, places, found.cells, found.kept, written)
        return (*made, update), tuple(self.of.row), tuple(self.of.wides)

    def _way(self, early: Mapping[str, Cut]) -> Way:
        """How the rule is divided where these variables of states are stored in these passes."""
        update = self.sliced(set(), self.live() - {*early}, {*early})
        cells = {k: self._stored(r) for k, r in enumerate(self.of.signature.cells) if r.written}
        kept = {k: self.of.of_vector[r.name] for k, r in enumerate(self.of.signature.vectors) if r.written}
        bodies: dict[Cut, list[Assign | Add]] = {}
        made_in: dict[int, Cut] = {}
        pending = self._totals([*self._used(update), *cells.values(), *kept.values()])
        while pending:
            cut = max(self.cut(k) for k in pending)
            here = self._gathered(pending, cut)
            bodies[cut] = self.sliced(
                here, stored_in(early, cut), {name for name, place in early.items() if place < cut}
            )
            made_in |= dict.fromkeys(here, cut)
            pending = pending - here | self._totals(self._used(bodies[cut]))
        return Way(bodies, update, made_in, cells, kept, early)

    def _choices(self, plain: Way) -> list[dict[str, Cut]]:
        """What may be stored early, and where: a state whose new value follows from what a pass over elements reads anyway. It has
        to come back from memory as it was computed. Not where a step can fail between two passes, as where processes wait for each
        other, nor where states travel for each pass, nor in walks over blocks or some rows.
        """
        signature = self.of.signature
        in_rows = any(coded.format.in_rows for coded in signature.coded)
        if signature.sharded or signature.travelling or signature.picked or signature.blocked or in_rows:
            return []
        planes = {name for coded in signature.coded for name in coded.planes}
        states = [
            r.variable
            for r in signature.roles[GRADIENT + 1 :]
            if r.written and r.name not in planes and r.storage == signature.compute and r.variable in self.last
        ]
        where = [
            [None, *(cut for cut, body in plain.bodies.items() if not cut[1] and self._makes(cut, body, name))]
            for name in states
        ]
        ways = ({n: cut for n, cut in zip(states, way, strict=True) if cut is not None} for way in product(*where))
        return [way for way in ways if way]

    def _makes(self, cut: Cut, body: list[Assign | Add], name: str) -> bool:
        """Whether the last value of a variable follows from what it was, and what is read there."""
        needed = self._arrays(self.sliced(set(), {name}))
        return self.of.levels[name] <= cut[0] and name in needed <= self._arrays(body)

    def _sound(self, way: Way) -> bool:
        """Whether there are the passes that are to store, and none behind them needs what was there before."""
        last = {name: self.last[name] for name in way.early}
        place = {id(s): k for k, s in enumerate(self.of.code)}

        def old(body: list[Assign | Add], name: str) -> bool:
            before = [s for s in body if place[id(s)] <= last[name]]
            return any(name in s.expr.names() or (isinstance(s, Assign) and s.name == name) for s in before)

        return all(
            cut in way.bodies
            and not old(way.update, name)
            and not any(old(body, name) for other, body in way.bodies.items() if other > cut)
            for name, cut in way.early.items()
        )

    def _moved(self, way: Way) -> float:
        """Bytes an element, but for those that all ways move."""
        sizes = {
            r.variable: STORAGES[r.storage].itemsize / r.per
            for r in (*self.of.signature.roles, *self.of.signature.blocked)
        }
        return sum(sizes[name] for body in (*way.bodies.values(), way.update) for name in self._arrays(body))

    def _arrays(self, body: Iterable[Assign | Add]) -> set[str]:
        """The variables of arrays that these statements read."""
        return {name for s in body for name in s.expr.names()} & {*self.of.roles, *self.of.blocked}

    def live(self) -> set[str]:
        """The variables that are wanted of each element at the end: written arrays but for those that get their codes behind the
        extremes of a block, and what these are made of.
        """
        signature = self.of.signature
        later = {name for coded in signature.coded if coded.format.in_rows for name in coded.planes}
        written = {r.variable for r in signature.roles if r.written and r.name not in later}
        return written | self.of.outputs - {*self.of.roles, *self.of.blocked}

    def cut(self, k: int) -> Cut:
        """Of a sum: how many cuts are before it, and whether it is along rows or columns, which is a pass of its own."""
        return self.of.sums[k][0], self.of.sums[k][1].kind in LINE_SUMS

    def _gathered(self, pending: set[int], cut: Cut) -> set[int]:
        """Of the sums that later passes need, those that this one makes: what cannot be known earlier, and what could, but reads
        nothing here that is not read anyway, and is not needed earlier.
        """
        here = {k for k in pending if self.cut(k) == cut}
        earlier, more = set[int](), pending
        while more:
            more = self._totals(self._used(self.sliced(more, set()))) - earlier
            earlier |= more
        reads = self._reads(here)
        # Those along rows and columns are walked otherwise.
        same = {k for k in pending - earlier if self.cut(k)[1] == cut[1]}
        return here | {k for k in same if self._reads({k}) <= reads}

    def _reads(self, sums: set[int]) -> set[str]:
        """The arrays that these sums need."""
        return self._arrays(self.sliced(sums, set()))

    def _stored(self, role: Role) -> Expr:
        """The new value of a state of one number. Raises RuleSyntaxError for one of all tensors that is not the same for all."""
        if self.of.kinds[role.name] is not Kind.TENSOR:
            return self.of.wide(self.of.hyper[role.name])
        found = self.of.of_tensor[role.name]
        closure = self.of.closure([found])
        leaves = [part for expr in (found, *(s.expr for s in closure)) for part in expr.parts()]
        if role.shared and any(map(self._of_one, leaves)):
            message = (
                "is one number for all tensors, and here it follows from one tensor: expected a global_sum of that"
            )
            self.of.fail(f"{role.name} {message}", closure[-1])
        return found

    def _of_one(self, leaf: Expr) -> bool:
        """Whether it is a number of one tensor alone."""
        if leaf.op == "total":
            return self.of.sums[int(leaf.args[0])][1].kind != "global_sum"  # type: ignore[arg-type]
        return leaf.op in ("sum_along", "sum_of_matrix", *SIZES) or (
            leaf.op == "cell" and not self.of.cells[str(leaf.args[0])].shared
        )

    def sliced(self, sums: set[int], live: set[str], stored: Collection[str] = ()) -> list[Assign | Add]:
        """The statements that these sums, and these variables at the end, need. stored: variables whose last value is read."""
        found: list[Assign | Add] = []
        for k, statement in reversed(list(enumerate(self.of.code))):
            if isinstance(statement, Add):
                if statement.index not in sums:
                    continue
            elif statement.name in live:
                live = live - {statement.name}
                if statement.name in stored and k == self.last[statement.name]:
                    continue
            else:
                continue
            found.append(statement)
            live = live | statement.expr.names()
        return found[::-1]

    def _used(self, body: Iterable[Assign | Add]) -> list[Expr]:
        """The numbers of a tensor, row, column or matrix that a body uses, in order."""
        return self._among(self.of.hoisted, "hoisted", body) + self._among(self.of.vectors, "vector", body)

    def _among(self, table: Mapping[Expr, int], op: str, body: Iterable[Assign | Add]) -> list[Expr]:
        places = {int(p.args[0]) for s in body for p in s.expr.parts() if p.op == op}  # type: ignore[arg-type]
        return [expr for expr, k in table.items() if k in places]

    def _every(self, exprs: Iterable[Expr]) -> list[Expr]:
        """These, and all that they need."""
        exprs = list(exprs)
        found = [*exprs, *(s.expr for s in self.of.closure(exprs))]
        return found + [e for expr in found for part in expr.parts() for e in self.of.behind(part)]

    def _totals(self, exprs: Iterable[Expr]) -> set[int]:
        parts = [p for e in self._every(exprs) for p in e.parts()]
        return {int(p.args[0]) for p in parts if p.op in ("total", "sum_along")}  # type: ignore[arg-type]

    def _made(
        self, body: list[Assign | Add], places: dict[int, int], cells: Mapping[int, Expr], kept: Mapping[int, Expr],
        written: set[str], along: bool = False,
    ) -> Pass:  # fmt: skip
        vectors = self._among(self.of.vectors, "vector", body)
        behind = self._every([*vectors, *kept.values()])
        used = {k: e for e, k in self.of.hoisted.items() if e in set(self._among(self.of.hoisted, "hoisted", body))}
        used |= {k: list(self.of.hoisted)[k] for e in behind for k in hoists(e)}
        ranks = {k: rank for rank, k in enumerate(sorted(used))}
        matrix_sums = sorted({int(p.args[0]) for e in behind for p in e.parts() if p.op == "sum_of_matrix"})  # type: ignore[arg-type]
        spots = {self.of.vectors[expr]: spot for spot, expr in enumerate(vectors)}

        def new(expr: Expr) -> Expr:
            tables = {"hoisted": ranks, "total": places, "sum_along": places, "vector": spots}
            tables["sum_of_matrix"] = {k: rank for rank, k in enumerate(matrix_sums)}

            def renumbered(part: Expr) -> Expr | None:
                if part.op not in tables:
                    return None
                op = "value" if part.op == "hoisted" else part.op
                return Expr(op, (tables[part.op][int(part.args[0])],))  # type: ignore[arg-type]

            return mapped(expr, renumbered)

        needed = inputs(body)
        adds = sorted((places[s.index], s.kind) for s in body if isinstance(s, Add))
        numbers = [used[k] for k in sorted(used)]
        closure = self.of.closure([*numbers, *cells.values()])
        lines = [s for s in self.of.closure([*vectors, *kept.values()]) if self.of.own_kinds[s.name] in VECTORS]
        return Pass(
            tuple(replace(s, expr=new(s.expr)) for s in closure if self.of.own_kinds[s.name] is Kind.TENSOR),
            tuple(map(new, (*numbers, *cells.values()))),
            tuple(moved(replace(s, expr=new(s.expr)), places) for s in body),
            tuple(k for k, name in enumerate(self.of.roles) if name in needed),
            adds[0][0] if adds else 0,
            tuple(kind for _, kind in adds),
            tuple((cell, len(numbers) + k) for k, cell in enumerate(cells)),
            along,
            tuple(Along(self.of.kind(e).name.lower(), new(e)) for e in vectors),
            tuple((self.of.own_kinds[s.name].name.lower(), replace(s, expr=new(s.expr))) for s in lines),
            tuple(
                Along(self.of.matrix_sums[k].kind.name.lower(), new(self.of.matrix_sums[k].expr)) for k in matrix_sums
            ),
            tuple((k, new(e)) for k, e in kept.items()),
            tuple(k for k, name in enumerate(self.of.blocked) if name in needed),
            tuple(k for k, name in enumerate(self.of.roles) if name in written),
        )


def stored_in(early: Mapping[str, Cut], cut: Cut) -> set[str]:
    """Those that are stored in this pass."""
    return {name for name, place in early.items() if place == cut}


def hoists(expr: Expr) -> set[int]:
    return {int(p.args[0]) for p in expr.parts() if p.op == "hoisted"}  # type: ignore[arg-type]


def moved(statement: Assign | Add, places: Mapping[int, int]) -> Assign | Add:
    return replace(statement, index=places[statement.index]) if isinstance(statement, Add) else statement
