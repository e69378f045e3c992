"""The small syntax tree between parser and emitters: built by `parse`, lowered by `lower`, printed by `to_*`; knows none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

ARITHMETIC = ("add", "sub", "mul", "div", "neg")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
CALLS = {"sqrt": 1, "abs": 1, "sign": 1, "minimum": 2, "maximum": 2, "where": 3}
SCALAR_CALLS = {**CALLS, "exp": 1, "log": 1, "root": 1}
SUMS = ("tensor_sum", "tensor_max", "global_sum", "row_sum", "column_sum")
SIZES = ("numel", "rows", "columns")
# Of matrices: how many of these they take, how many flags behind them, and names of states of matrices and scalars behind those.
PRODUCTS = {
    **{"orthogonalize": (1, 2, 0), "learn_bases": (1, 0, 6), "learn_roots": (1, 0, 9)},
    **{"to_bases": (1, 0, 2), "from_bases": (1, 0, 2), "turn_bases": (1, 0, 5), "learn_sides": (1, 0, 3)},
    **{"scale_by_projection": (1, 1, 10), "orthogonalize_largest": (1, 2, 3), "whiten": (1, 0, 6)},
}
DRAWING = ("scale_by_projection", "whiten")  # those that need random numbers
EPSILON = "epsilon"  # of the parameter's dtype, a constant of the kernel
EXTREMES = ("block_max", "block_min")  # of a block, in a format
RULE_CALLS = {**CALLS, **dict.fromkeys((*SUMS, *SIZES, EPSILON, "bits", "from_bits", *EXTREMES), 1)}
# Of `prepare`, where Python raises for what arithmetic on a device cannot refuse: `a if c else b` looks at one side only, and
# math.sqrt takes no negative number. What they are there.
ON_DEVICE = {"if": "where", "root": "sqrt"}


@dataclass(frozen=True)
class Expr:
    """`op` is one of the names above, one of `whole`, or a leaf: "const" (number), "name" (str), "scalar" (index into the row),
    "value" (index into the pass's values), "count" (16 bits of the step count, from that bit on). Of a tensor, in float64: "wide"
    (index), "total" (index), "cell" (the name of a state), "numel", "rows", "columns". Of matrices: one of PRODUCTS, whose last
    arguments are names: of flags, states of matrices and scalars.
    """

    op: str
    args: tuple[Expr | str | float | int, ...]

    def children(self) -> Iterator[Expr]:
        return (a for a in self.args if isinstance(a, Expr))

    def parts(self) -> Iterator[Expr]:
        """The expression and all its parts."""
        yield self
        for child in self.children():
            yield from child.parts()

    def names(self) -> set[str]:
        """The variables read."""
        if self.op == "name":
            return {str(self.args[0])}
        return set().union(*(child.names() for child in self.children()))

    def substitute(self, values: Mapping[str, Expr]) -> Expr:
        """Replace variables by expressions."""
        if self.op == "name":
            return values.get(str(self.args[0]), self)
        return Expr(self.op, tuple(a.substitute(values) if isinstance(a, Expr) else a for a in self.args))


@dataclass(frozen=True)
class Assign:
    """`name = expr`, at a line of `file`."""

    name: str
    expr: Expr
    line: int
    file: str


@dataclass(frozen=True)
class Add:
    """What an element adds to the sum of that index, a total of the tensor, or the largest of both; `kind` is one of SUMS."""

    index: int
    kind: str
    expr: Expr
    line: int
    file: str


@dataclass(frozen=True)
class If:
    """A compile-time branch: `test` is a tree of ("flag", name), ("is", name, value), ("not"|"and"|"or", ...)."""

    test: tuple[object, ...]
    body: tuple[Statement, ...]
    orelse: tuple[Statement, ...]


Statement: TypeAlias = Assign | If


@dataclass(frozen=True)
class FunctionTree:
    """A checked function. `flags` maps each compile-time constant to its choices; `outputs` are the names returned."""

    name: str
    file: str
    positional: tuple[str, ...]
    scalars: tuple[str, ...]
    flags: dict[str, tuple[object, ...]]
    body: tuple[Statement, ...]
    outputs: tuple[str, ...]
    results: tuple[Expr, ...] = ()
    line: int = 0  # of the `def`
    last: int = 0  # of the `return`
    source: str = ""


def holds(test: tuple[object, ...], flags: Mapping[str, object]) -> bool:
    """Whether a compile-time test is true."""
    kind, *args = test
    if kind == "flag":
        return bool(flags[str(args[0])])
    if kind == "is":
        return flags[str(args[0])] == args[1]
    parts = [holds(a, flags) for a in args if isinstance(a, tuple)]
    return {"not": lambda: not parts[0], "and": lambda: all(parts), "or": lambda: any(parts)}[str(kind)]()


def operations(body: tuple[Statement, ...]) -> set[str]:
    """What is done anywhere in these statements, whatever the flags."""
    found: set[str] = set()
    pending: list[Statement | Expr] = list(body)
    while pending:
        part = pending.pop()
        if isinstance(part, Expr):
            found.add(part.op)
            pending += part.children()
        else:
            pending += (part.expr,) if isinstance(part, Assign) else (*part.body, *part.orelse)
    return found


def inputs(body: Iterable[Assign | Add]) -> set[str]:
    """The variables that are read before anything is assigned to them."""
    found: set[str] = set()
    assigned: set[str] = set()
    for s in body:
        found |= s.expr.names() - assigned
        if isinstance(s, Assign):
            assigned.add(s.name)
    return found


def straight_line(body: tuple[Statement, ...], flags: Mapping[str, object]) -> list[Assign]:
    """The statements that remain once every compile-time `if` is decided."""
    result: list[Assign] = []
    for statement in body:
        if isinstance(statement, If):
            chosen = statement.body if holds(statement.test, flags) else statement.orelse
            result.extend(straight_line(chosen, flags))
        else:
            result.append(statement)
    return result
