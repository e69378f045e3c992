"""Rule + flags + options + storage types -> one `Program` of straight-line passes, the only thing an emitter sees.

Called by the backends through `program_for`. Decides every compile-time `if`, puts formats and the options' fragments before and
after the rule, and lets `cuts` find the passes. Knows no target language.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from gpuopt.compiler.cuts import Cutter
from gpuopt.compiler.extremes import Extreme, needed, taken_out
from gpuopt.compiler.names import CODE, OPTION
from gpuopt.compiler.parts import Coded, Layout, Pass, Product, Role, Signature
from gpuopt.compiler.passes import Slicer
from gpuopt.compiler.program import COUNT_BITS, Program, drawn
from gpuopt.compiler.stages import decoded, staged
from gpuopt.compiler.stages import signature_of as stage_signature
from gpuopt.compiler.stages import taken_out as taken_out_products
from gpuopt.compiler.tree import Add, Assign, Expr, FunctionTree, straight_line
from gpuopt.compiler.whole import RANDOM, Typed
from gpuopt.errors import RuleSyntaxError
from gpuopt.rules.options import AHEAD, BEHIND, scalars, sums

# The step count in an option, exact below 2^32; not its name, which a variable of a rule may have.
STEP = Expr("add", (Expr("count", (0,)), Expr("mul", (Expr("const", (65536.0,)), Expr("count", (16,))))))


def renamed(tree: FunctionTree, flags: Mapping[str, object]) -> list[Assign]:
    """A fragment's statements, every name but `p` and `g` with an "@" in front, so that none can meet the rule's."""
    statements = straight_line(tree.body, {name: flags[OPTION + name] for name in tree.flags})
    names = {*tree.positional, *tree.scalars, *(s.name for s in statements)} - {"p", "g"}
    values = {name: Expr("name", (OPTION + name,)) for name in names}
    values |= {"step": STEP} if "step" in tree.scalars else {}
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
    known = dict(arguments)
    found = []
    for k, s in enumerate(body):  # each variable another one, since it may be a number first and a whole number then
        own = f"{CODE}{coded.name}_{tree.name}_{k}_{s.name.removeprefix(OPTION)}"
        found.append(typed.statement(Assign(own, s.expr.substitute(known), s.line, s.file)))
        known[s.name] = Expr("name", (own,))
    for target, result in zip(targets, tree.results, strict=True):
        found.append(typed.statement(Assign(target, result.substitute(known), tree.last, tree.file), kept=True))
    return [s for s in found if s is not None]


def decoding(coded: Coded, roles: Mapping[str, Role]) -> list[Assign]:
    """The value of its planes, and its correction where it has one. roles: by name."""
    planes = [roles[name] for name in coded.planes]
    given = {p.name: Expr("name", (role.variable,)) for p, role in zip(coded.format.planes, planes, strict=True)}
    whole = [role.variable for role in planes if role.code]
    targets = (coded.name, correction(coded)) if coded.format.corrects else (coded.name,)
    return of_format(coded, coded.format.decoding, given, targets, whole)


def correction(coded: Coded) -> str:
    """The variable that a state is multiplied with where it is used."""
    return f"{CODE}{coded.name}_correction"


def corrected(coded: Coded, statements: Sequence[Assign]) -> list[Assign]:
    """The statements of a rule, the state multiplied with its correction in those that its own next value does not need."""
    name = Expr("name", (coded.name,))
    uses = {coded.name: Expr("mul", (name, Expr("name", (correction(coded),))))}
    own = {id(s) for s in needed(statements, [coded.name])}
    return [s if id(s) in own else replace(s, expr=s.expr.substitute(uses)) for s in statements]


def encoding(coded: Coded, roles: Mapping[str, Role], place: int) -> list[Assign]:
    """The planes of its value; of a format that encodes elements of a row together, of what it is at the end of the rule. place:
    among the coded values.
    """
    given = {"x": Expr("name", (new(coded) if coded.format.in_rows else coded.name,)), "random": Expr(RANDOM, (place,))}
    return of_format(coded, coded.format.encoding, given, [roles[name].variable for name in coded.planes], ())


def new(coded: Coded) -> str:
    """The variable that is what a value has become, until the extremes of its block are known."""
    return f"{CODE}{coded.name}_new"


class Ending(NamedTuple):
    """What comes behind a rule: statements before anything is known of other elements of a block, then extremes, statements behind
    these, and the variables of the former that they use.
    """

    before: list[Assign]
    extremes: list[Extreme]
    behind: list[Assign]
    kept: list[str]


def ending(signature: Signature, roles: Mapping[str, Role]) -> Ending:
    """The codes of all coded values."""
    made = Ending([], [], [], [])
    for place, coded in enumerate(signature.coded):
        if not (coded.written and coded.here):
            continue
        statements = encoding(coded, roles, place)
        if not coded.format.in_rows:
            made.before.extend(statements)
            continue
        made.before.append(Assign(new(coded), Expr("name", (coded.name,)), statements[-1].line, statements[-1].file))
        made.kept.append(new(coded))
        before, extremes, behind = taken_out(statements, f"{CODE}{coded.name}_", len(made.extremes), coded.format.block)
        made.before.extend(before)
        made.extremes.extend(extremes)
        made.behind.extend(behind)
    return made


@cache
def gradient_sums(storage: str, compute: str) -> tuple[Layout, Pass]:
    """The pass over all gradients that a bound on their norm and the check for what is not finite need; see `options.sums`."""
    roles = Role("p", storage, False), Role("g", storage, False)  # the gradient is the second one of every table
    adds = tuple(Add(k, "global_sum", expr, 0, "") for k, expr in enumerate(sums.tree.results))
    return Layout(roles, compute, 0), Pass((), (), adds, (1,), 0, ("global_sum",) * len(adds))


@cache
def program_for(signature: Signature) -> Program:
    """The program of a rule with its options; of one with products of matrices what NumPy runs, and its stages.

    Raises RuleSyntaxError naming file and line.
    """
    body, own, products = body_of(signature)
    found = lowered(signature, decodings(signature) + body, [each.result for each in products])
    changed = own if any(coded.format.corrects for coded in signature.coded) else ()
    stages = stages_of(signature, body, products) if products else ()
    return replace(found, corrected=changed, products=products, stages=stages)


def stages_of(signature: Signature, body: list[Assign], products: tuple[Product, ...]) -> tuple[Program, ...]:
    """The programs that follow each other in a step, each with the products of matrices behind it."""
    every = (*signature.roles, *signature.cells, *signature.vectors)
    written = {r.name for r in every if r.written} | {c.name for c in signature.coded if c.written}
    written -= {plane for c in signature.coded for plane in c.planes if plane != c.name}
    found, made = staged(body, products, written), []
    for k, stage in enumerate(found):
        own = stage_signature(signature, stage, [each for before in found[:k] for each in before.products])
        made.append(replace(lowered(own, decodings(own) + stage.body), products=stage.products))
    return tuple(made)


def body_of(signature: Signature) -> tuple[list[Assign], tuple[Assign, ...], tuple[Product, ...]]:
    """The statements of a rule with its options, between values and new values: with products taken out, the rule's own as it is,
    and the products.
    """
    flags = dict(signature.flags)
    own = straight_line(signature.definition.tree.body, flags)
    for coded in signature.coded:
        own = corrected(coded, own) if coded.format.corrects else own
    ahead, behind = ([s for f in of for s in renamed(f.tree, flags)] for of in (AHEAD, BEHIND))
    made, products = taken_out_products([*ahead, *own, *behind], signature)
    return made, tuple(own), products


def decodings(signature: Signature) -> list[Assign]:
    """What makes values of the planes that are there."""
    of_name = {r.name: r for r in (*signature.roles, *signature.blocked)}
    return [s for coded in decoded(signature) for s in decoding(coded, of_name)]


def lowered(signature: Signature, statements: list[Assign], results: Sequence[str] = ()) -> Program:
    """The program of these statements, and of the codes that they end with. results: of products, known from the beginning."""
    of_name = {r.name: r for r in (*signature.roles, *signature.blocked)}
    end = ending(signature, of_name)
    statements = statements + end.before
    cutter = Cutter(signature, [*end.kept, *(e.variable for e in end.extremes)], results)
    known = names_of(signature) | set(results)
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
    counts = tuple(Expr("count", (shift,)) for shift in COUNT_BITS) if drawn(signature.coded) else ()
    later = tuple(end.extremes), tuple(end.behind), tuple(end.kept)
    return Program(signature.rule.name, signature, passes, (*row, *counts), wide, calls, *later)


def names_of(signature: Signature) -> set[str]:
    """What has a value before the first statement."""
    every = (*signature.cells, *signature.vectors)
    arrays = {r.variable for r in (*signature.roles, *signature.blocked)} | {r.name for r in every}
    return arrays | set(signature.definition.tree.scalars) | {OPTION + n for n in scalars()}
