"""The extremes of a block in a format's `encode`: what has to be known of all elements of a block before any is written.

Used by `lower`, which puts what stands before an extreme behind the rule, and the rest into a second function that a walk over
blocks calls once the extremes are known; and by formats, for what is wrong in them. Knows no emitter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from gpuopt.compiler.kinds import mapped
from gpuopt.compiler.tree import EXTREMES, Assign, Expr, FunctionTree, straight_line
from gpuopt.errors import RuleSyntaxError

if TYPE_CHECKING:
    from gpuopt.formats.language import Format

EXTREME = "extreme"  # a leaf: the value of that number


class Extreme(NamedTuple):
    """kind: one of EXTREMES; variable: what each element gives; block: elements of one."""

    kind: str
    variable: str
    block: int


def taken_out(
    statements: Sequence[Assign], prefix: str, first: int, block: int
) -> tuple[list[Assign], list[Extreme], list[Assign]]:
    """The statements that the extremes among these need, each extreme's argument under a name of its own, the extremes, and all
    statements with the extremes' values, from number `first` on, in their place.
    """
    before: list[Assign] = []
    found: list[Extreme] = []
    behind: list[Assign] = []
    for k, statement in enumerate(statements):

        def change(part: Expr, k: int = k, at: Assign = statement) -> Expr | None:
            if part.op not in EXTREMES:
                return None
            (argument,) = part.children()
            made = Extreme(part.op, f"{prefix}extreme{len(found)}", block)
            before.extend(s for s in needed(statements[:k], argument.names()) if s not in before)
            before.append(Assign(made.variable, argument, at.line, at.file))
            found.append(made)
            return Expr(EXTREME, (first + len(found) - 1,))

        behind.append(replace(statement, expr=mapped(statement.expr, change)))
    return before, found, behind


def needed(statements: Sequence[Assign], names: Iterable[str]) -> list[Assign]:
    """Those that these variables need behind them, in order."""
    live, found = set(names), []
    for s in reversed(statements):
        if s.name in live:
            live = live - {s.name} | s.expr.names()
            found.append(s)
    return found[::-1]


def check_blocks(tree: FunctionTree, of: Format) -> None:
    """Raise RuleSyntaxError where a plane of one number a block would get one of each element, or an extreme is asked for where
    there are no blocks, or of what follows from another.
    """
    body = [*straight_line(tree.body, dict.fromkeys(tree.flags, False))]
    element, later = {"x", "random"}, set[str]()  # variables of each element, and those that follow from an extreme

    def kinds(expr: Expr, at: Assign) -> tuple[bool, bool]:
        if expr.op in EXTREMES:
            (argument,) = expr.children()
            if not of.block:
                raise RuleSyntaxError(f"{expr.op}: this format has no blocks: give it block=256", at.file, at.line)
            if kinds(argument, at)[1]:
                raise RuleSyntaxError(f"{expr.op} of what follows from such a value itself", at.file, at.line)
            return False, True
        if expr.op == "name":
            return expr.args[0] in element, expr.args[0] in later
        parts = [kinds(child, at) for child in expr.children()]
        return any(p[0] for p in parts), any(p[1] for p in parts)

    for s in body:
        for known, is_so in zip((element, later), kinds(s.expr, s), strict=True):
            (known.add if is_so else known.discard)(s.name)
    for plane, result in zip(of.planes, tree.results, strict=True):
        if kinds(result, Assign("", result, tree.last, tree.file))[0] and plane.block > 1:
            message = f"{plane.name} is one number of a block: expected what follows from block_max(...) or block_min(...) alone"
            raise RuleSyntaxError(message, tree.file, tree.last)
