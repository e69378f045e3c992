"""Where a rule is cut into passes: what stands before a sum is one walk over the elements, what needs its value is the next.

`lower` gives it the statements; `passes` makes the passes of them. Every expression is of one kind, by what it depends on:

- hyper: hyperparameters alone. Each maximal such part is a scalar of the row, computed once a step;
- tensor: sums, sizes and states of one number besides. Each such statement is computed once a tensor, in float64;
- row, column, matrix: sums along columns or rows, states of such shapes. Computed once a row, column or matrix, in the compute
  type;
- element: an array. Computed in every pass that needs it, from the inputs: nothing is stored between passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, NoReturn

from gpuopt.compiler.kinds import LINE_SUMS, OF_A_TENSOR, ONE, VECTORS, ZERO, Kind, mapped
from gpuopt.compiler.parts import Signature
from gpuopt.compiler.scalars import constant
from gpuopt.compiler.tree import COMPARISONS, EPSILON, SIZES, SUMS, Add, Assign, Expr
from gpuopt.compiler.whole import CONSTANT, RANDOM
from gpuopt.errors import RuleSyntaxError
from gpuopt.formats.dtypes import STORAGES


class MatrixSum(NamedTuple):
    """The sum of one number of each row (or column) of a matrix."""

    kind: Kind
    expr: Expr


class Cutter:
    """Takes the statements of a rule one by one, and knows of every expression what it depends on."""

    def __init__(self, signature: Signature, outputs: Iterable[str] = (), arrays: Sequence[str] = ()) -> None:
        """outputs: variables that are wanted of each element at the end, besides those of roles, whatever they are; arrays: that
        have a value of each element from the beginning, besides those of roles.
        """
        self.signature, self.flags = signature, dict(signature.flags)
        self.roles, self.blocked = [r.variable for r in signature.roles], [r.variable for r in signature.blocked]
        self.outputs = {*self.roles, *self.blocked, *outputs}
        self.cells = {r.name: r for r in signature.cells}
        self.kinds = dict.fromkeys([*self.roles, *self.blocked, *arrays], Kind.ELEMENT) | {
            r.name: Kind.TENSOR for r in signature.cells
        }
        self.kinds |= {r.name: Kind[r.shape.upper()] for r in signature.vectors}
        there = [*self.roles, *self.blocked, *arrays, *(r.name for r in signature.vectors)]
        self.levels = dict.fromkeys(there, 0)  # of elements, and of tensor statements: the cuts before they are known
        self.hyper: dict[str, Expr] = {}  # variables of that kind, as formulas of hyperparameters
        self.of_tensor = {r.name: Expr("cell", (r.name,)) for r in signature.cells}
        self.derived: dict[str, Assign] = {}  # statements that are no element's, each under a name of its own
        self.own_kinds: dict[str, Kind] = {}  # of those
        self.of_vector = {r.name: Expr("name", (r.name,)) for r in signature.vectors}
        self.matrix_sums: list[MatrixSum] = []
        self.calls: list[Kind] = []  # of the argument of every sum, in the order in which Python makes them
        self.code: list[Assign | Add] = []  # element statements and sums, in order
        self.sums: list[tuple[int, Add]] = []  # the cut of each sum
        self.versions = dict.fromkeys([*self.roles, *self.blocked, *arrays], 0)
        self.same: dict[object, int] = {}
        self.row: dict[Expr, int] = {}
        self.wides: dict[Expr, int] = {}
        self.hoisted: dict[Expr, int] = {}  # numbers of a tensor that elements use
        self.vectors: dict[Expr, int] = {}  # numbers of a row, column or matrix that elements use

    # ------------------------------------------------------------------------------------------- statements

    def assign(self, statement: Assign) -> None:
        expr = self.extracted(statement.expr, statement)
        name, kind = statement.name, self.kind(expr)
        self._check_shape(name, kind, statement)
        if kind is Kind.ELEMENT:
            self._element(name, self.hoist(expr), statement)
            self.kinds[name] = kind
            self.hyper.pop(name, None)
            return
        # An array that is set to a number is that number in what follows, unrounded, as it is where NumPy runs the rule.
        if name in self.outputs:
            self._element(name, self.hoist(expr), statement)
        if kind is Kind.HYPER:
            self.hyper[name] = expr.substitute(self.hyper)
        else:
            own = f"{name}__{len(self.derived)}"
            made = self.wide(expr) if kind is Kind.TENSOR else self.along(expr)
            self.hyper.pop(name, None)
            self.levels[own], self.own_kinds[own] = self.level(made), kind
            self.derived[own] = Assign(own, made, statement.line, statement.file)
            (self.of_tensor if kind is Kind.TENSOR else self.of_vector)[name] = Expr("name", (own,))
        self.kinds[name] = kind

    def _check_shape(self, name: str, kind: Kind, at: Assign) -> None:
        """Raise RuleSyntaxError where a state of another shape than the parameter's becomes something else."""
        vectors = {r.name: r for r in self.signature.vectors}
        if (name in self.cells and kind > Kind.TENSOR) or (
            name in vectors and kind is not Kind[vectors[name].shape.upper()]
        ):
            shape = (self.cells | vectors)[name].shape
            found = {Kind.ELEMENT: "one of each element", Kind.HYPER: "a number"}.get(
                kind, f"one a {kind.name.lower()}"
            )
            per = {"scalar": "a tensor", "global": "for all tensors"}.get(shape, f"a {shape}")
            self.fail(f"{name} is one number {per}, and here it becomes {found}", at)

    def _element(self, name: str, expr: Expr, at: Assign) -> None:
        self.code.append(Assign(name, expr, at.line, at.file))
        self.levels[name] = self.level(expr)
        self.versions[name] = self.versions.get(name, 0) + 1

    def kind(self, expr: Expr) -> Kind:
        if expr.op == "name":
            name = str(expr.args[0])
            return self.own_kinds.get(name, self.kinds.get(name, Kind.HYPER))
        if expr.op in OF_A_TENSOR:
            return Kind.TENSOR
        if expr.op == RANDOM:
            return Kind.ELEMENT
        if expr.op == "sum_along":
            return LINE_SUMS[self.sums[int(expr.args[0])][1].kind][Kind.ELEMENT]  # type: ignore[arg-type]
        if expr.op == "sum_of_matrix":
            return Kind.MATRIX
        found = Kind.HYPER
        for child in expr.children():
            found = found | self.kind(child)
        return found

    def level(self, expr: Expr) -> int:
        """The cuts that have to be made before its value is known."""
        if expr.op == "name":
            return self.levels[str(expr.args[0])]
        if expr.op in ("total", "sum_along"):
            return self.sums[int(expr.args[0])][0] + 1  # type: ignore[arg-type]
        if expr.op == "sum_of_matrix":
            return self.level(self.matrix_sums[int(expr.args[0])].expr)  # type: ignore[arg-type]
        if expr.op in ("hoisted", "vector"):
            return self.level(list(self.hoisted if expr.op == "hoisted" else self.vectors)[int(expr.args[0])])  # type: ignore[arg-type]
        return max(map(self.level, expr.children()), default=0)

    def extracted(self, expr: Expr, at: Assign) -> Expr:
        """The expression with every sum replaced by the total that it is, which begins to be summed here."""

        def change(part: Expr) -> Expr | None:
            if part.op == EPSILON:
                return Expr("const", (STORAGES[self.signature.roles[0].storage].epsilon,))
            if part.op in SIZES:
                if part.op != "numel":
                    self._check_matrix(part.op, at)
                return Expr(part.op, ())
            if part.op not in SUMS:
                return None
            (inner,) = (self.extracted(child, at) for child in part.children())
            kind = self.kind(inner)
            self.calls.append(kind)
            if part.op in LINE_SUMS:
                return self._along(part.op, inner, kind, at)
            if kind is not Kind.ELEMENT and not (part.op == "tensor_max" and kind in VECTORS):
                self.fail(f"{part.op} of a value that is not one of each element: expected one, such as g * g", at)
            return Expr("total", (self.total(part.op, self.hoist(inner), at),))

        return mapped(expr, change)

    def total(self, kind: str, expr: Expr, at: Assign) -> int:
        """The index of a sum; the same sum of the same values is made once."""
        key = kind, expr, tuple(sorted((n, self.versions[n]) for n in expr.names()))
        if key not in self.same:
            index = self.same[key] = len(self.sums)
            made = Add(index, kind, expr, at.line, at.file)
            self.sums.append((self.level(expr), made))
            self.code.append(made)
        return self.same[key]

    def _check_matrix(self, op: str, at: Assign) -> None:
        """Raise RuleSyntaxError where the tensor has no rows and columns."""
        if ("matrix" in self.flags and not self.flags["matrix"]) or not self.signature.matrix:
            self.fail(
                f"{op} needs a tensor of two or more axes: put it under `if matrix:`, with a flag `matrix: bool`", at
            )

    def _along(self, op: str, inner: Expr, kind: Kind, at: Assign) -> Expr:
        """A sum along rows or columns."""
        self._check_matrix(op, at)
        if kind not in LINE_SUMS[op]:
            known = " or ".join(k.name.lower() for k in LINE_SUMS[op])
            self.fail(f"{op} of a value of kind {kind.name.lower()}: expected one a {known}", at)
        if kind is Kind.ELEMENT:
            return Expr("sum_along", (self.total(op, self.hoist(inner), at),))
        made = self.along(inner)
        if any(
            part.op == "sum_of_matrix" for e in (made, *(s.expr for s in self.closure([made]))) for part in e.parts()
        ):
            self.fail(f"{op} of a value that depends on such a sum of rows or columns itself", at)
        self.matrix_sums.append(MatrixSum(kind, made))
        return Expr("sum_of_matrix", (len(self.matrix_sums) - 1,))

    def along(self, expr: Expr) -> Expr:
        """The expression for a row, column or matrix."""
        kind = self.kind(expr)
        if kind not in VECTORS:
            return self.hoist(expr)
        if expr.op == "name" and str(expr.args[0]) in self.of_vector:
            return self.of_vector[str(expr.args[0])]
        return Expr(expr.op, tuple(self.along(a) if isinstance(a, Expr) else a for a in expr.args))

    def fail(self, message: str, at: Assign) -> NoReturn:
        raise RuleSyntaxError(message, at.file, at.line)

    # ------------------------------------------------------------------------------------------- hoisting

    def hoist(self, expr: Expr) -> Expr:
        """The expression for an element: each maximal part that is no array is a scalar of the row, or a number of the tensor."""
        kind = self.kind(expr)
        if expr.op == CONSTANT:
            return expr
        if kind is Kind.ELEMENT:
            return Expr(expr.op, tuple(self.hoist(a) if isinstance(a, Expr) else a for a in expr.args))
        if expr.op in COMPARISONS:
            # Decided once, in float64, as Python decides it where NumPy runs the rule.
            return Expr("ne", (self.hoist(Expr("where", (expr, ONE, ZERO))), ZERO))
        if kind is Kind.HYPER:
            return self._scalar(expr, "scalar", self.row)
        if kind in VECTORS:
            return Expr("vector", (self.vectors.setdefault(self.along(expr), len(self.vectors)),))
        return Expr("hoisted", (self.hoisted.setdefault(self.wide(expr), len(self.hoisted)),))

    def _scalar(self, expr: Expr, op: str, table: dict[Expr, int]) -> Expr:
        expr = expr.substitute(self.hyper)
        if not expr.names() and all(part.op != "count" for part in expr.parts()):
            return Expr("const", (constant(expr),))
        return Expr(op, (table.setdefault(expr, len(table)),))

    def wide(self, expr: Expr) -> Expr:
        """The expression in float64, for a number of the tensor."""
        if expr.op == "name" and self.kind(expr) is Kind.TENSOR:
            return self.of_tensor[str(expr.args[0])]
        if self.kind(expr) is Kind.HYPER and expr.op not in COMPARISONS:
            return self._scalar(expr, "wide", self.wides)
        return Expr(expr.op, tuple(self.wide(a) if isinstance(a, Expr) else a for a in expr.args))

    # ------------------------------------------------------------------------------------------- what needs what

    def closure(self, exprs: Iterable[Expr]) -> list[Assign]:
        """The statements that these need, in order; of numbers of a tensor that a row needs too."""
        names: set[str] = set()
        pending = list(exprs)
        while pending:
            expr = pending.pop()
            for part in expr.parts():
                pending += self.behind(part)
            new = {name for name in expr.names() if name in self.derived} - names
            names |= new
            pending += [self.derived[name].expr for name in new]
        return [statement for name, statement in self.derived.items() if name in names]

    def behind(self, part: Expr) -> list[Expr]:
        """What a leaf stands for."""
        if part.op == "sum_of_matrix":
            return [self.matrix_sums[int(part.args[0])].expr]  # type: ignore[arg-type]
        return [list(self.hoisted)[int(part.args[0])]] if part.op == "hoisted" else []  # type: ignore[arg-type]
