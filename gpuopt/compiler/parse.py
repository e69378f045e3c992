"""Python function -> checked tree. The one parser for rules and for `prepare`; called by `rules`, knows no emitter.

What runs is what Python would run: the text is checked against the function's code (`origin`), and a call is compiled only
where the name stands for the very function that the language means (`resolve`). The constructs are in `grammar`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from gpuopt.compiler.grammar import Parser, display
from gpuopt.compiler.inline import check_names
from gpuopt.compiler.names import PREPARE
from gpuopt.compiler.origin import origin, place, plain_function
from gpuopt.compiler.resolve import Names
from gpuopt.compiler.tree import Assign, Expr, FunctionTree, Statement
from gpuopt.errors import RuleSyntaxError

_RESULT = "@result_"  # in front of a returned value that has to wait for the others


def parse_function(function: Callable[..., Any]) -> FunctionTree:
    """The checked tree of a fragment of the rule language (an option, a sum). Raises RuleSyntaxError."""
    parser = Parser(function, scalar=False)
    tree = parser.parse()
    check_names(tree)
    return tree


def parse_format(
    function: Callable[..., Any], arguments: tuple[str, ...], results: tuple[int, ...], scalars: tuple[str, ...]
) -> FunctionTree:
    """The checked tree of a format's function, which takes these arguments and scalars, a flag `half` if it likes, and returns as
    many results. Raises RuleSyntaxError.
    """
    parser = Parser(function, scalar=False, whole=True)
    tree = parser.parse()
    check_names(tree)
    if tree.positional != arguments or tree.scalars != scalars or set(tree.flags) - {"half"}:
        wanted = ", ".join((*arguments, *(("*", *scalars) if scalars else ())))
        parser.fail(
            parser.node, f"this function of a format takes `{wanted}` and, behind `*`, `half: bool` if it likes"
        )
    if len(tree.results) not in results:
        wanted = " or ".join(map(str, results))
        parser.fail(
            parser.node.body[-1], f"this function of a format returns {wanted} value(s), not {len(tree.results)}"
        )
    return tree


def parse_rule(
    function: Callable[..., Any], written: Sequence[str], states: Sequence[str]
) -> tuple[FunctionTree, Names]:
    """The checked tree of a rule that takes `states` and returns `p` and the states `written`, and what its names stand for.

    Raises RuleSyntaxError naming file, line and columns.
    """
    parser = Parser(function, scalar=False)
    _check_arguments(parser, tuple(states))
    tree = parser.parse()
    check_names(tree)
    return _with_results(parser, tree, ("p", *written)), parser.names


def _check_arguments(parser: Parser, states: tuple[str, ...]) -> None:
    """Raise RuleSyntaxError unless a rule takes `p, g`, its states in their order, and scalars whose names are free."""
    arguments, node = parser.node.args, parser.node
    positional = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    nodes = {a.arg: a for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    if positional[:2] != ["p", "g"]:
        parser.fail(node, "the first two arguments of a rule are `p, g` (parameter, gradient)")
    for name in positional[2:]:
        if name not in states:
            remedy = "name it in @rule(state=...), or make it keyword-only (behind `*`)"
            parser.fail(nodes[name], f"`{name}` is no state of this rule: {remedy}")
    for state in states:
        if state not in positional:
            parser.fail(node, f"state {state!r} is not an argument of `{node.name}`")
    if positional[2:] != list(states):
        found, wanted = ", ".join(positional[2:]), ", ".join(states)
        parser.fail(
            node, f"the states come as `{found}` here and as `{wanted}` in @rule(state=...): expected one order"
        )
    if "step" in nodes:
        parser.fail(nodes["step"], "`step` is an argument of prepare only: derive what the rule needs of it there")
    refuse_reserved(parser.fail, nodes)


def _with_results(parser: Parser, tree: FunctionTree, targets: tuple[str, ...]) -> FunctionTree:
    """The tree with what it returns assigned to the parameter and the states, all at once."""
    last, names = parser.node.body[-1], tree.outputs
    if len(names) != len(targets) or any(n in targets and n != t for n, t in zip(names, targets, strict=True)):
        parser.fail(
            last, f"a rule with these states must end with `return {', '.join(targets)}`, or an expression for each"
        )
    changed = [(t, r) for t, n, r in zip(targets, names, tree.results, strict=True) if n != t]
    body, finals = list(tree.body), []
    for k, (target, result) in enumerate(changed):
        if any(target in later.names() for _, later in changed[k + 1 :]):
            finals.append(Assign(target, Expr("name", (_RESULT + target,)), tree.last, tree.file))
            target = _RESULT + target
        body.append(Assign(target, result, tree.last, tree.file))
    results = tuple(Expr("name", (t,)) for t in targets)
    return replace(tree, body=(*body, *finals), outputs=targets, results=results)


def parse_prepare(function: Callable[..., Any]) -> tuple[FunctionTree, Names] | None:
    """The tree of a `prepare` function and what its names stand for, or None where only Python itself can run it."""
    try:
        parser = Parser(function, scalar=True)
        tree = parser.parse()
        check_names(tree)
    except RuleSyntaxError:
        return None
    body = [s for s in tree.body if isinstance(s, Assign)]
    if len(tree.positional) != 1 or tree.flags or any(s.name in tree.positional for s in body):
        return None
    # Its variables are its own: a rule may have hyperparameters of the same names. The first argument may have any name.
    known: dict[str, Expr] = {tree.positional[0]: Expr("name", ("step",))}
    mine: list[Statement] = []
    for s in body:
        mine.append(Assign(f"{PREPARE}{s.name}", s.expr.substitute(known), s.line, s.file))
        known[s.name] = Expr("name", (f"{PREPARE}{s.name}",))
    results = tuple(r.substitute(known) for r in tree.results)
    return replace(tree, body=tuple(mine), results=results), parser.names


def returned_names(function: Callable[..., Any]) -> tuple[str, ...] | None:
    """The keys of what a `prepare` in plain Python returns, where the text tells them, else None.

    Raises RuleSyntaxError where it returns nothing.
    """
    try:
        plain = plain_function(function)
        node, names = origin(plain).node, Names(plain)
    except RuleSyntaxError:
        return None
    own = list(_own(node))
    returns = [n for n in own if isinstance(n, ast.Return) and n.value is not None]
    if not returns and not any(isinstance(n, ast.Raise) for n in own):
        raise RuleSyntaxError(
            "prepare returns nothing: end it with `return dict(name=value)`, the scalars that the rule takes",
            *place(plain),
        )
    items = [display(n.value, names) for n in returns if n.value is not None]
    if None in items or not items:
        return None
    return tuple(dict.fromkeys(key for item in items if item is not None for key in item))


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function, those of functions inside it left out."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            yield from _own(child)


def refuse_reserved(fail: Callable[[Any, str], NoReturn], places: Mapping[str, Any]) -> None:
    """Call `fail(place, message)` for a name that means something else to optimizers already."""
    from gpuopt.optim.reserved import meaning

    for name, where in places.items():
        taken = meaning(name)
        if taken is not None:
            fail(where, f"`{name}` is {taken}: call this argument something else")
