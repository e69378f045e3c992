"""A function's tree in the place of a call of it, and whether the names of a tree are known. Used by `grammar` and `parse`.

Trees in, statements out: knows neither Python's syntax nor any emitter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpuopt.compiler.names import PART
from gpuopt.compiler.tree import Assign, Expr, FunctionTree, If, Statement
from gpuopt.errors import RuleSyntaxError


def check_names(tree: FunctionTree) -> None:
    """Every name must be an argument or assigned before; branches are checked one by one when flags are decided."""

    def visit(body: tuple[Statement, ...], known: set[str]) -> None:
        for statement in body:
            if isinstance(statement, If):
                visit(statement.body, known)
                visit(statement.orelse, known)
                continue
            check(statement.expr, known, statement.line)
            known.add(statement.name)

    def check(expr: Expr, known: set[str], line: int) -> None:
        unknown = sorted(expr.names() - known)
        if unknown:
            message = f"`{unknown[0]}` is neither an argument of `{tree.name}` nor assigned above; pass it as a scalar"
            raise RuleSyntaxError(message, tree.file, line)

    known = {*tree.positional, *tree.scalars}
    visit(tree.body, known)
    for result in tree.results:
        check(result, known, tree.last)


def unfolded(
    tree: FunctionTree, arguments: Sequence[Expr], targets: Sequence[str], line: int, file: str
) -> list[Statement]:
    """What `targets = tree(arguments)` does. The variables of the tree are its own, and begin anew in every call."""
    names = {n: f"{PART}{tree.name}_{n}" for n in (*tree.positional, *(s.name for s in assigned(tree.body)))}
    new = {name: Expr("name", (own,)) for name, own in names.items()}
    begin = [Assign(names[n], each, line, file) for n, each in zip(tree.positional, arguments, strict=True)]
    end = [
        Assign(target, result.substitute(new), tree.last, tree.file)
        for target, result in zip(targets, tree.results, strict=True)
    ]
    return [*begin, *renamed(tree.body, names, new), *end]


def assigned(body: Sequence[Statement]) -> list[Assign]:
    """The assignments of these statements, whatever the flags."""
    return [a for s in body for a in ([s] if isinstance(s, Assign) else assigned((*s.body, *s.orelse)))]


def renamed(body: Sequence[Statement], names: Mapping[str, str], new: Mapping[str, Expr]) -> list[Statement]:
    """The statements on other variables."""
    return [
        Assign(names[s.name], s.expr.substitute(new), s.line, s.file)
        if isinstance(s, Assign)
        else If(s.test, tuple(renamed(s.body, names, new)), tuple(renamed(s.orelse, names, new)))
        for s in body
    ]
