"""Rule + flags + options + storage types -> one straight-line `Program`, the only thing an emitter sees.

Called by the backends through `program_for`. Decides every compile-time `if`, puts the options' fragments before and
after the rule, and hoists each maximal scalar-only expression into the row of scalars that the host (or, where a step
may be skipped, the device) computes once a step in float64. Knows no target language.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING

from gpuopt.compiler.names import OPTION
from gpuopt.compiler.tree import COMPARISONS, Assign, Expr, FunctionTree, straight_line
from gpuopt.errors import RuleSyntaxError

if TYPE_CHECKING:
    from gpuopt.rules.definition import Definition
    from gpuopt.rules.language import Rule

WORD = 32  # random bits that one call of the generator gives an element
HALVES = (0, 16)  # the step count travels in two scalars, each exact in every compute type


@dataclass(frozen=True)
class Role:
    """One array per tensor that a kernel walks: `storage` is a name in formats.dtypes."""

    name: str
    storage: str
    written: bool


@dataclass(frozen=True)
class Signature:
    """What distinguishes one compiled kernel from another; hashable, the key of every kernel cache.

    Flags and roles of the options' fragments (`rules/options.py`) have an "@" in front: "@scaled", "@mask". The definition is
    what the rule means when the signature is made.
    """

    rule: Rule
    flags: tuple[tuple[str, object], ...]
    roles: tuple[Role, ...]
    compute: str
    definition: Definition = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "definition", self.rule.definition())


@dataclass(frozen=True)
class Draw:
    """The random bits that storing a role takes: those from `shift` on of the element's word of `stream`."""

    stream: int
    shift: int


@dataclass(frozen=True)
class Program:
    """A straight-line update: `body` assigns array values element by element; `row` are its scalars, float64 formulas.

    draws: role index -> Draw, for roles that are rounded at random; the last scalars of the row are then the step count's lower
    and upper 16 bits.
    """

    name: str
    signature: Signature
    body: tuple[Assign, ...]
    row: tuple[Expr, ...]

    @cached_property
    def draws(self) -> dict[int, Draw]:
        return drawn(self.roles)

    @property
    def streams(self) -> int:
        """Words of random bits that an element takes."""
        return 1 + max((d.stream for d in self.draws.values()), default=-1)

    @property
    def roles(self) -> tuple[Role, ...]:
        return self.signature.roles

    @property
    def compute(self) -> str:
        return self.signature.compute

    @property
    def lanes(self) -> int:
        """Elements that one GPU thread handles at once: 16 bytes of the narrowest floating type."""
        from gpuopt.formats.dtypes import STORAGES

        return 16 // min(STORAGES[r.storage].itemsize for r in self.roles if r.storage != "bool")


def drawn(roles: tuple[Role, ...]) -> dict[int, Draw]:
    """Which random bits each role takes: as many roles share a word as fit into its 32 bits."""
    from gpuopt.formats.dtypes import STORAGES

    made: dict[int, Draw] = {}
    stream, used = 0, 0
    for k, role in enumerate(roles):
        needed = STORAGES[role.storage].random if role.written else 0
        if not needed:
            continue
        if used + needed > WORD:
            stream, used = stream + 1, 0
        made[k] = Draw(stream, used)
        used += needed
    return made


class _Hoister:
    """Splits expressions into array work and row scalars while walking the straight-line body."""

    def __init__(self, arrays: set[str]) -> None:
        self.arrays = arrays
        self.scalars: dict[str, Expr] = {}
        self.row: dict[Expr, int] = {}

    def is_scalar(self, expr: Expr) -> bool:
        return not (expr.names() & self.arrays)

    def assign(self, statement: Assign, roles: set[str]) -> Assign | None:
        if self.is_scalar(statement.expr):
            # An array that is set to a scalar is that scalar in what follows, unrounded, as it is where NumPy runs the rule.
            kept = None
            if statement.name in roles:
                kept = Assign(statement.name, self.hoist(statement.expr), statement.line, statement.file)
            self.scalars[statement.name] = statement.expr.substitute(self.scalars)
            self.arrays.discard(statement.name)
            return kept
        expr = self.hoist(statement.expr)
        self.arrays.add(statement.name)
        self.scalars.pop(statement.name, None)
        return Assign(statement.name, expr, statement.line, statement.file)

    def hoist(self, expr: Expr) -> Expr:
        if self.is_scalar(expr):
            if expr.op in COMPARISONS:
                # Decided in the row, in float64, as Python decides it where NumPy runs the rule.
                decided = self.hoist(Expr("where", (expr, Expr("const", (1.0,)), Expr("const", (0.0,)))))
                return Expr("ne", (decided, Expr("const", (0.0,))))
            expr = expr.substitute(self.scalars)
            if expr.names():
                return Expr("scalar", (self.row.setdefault(expr, len(self.row)),))
            return Expr("const", (constant(expr),))
        args = tuple(self.hoist(a) if isinstance(a, Expr) else a for a in expr.args)
        return Expr(expr.op, args)


def constant(expr: Expr) -> float:
    """The value of an expression without variables, in float64."""
    from gpuopt.compiler.host import print_expr, row_namespace

    return float(eval(print_expr(expr), row_namespace()))


def renamed(tree: FunctionTree, flags: Mapping[str, object]) -> list[Assign]:
    """A fragment's statements, every name but `p` and `g` with an "@" in front, so that none can meet the rule's."""
    statements = straight_line(tree.body, {name: flags[OPTION + name] for name in tree.flags})
    names = {*tree.positional, *tree.scalars, *(s.name for s in statements)} - {"p", "g"}
    values = {name: Expr("name", (OPTION + name,)) for name in names}
    new = {name: OPTION + name for name in names}
    return [Assign(new.get(s.name, s.name), s.expr.substitute(values), s.line, s.file) for s in statements]


@cache
def program_for(signature: Signature) -> Program:
    """The straight-line program of a rule with its options. Raises RuleSyntaxError naming file and line."""
    from gpuopt.rules.options import after, before

    flags = dict(signature.flags)
    tree = signature.definition.tree
    roles = {r.name for r in signature.roles}
    statements = renamed(before.tree, flags)
    statements += straight_line(tree.body, flags)
    statements += renamed(after.tree, flags)
    hoister = _Hoister(set(roles))
    known = roles | set(tree.scalars) | {OPTION + n for n in (*before.tree.scalars, *after.tree.scalars)}
    body = []
    for statement in statements:
        unknown = statement.expr.names() - known
        if unknown:
            own = ", ".join(f"{name} = {value!r}" for name, value in signature.flags if not name.startswith(OPTION))
            message = f"`{sorted(unknown)[0]}` has no value here when {own}: expected one under every choice of flags"
            raise RuleSyntaxError(message, statement.file, statement.line)
        known.add(statement.name)
        if (kept := hoister.assign(statement, roles)) is not None:
            body.append(kept)
    counts = tuple(Expr("count", (shift,)) for shift in HALVES) if drawn(signature.roles) else ()
    return Program(signature.rule.name, signature, tuple(body), (*hoister.row, *counts))
