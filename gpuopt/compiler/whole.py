"""Whole numbers of 32 bits in the functions of a format: which expressions are such, and their operations under names of their own.

Called by `lower`, before anything is cut into passes. Knows no emitter: each prints the operations below as its language has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from gpuopt.compiler.tree import COMPARISONS, EXTREMES, Assign, Expr, FunctionTree, straight_line
from gpuopt.errors import RuleSyntaxError

MASK = 0xFFFFFFFF
# Operations on numbers -> those on whole ones.
ARITHMETIC = {
    "add": "iadd",
    "sub": "isub",
    "mul": "imul",
    "and": "iand",
    "or": "ior",
    "xor": "ixor",
    "shl": "ishl",
    "shr": "ishr",
}
COMPARED = {op: "i" + op for op in COMPARISONS}
CONSTANT, RANDOM = (
    "integer",
    "random",
)  # leaves: a number, and random bits of a value (its place among those that are coded)
RESULTS = {*ARITHMETIC.values(), "iwhere", "bits", CONSTANT, RANDOM}
FOLDED = {
    "iadd": lambda a, b: a + b,
    "isub": lambda a, b: a - b,
    "imul": lambda a, b: a * b,
    "iand": lambda a, b: a & b,
    "ior": lambda a, b: a | b,
    "ixor": lambda a, b: a ^ b,
    "ishl": lambda a, b: a << b,
    "ishr": lambda a, b: a >> b,
}


def is_whole(expr: Expr, names: Collection[str]) -> bool:
    """Whether an expression is a whole number, as the variables in `names` are."""
    return expr.op in RESULTS or (expr.op == "name" and str(expr.args[0]) in names)


def check(tree: FunctionTree, whole: Sequence[str], results: Sequence[bool]) -> None:
    """Raise RuleSyntaxError unless a function of a format gives whole numbers, or numbers, where it has to. whole: its arguments
    that are whole numbers; results: which of its results have to be.
    """
    for half in (False, True):
        typed = Typed((*whole, "random"))
        for s in straight_line(tree.body, dict.fromkeys(tree.flags, half)):
            typed.statement(s)
        for result, wanted in zip(tree.results, results, strict=True):
            at = Assign("", result, tree.last, tree.file)
            if is_whole(typed.expr(result.substitute(typed.constants), at), typed.whole) != wanted:
                expected = "a whole number: take its bits(...)" if wanted else "a number: take from_bits(...)"
                raise RuleSyntaxError(
                    f"what this function of a format returns has to be {expected}", tree.file, tree.last
                )


class Typed:
    """The statements of a format's function, one after another. whole: the variables that are whole numbers to begin with."""

    def __init__(self, whole: Iterable[str]) -> None:
        self.whole = set(whole)
        self.constants: dict[str, Expr] = {}

    def statement(self, given: Assign, kept: bool = False) -> Assign | None:
        """The statement in typed operations; None for one that only gives a constant a name, which may be a whole number or not,
        as its use asks for, unless it is `kept`.
        """
        expr = self.expr(given.expr.substitute(self.constants), given)
        self.constants.pop(given.name, None)
        if not kept and (expr.op == CONSTANT or (expr.op == "const" and isinstance(expr.args[0], int))):
            self.constants[given.name] = expr
            return None
        (self.whole.add if is_whole(expr, self.whole) else self.whole.discard)(given.name)
        return Assign(given.name, expr, given.line, given.file)

    def expr(self, expr: Expr, at: Assign) -> Expr:
        children = [self.expr(child, at) for child in expr.children()]
        if not children:
            return expr
        if expr.op == "from_bits":
            return Expr("from_bits", (self._as_whole(children[0], at),))
        if expr.op in EXTREMES:
            return Expr(expr.op, (self._as_number(children[0], at),))
        if expr.op == "bits":
            return Expr("bits", (self._as_number(children[0], at),))
        first = children[1:] if expr.op == "where" else children
        whole = expr.op in ("and", "or", "xor", "shl", "shr") or any(is_whole(c, self.whole) for c in first)
        if not whole:
            return Expr(expr.op, tuple(children))
        if expr.op == "where":
            return Expr("iwhere", (children[0], *(self._as_whole(c, at) for c in first)))
        op = ARITHMETIC.get(expr.op) or COMPARED.get(expr.op)
        if op is None:
            raise RuleSyntaxError(
                f"`{expr.op}` of whole numbers: they have + - * & | ^ << >>, comparisons and where", at.file, at.line
            )
        parts = [self._as_whole(c, at) for c in children]
        if all(p.op == CONSTANT for p in parts) and op in FOLDED:
            return Expr(CONSTANT, (FOLDED[op](*(int(p.args[0]) for p in parts)) & MASK,))  # type: ignore[arg-type]
        return Expr(op, tuple(parts))

    def _as_whole(self, expr: Expr, at: Assign) -> Expr:
        if expr.op == "const" and isinstance(expr.args[0], int):
            return Expr(CONSTANT, (expr.args[0] & MASK,))
        if not is_whole(expr, self.whole):
            raise RuleSyntaxError(
                "a number stands where a whole number is expected: take its bits(...)", at.file, at.line
            )
        return expr

    def _as_number(self, expr: Expr, at: Assign) -> Expr:
        if is_whole(expr, self.whole):
            raise RuleSyntaxError(
                "a whole number stands where a number is expected: take from_bits(...)", at.file, at.line
            )
        return expr
