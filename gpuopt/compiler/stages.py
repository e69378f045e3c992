"""Where a rule is cut at products of matrices: which of its statements run before each, and when a state is stored.

What stands before a product is one stage, what needs its result the next; each stage is a program of its own, with passes if it
sums. Nothing is kept between stages but operands and results: the rest is computed again from parameter, gradient and states, so
a state is stored in the last stage that needs what it was before. Used by `lower` only. Knows no text of any language.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from gpuopt.compiler.kinds import mapped
from gpuopt.compiler.names import CODE, DRAW, OPERAND, RESULT
from gpuopt.compiler.parts import Coded, Product, Role, Signature
from gpuopt.compiler.tree import DRAWING, PRODUCTS, Assign, Expr, inputs
from gpuopt.errors import RuleSyntaxError

LAST = "p"  # what the last stage stores


def taken_out(statements: Iterable[Assign], signature: Signature) -> tuple[list[Assign], tuple[Product, ...]]:
    """The statements with every product replaced by its result, and a statement before that gives its operand. A product of a
    product is made where that one is, in the same memory.

    Raises RuleSyntaxError for tensors that are no matrices.
    """
    flags = dict(signature.flags)
    known = {*signature.definition.tree.scalars, *(s.name for s in signature.rule.states if s.multiplied)}
    found: list[Product] = []
    made: list[Assign] = []

    def change(part: Expr, at: Assign) -> Expr | None:
        if part.op not in PRODUCTS:
            return None
        if not signature.matrix or flags.get("matrix") is False:
            message = (
                f"{part.op} needs a tensor of two or more axes: put it under `if matrix:`, with a flag `matrix: bool`"
            )
            raise RuleSyntaxError(message, at.file, at.line)
        (child,) = part.children()
        operand = mapped(child, lambda inner: change(inner, at))
        words = [word for word in part.args if isinstance(word, str)]
        names = tuple(word for word in words if word not in flags)
        for name in names:
            if name not in known:
                raise RuleSyntaxError(
                    f"{part.op} takes states of matrices and scalars, and `{name}` is neither", at.file, at.line
                )
        names += (DRAW,) if part.op in DRAWING else ()
        values = tuple(flags[word] for word in words if word in flags)
        if child.op in PRODUCTS:
            found.append(replace(found[-1], kind=part.op, words=values, names=names))
            return operand
        k = len(found)
        found.append(Product(part.op, f"{OPERAND}{k}", f"{RESULT}{k}", values, names))
        made.append(replace(at, name=f"{OPERAND}{k}", expr=operand))
        return Expr("name", (f"{RESULT}{k}",))

    for s in statements:
        made.append(replace(s, expr=mapped(s.expr, lambda part, at=s: change(part, at))))  # type: ignore[misc]
    return made, tuple(found)


class Stage(NamedTuple):
    """Its statements, the products that come behind it, and the values that it stores, states and parameter."""

    body: list[Assign]
    products: tuple[Product, ...]
    stored: set[str]


def staged(body: Sequence[Assign], products: Sequence[Product], written: Iterable[str]) -> list[Stage]:
    """The stages of a rule with its options. written: the variables that are wanted at its end."""
    known = levels(body, products)
    found: list[Stage] = []
    remaining = set(written)
    last = max(known[each.operand] for each in products) + 1
    for number in range(last, -1, -1):
        behind = tuple(each for each in products if known[each.operand] == number)
        ready = {name for name in remaining - {LAST} if known.get(name, 0) == number or number == 0}
        stored = ready | ({LAST} if number == last else set())
        while True:
            made = sliced(body, stored | {each.operand for each in behind})
            late = (remaining - stored - {LAST}) & inputs(made)
            if not late:
                break
            stored |= late  # what it was is needed here, so that it may not be stored before
        remaining -= stored
        found.append(Stage(made, behind, stored))
    return found[::-1]


def levels(body: Sequence[Assign], products: Sequence[Product]) -> dict[str, int]:
    """Variable -> the stages that come before its last value is known."""
    of = {each.operand: each for each in products}
    known: dict[str, int] = {}
    for s in body:
        known[s.name] = max((known.get(name, 0) for name in s.expr.names()), default=0)
        if s.name in of:
            known[of[s.name].result] = known[s.name] + 1
    return known


def sliced(body: Sequence[Assign], wanted: set[str]) -> list[Assign]:
    """The statements that the last values of these variables need."""
    found: list[Assign] = []
    for s in reversed(body):
        if s.name in wanted:
            wanted = wanted - {s.name} | s.expr.names()
            found.append(s)
    return found[::-1]


def signature_of(whole: Signature, stage: Stage, before: Iterable[Product]) -> Signature:
    """What a stage reads and writes of the tensors of a rule, operands and results among it. before: the products known by now."""
    read = inputs(stage.body)
    used = {c.name for c in whole.coded if {c.name, f"{CODE}{c.name}_correction"} & read}
    planes = {plane: c for c in whole.coded for plane in c.planes}

    def kept(role: Role) -> Role | None:
        coded = planes.get(role.name)
        name = coded.name if coded else role.name
        written = role.written and name in stage.stored
        needed = name in used if coded else name in read
        there = written or needed or role.name in ("p", "g") or role.shape != "parameter"
        return replace(role, written=written) if there and (role.shape != "blocks" or written or needed) else None

    def of(roles: Iterable[Role]) -> tuple[Role, ...]:
        return tuple(found for role in roles if (found := kept(role)) is not None)

    matrices = [
        Role(name, whole.compute, False) for name in dict.fromkeys(each.result for each in before) if name in read
    ]
    matrices += [Role(name, whole.compute, True) for name in dict.fromkeys(each.operand for each in stage.products)]
    coded = tuple(replace(c, here=c.name in stage.stored) for c in whole.coded)
    return replace(
        whole, roles=(*of(whole.roles), *matrices), cells=of(whole.cells), vectors=of(whole.vectors), coded=coded,
        blocked=of(whole.blocked),
    )  # fmt: skip


def decoded(signature: Signature) -> list[Coded]:
    """The coded values that a stage has all planes of."""
    there = {r.name for r in (*signature.roles, *signature.blocked)}
    return [c for c in signature.coded if there.issuperset(c.planes)]
