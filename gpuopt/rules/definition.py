"""What a rule means at one moment: its function and its `prepare` with every name resolved, and what follows for a caller.

Made by `rules.language.Rule`, anew where a name is bound again or `prepare` is defined again; kernels belong to a Definition, so
that no text of an older one ever runs. Knows no backend and no emitter.
"""

from __future__ import annotations

import inspect
import numbers
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gpuopt.compiler.origin import place
from gpuopt.compiler.tree import PRODUCTS, operations
from gpuopt.errors import RuleSyntaxError
from gpuopt.rules.declared import IDENTITY, LONGEST, PARAMETER, SIDES

if TYPE_CHECKING:
    from gpuopt.compiler.resolve import Names
    from gpuopt.compiler.tree import FunctionTree
    from gpuopt.rules.declared import State

Parameter = inspect.Parameter
ALONG = ("row_sum", "column_sum", "rows", "columns", *PRODUCTS)
MATRIX = "matrix"  # the flag that a tensor's shape decides
_BETA = re.compile("beta[0-9]+", re.ASCII)


def beta_names(names: Mapping[str, Any]) -> list[str]:
    """Those that are beta1, beta2 ..., by number: the order of `betas`, whatever the order of the arguments."""
    return sorted((n for n in names if _BETA.fullmatch(n)), key=lambda n: (int(n[4:]), n))


def keywords(function: Callable[..., Any], what: str, first: int, example: str) -> dict[str, Any]:
    """Name -> default of the keyword-only arguments, behind `first` positional ones.

    Raises RuleSyntaxError unless the function can be called so.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        found = type(function).__name__
        raise RuleSyntaxError(f"{what} is a function such as `{example}`, found {found}", *place(function)) from None
    code = getattr(function, "__code__", None)
    if code is not None and code.co_flags & (inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR):
        raise RuleSyntaxError(f"{what} is a plain function, without async and yield: `{example}`", *place(function))
    behind = parameters[first:]
    by_position = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    wrong = [p for p in behind if p.kind is not Parameter.KEYWORD_ONLY and (first or p.kind not in by_position[1:])]
    if len(parameters) < first or any(p.kind not in by_position for p in parameters[:first]):
        raise RuleSyntaxError(f"{what} takes `step` first: `{example}`", *place(function))
    if wrong:
        raise RuleSyntaxError(
            f"`{wrong[0]}`: {what} takes hyperparameters by name, each of them named behind `*`: `{example}`",
            *place(function),
        )
    return {p.name: p.default for p in behind}


class Prepare:
    """A `prepare` function: what it takes, what it returns, and its tree where the language has words for all of it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        from gpuopt.compiler.parse import parse_prepare, refuse_reserved, returned_names

        self.function = function
        self.takes = keywords(function, "prepare", 1, "def _(step, *, lr):")
        parsed = parse_prepare(function)
        self.tree: FunctionTree | None = parsed[0] if parsed else None
        self.names: Names | None = parsed[1] if parsed else None
        self.gives = self.tree.outputs if self.tree else returned_names(function)

        def fail(where: Any, message: str) -> Any:
            raise RuleSyntaxError(message, *where)

        if "step" in self.takes:
            fail(place(function), "`step` is the first argument of prepare: call this hyperparameter something else")
        for name in self.gives or ():
            if name in self.takes:
                fail(
                    place(function),
                    f"prepare returns `{name}`, which it takes as a hyperparameter: give it another name",
                )
        refuse_reserved(fail, dict.fromkeys([*filter(self.asks, self.takes), *(self.gives or ())], place(function)))

    def asks(self, name: str) -> bool:
        """Whether an argument is a hyperparameter. One with a default that is no number, a table or a cache, is its own affair."""
        default = self.takes[name]
        return default is Parameter.empty or isinstance(default, numbers.Real)

    def holds(self) -> bool:
        """Whether its names stand for what they stood for. Python itself looks them up where Python runs it."""
        return self.names is None or self.names.hold()


class Definition:
    """tree: the rule's; prepare: None where a rule has none. Raises RuleSyntaxError where both do not go together."""

    def __init__(
        self,
        function: Callable[..., Any],
        states: tuple[State, ...],
        tree: FunctionTree,
        prepare: Prepare | None,
        asked: Mapping[str, Any],
        tuples: Mapping[str, tuple[str, ...]],
    ) -> None:
        self.function, self.tree, self.prepare = function, tree, prepare
        own = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
        self._members = [name for members in tuples.values() for name in members]
        # The hyperparameters that prepare takes, and its tree, if all that it needs are numbers.
        takes = prepare.takes if prepare else {}
        self.arguments = tuple(n for n in takes if n in own or (prepare is not None and prepare.asks(n)))
        words = [n for n in takes if n not in self.arguments or isinstance(tree.flags.get(n, (0,))[0], str)]
        self.prepare_tree = prepare.tree if prepare and not words else None
        found = self._defaults(own)
        self.prepared = self._prepared(found)
        self.sides = tuple(n for n in SIDES if n in tree.flags and LONGEST in found)  # flags that shapes decide too
        derived = {*self.prepared, *(n for n in tree.flags if n == MATRIX or (n.startswith("has_") and n[4:] in found))}
        derived |= {*self.sides}
        self.hyperparameters = {name: default for name, default in found.items() if name not in derived}
        self.tuples = self._tuples(tuples)
        for state in states:
            self._check_state(state)
        known = {*self.hyperparameters, *self.tuples}
        for name in self.arguments:
            if name not in self.hyperparameters:
                self.fail(
                    f"prepare takes `{name}`, which is derived itself and no hyperparameter: take what it follows from"
                )
        for name, default in asked.items():
            if name not in known and default is Parameter.empty:
                self.fail(f"require asks for {name!r}: expected one of {', '.join(sorted(known))}")

    def fail(self, message: str) -> Any:
        """Raise RuleSyntaxError at the rule."""
        raise RuleSyntaxError(message, self.tree.file, self.tree.line)

    @cached_property
    def along(self) -> bool:
        """Whether it looks at rows and columns, which a tensor of one axis has not."""
        return not operations(self.tree.body).isdisjoint(ALONG)

    @cached_property
    def multiplies(self) -> bool:
        """Whether it asks for products of matrices."""
        return not operations(self.tree.body).isdisjoint(PRODUCTS)

    def _tuples(self, given: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """What an optimizer takes several hyperparameters together as -> their names; `betas` of itself."""
        betas = tuple(beta_names(self.hyperparameters))
        found = ({"betas": betas} if betas else {}) | dict(given)
        for name, members in found.items():
            for member in members:
                if member in self.tree.flags:
                    self.fail(
                        f"`{member}` is a flag here, and one of an optimizer's `{name}` by its name: call it something else"
                    )
                if member not in self.hyperparameters:
                    self.fail(f"tuples: `{name}` has `{member}`, which is no hyperparameter of this rule")
        return found

    @property
    def on_host(self) -> bool:
        """Whether `prepare` is Python that only Python can run."""
        return self.prepare is not None and self.prepare_tree is None

    def _defaults(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Name -> default of every keyword of both functions, the rule's first; one that has a default decides."""
        found = dict(own)
        for name in self.arguments:
            default = self.prepare.takes[name] if self.prepare else Parameter.empty
            if found.get(name, Parameter.empty) is Parameter.empty:
                found[name] = default
            elif default is not Parameter.empty and default != found[name]:
                self.fail(
                    f"`{name}` is {found[name]!r} by default here and {default!r} in prepare: expected one default"
                )
        return found

    def _prepared(self, found: Mapping[str, Any]) -> tuple[str, ...]:
        """The scalars that `prepare` returns: as its text says, else those that nobody else can give."""
        if self.prepare is None:
            return ()
        if self.prepare.gives is not None:
            for name in self.prepare.gives:
                if name in self.tree.flags:
                    self.fail(f"prepare returns `{name}`, which is a compile-time flag of this rule: return a number")
            return self.prepare.gives
        given = {*self.prepare.takes, *beta_names(found), *self._members, "lr"}
        return tuple(n for n in self.tree.scalars if found[n] is Parameter.empty and n not in given)

    def _check_state(self, state: State) -> None:
        flag, choice = state.condition
        if state.when is not None and choice not in self.tree.flags.get(flag, ()):
            flags = ", ".join(self.tree.flags) or "none"
            self.fail(f"state {state.name!r} exists when {state.when!r}, which is no flag of this rule: it has {flags}")
        if isinstance(state.init, str) and state.init not in (PARAMETER, IDENTITY, *self.hyperparameters):
            known = ", ".join(self.hyperparameters) or "none"
            self.fail(
                f"state {state.name!r} begins as {state.init!r}, which is no hyperparameter of this rule: it has {known}"
            )

    def holds(self) -> bool:
        """Whether `prepare` means what it meant when this was made; the rule looks after itself."""
        return self.prepare is None or self.prepare.holds()

    def hint(self, name: str) -> str:
        """What may be wrong where nobody gave this hyperparameter, to put behind "needs it"."""
        if self.prepare is None or name in self.arguments:
            return ""
        return f" (prepare returns {', '.join(self.prepared) or 'nothing that the rule takes'}, not {name})"
