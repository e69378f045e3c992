"""Rule + flags + options + storage types -> one `Program` of straight-line passes, the only thing an emitter sees.

Called by the backends through `program_for`. Decides every compile-time `if`, puts formats and the options' fragments before and
after the rule, and lets `cuts` find the passes. Knows no target language.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from gpuopt.compiler.cuts import Cutter
from gpuopt.compiler.names import CODE, OPTION
from gpuopt.compiler.parts import Coded, Layout, Pass, Role, Signature
from gpuopt.compiler.passes import Slicer
from gpuopt.compiler.program import HALVES, Program, drawn
from gpuopt.compiler.tree import Add, Assign, Expr, FunctionTree, straight_line
from gpuopt.compiler.whole import RANDOM, Typed
from gpuopt.errors import RuleSyntaxError
from gpuopt.rules.options import after, before, sums


def renamed(tree: FunctionTree, flags: Mapping[str, object]) -> list[Assign]:
    """A fragment's statements, every name but `p` and `g` with an "@" in front, so that none can meet the rule's."""
    statements = straight_line(tree.body, {name: flags[OPTION + name] for name in tree.flags})
    names = {*tree.positional, *tree.scalars, *(s.name for s in statements)} - {"p", "g"}
    values = {name: Expr("name", (OPTION + name,)) for name in names}
    new = {name: OPTION + name for name in names}
    return [Assign(new.get(s.name, s.name), s.expr.substitute(values), s.line, s.file) for s in statements]


def of_format(
    coded: Coded, tree: FunctionTree, arguments: Mapping[str, Expr], targets: Sequence[str], whole: Iterable[str]
) -> list[Assign]:
    """What `targets = tree(arguments)` does, in typed operations, on variables of this value's own. whole: the variables among the
    arguments that are whole numbers.
    """
    typed = Typed(whole)
    body = straight_line(tree.body, dict.fromkeys(tree.flags, coded.half))
    own = {name: f"{CODE}{coded.name}_{tree.name}_{name.removeprefix(OPTION)}" for name in {s.name for s in body}}
    known = dict(arguments)
    found = []
    for s in body:
        found.append(typed.statement(Assign(own[s.name], s.expr.substitute(known), s.line, s.file)))
        known[s.name] = Expr("name", (own[s.name],))
    for target, result in zip(targets, tree.results, strict=True):
        found.append(typed.statement(Assign(target, result.substitute(known), tree.last, tree.file)))
    return [s for s in found if s is not None]


def decoding(coded: Coded, roles: Mapping[str, Role]) -> list[Assign]:
    """The value of its planes. roles: by name."""
    planes = [roles[name] for name in coded.planes]
    given = {p.name: Expr("name", (role.variable,)) for p, role in zip(coded.format.planes, planes, strict=True)}
    whole = [role.variable for role in planes if role.code]
    return of_format(coded, coded.format.decoding, given, (coded.name,), whole)


def encoding(coded: Coded, roles: Mapping[str, Role], place: int) -> list[Assign]:
    """The planes of its value. place: among the coded values."""
    given = {"x": Expr("name", (coded.name,)), "random": Expr(RANDOM, (place,))}
    return of_format(coded, coded.format.encoding, given, [roles[name].variable for name in coded.planes], ())


@cache
def gradient_sums(storage: str, compute: str) -> tuple[Layout, Pass]:
    """The pass over all gradients that a bound on their norm and the check for what is not finite need; see `options.sums`."""
    roles = Role("p", storage, False), Role("g", storage, False)  # the gradient is the second one of every table
    adds = tuple(Add(k, "global_sum", expr, 0, "") for k, expr in enumerate(sums.tree.results))
    return Layout(roles, compute, 0), Pass((), (), adds, (1,), 0, ("global_sum",) * len(adds))


@cache
def program_for(signature: Signature) -> Program:
    """The program of a rule with its options. Raises RuleSyntaxError naming file and line."""
    flags = dict(signature.flags)
    tree = signature.definition.tree
    roles, cells = {r.variable for r in signature.roles}, {r.name for r in signature.cells}
    of_name = {r.name: r for r in signature.roles}
    statements = [s for coded in signature.coded for s in decoding(coded, of_name)]
    statements += renamed(before.tree, flags)
    statements += straight_line(tree.body, flags)
    statements += renamed(after.tree, flags)
    for place, coded in enumerate(signature.coded):
        statements += encoding(coded, of_name, place) if coded.written else []
    cutter = Cutter(signature)
    known = (
        roles
        | cells
        | {r.name for r in signature.vectors}
        | set(tree.scalars)
        | {OPTION + n for n in (*before.tree.scalars, *after.tree.scalars)}
    )
    for statement in statements:
        unknown = statement.expr.names() - known
        if unknown:
            own = ", ".join(f"{name} = {value!r}" for name, value in signature.flags if not name.startswith(OPTION))
            message = f"`{sorted(unknown)[0]}` has no value here when {own}: expected one under every choice of flags"
            raise RuleSyntaxError(message, statement.file, statement.line)
        known.add(statement.name)
        cutter.assign(statement)
    passes, row, wide = Slicer(cutter).passes()
    calls = tuple(kind.name.lower() for kind in cutter.calls)
    counts = tuple(Expr("count", (shift,)) for shift in HALVES) if drawn(signature.coded) else ()
    return Program(signature.rule.name, signature, passes, (*row, *counts), wide, calls)
