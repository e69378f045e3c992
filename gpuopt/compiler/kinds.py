"""The kinds of values in a rule, by what they depend on. Used by `cuts`; `program` and the emitters know LINE_SUMS.

- hyper: hyperparameters alone;
- tensor: sums, sizes and states of one number besides;
- row, column, matrix: sums along columns or rows, and states of such shapes;
- element: an array.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from gpuopt.compiler.tree import SIZES, Expr


class Kind(IntEnum):
    HYPER = 0
    TENSOR = 1
    MATRIX = 2
    ROW = 3
    COLUMN = 4
    ELEMENT = 5

    def __or__(self, other: int) -> Kind:
        """What an expression of both is."""
        both = {self, Kind(other)}
        return Kind.ELEMENT if both == {Kind.ROW, Kind.COLUMN} else max(both)


VECTORS = (Kind.MATRIX, Kind.ROW, Kind.COLUMN)
# What sums along rows and columns give, by what they are made of.
LINE_SUMS = {
    "row_sum": {Kind.ELEMENT: Kind.ROW, Kind.COLUMN: Kind.MATRIX},
    "column_sum": {Kind.ELEMENT: Kind.COLUMN, Kind.ROW: Kind.MATRIX},
}
ONE, ZERO = Expr("const", (1.0,)), Expr("const", (0.0,))
OF_A_TENSOR = {"total", "cell", *SIZES}  # leaves


def mapped(expr: Expr, change: Callable[[Expr], Expr | None]) -> Expr:
    """The expression with every part replaced for which `change` gives another, from outside in."""
    found = change(expr)
    if found is not None:
        return found
    return Expr(expr.op, tuple(mapped(a, change) if isinstance(a, Expr) else a for a in expr.args))
