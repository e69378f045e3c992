"""The rule language: the primitives a rule may call and the decorator that makes a rule out of a Python function.

Written for the authors of rules. On NumPy a rule simply runs as Python on arrays; every other backend gets it through
`gpuopt.compiler`. This file must not know any backend, compiler or storage format.

The language, on purpose tiny, because each of these operations is exactly rounded (or exact) under IEEE 754 and so
gives the same bits everywhere:

- statements: `name = expr`, `if flag:` on compile-time flags, and one final `return p, state, ...`;
- expressions: `+ - * /`, unary minus, comparisons, and `sqrt abs sign minimum maximum where`.

Scalar-only sub-expressions such as `1 - beta1` or `lr * weight_decay` are evaluated once a step on the host in float64
and rounded once to the compute type, exactly as NumPy 2 does with Python floats.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, overload

import numpy as np

from gpuopt.errors import InputError, RuleSyntaxError, caller, entry

if TYPE_CHECKING:
    from gpuopt.compiler.tree import FunctionTree
    from gpuopt.rules.definition import Definition, Prepare

# ---------------------------------------------------------------------------------------------------- primitives
# NumPy's own `where`, `minimum` and `sign` widen to float64 or leave the sign of zero to the SIMD unit; these do not.

_context = threading.local()

# Arrays that are not NumPy's -> their `where(condition, a, b, compute type)` and `sqrt`, added by who runs rules on them.
ELSEWHERE: dict[type, tuple[Callable[..., Any], Callable[[Any], Any]]] = {}


class compute_dtype:
    """Context in which two bare literals meet: `where(x > 0, 1, 0)` has no array to take its dtype from."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.outer = getattr(_context, "dtype", None)
        _context.dtype = self.dtype

    def __exit__(self, *_: object) -> None:
        _context.dtype = self.outer


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where the condition holds, else `b`; literals take the compute type."""
    dtype = getattr(a, "dtype", None) or getattr(b, "dtype", None)
    if not isinstance(condition, np.ndarray | np.generic):
        for kind, (select, _) in ELSEWHERE.items():
            if isinstance(condition, kind):
                return select(condition, a, b, getattr(_context, "dtype", None) or np.float64)
        chosen = a if condition else b  # of scalars: the same for every element
        return np.asarray(chosen, dtype)[()] if isinstance(dtype, np.dtype) else chosen
    dtype = dtype or getattr(_context, "dtype", None) or np.float64
    return np.where(condition, np.asarray(a, dtype), np.asarray(b, dtype))


def minimum(a: Any, b: Any) -> Any:
    """The smaller of both; NaN if either is NaN; `b` where both are equal (so -0.0 and 0.0 have one answer)."""
    return where((a < b) | (a != a), a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger of both; NaN if either is NaN; `b` where both are equal."""
    return where((a > b) | (a != a), a, b)


def sign(x: Any) -> Any:
    """-1, 0 or 1; `sign(0) = sign(-0) = +0` and NaN stays NaN, so a bad gradient is never silently swallowed."""
    return where(x > 0, 1.0, where(x < 0, -1.0, x - x))


def sqrt(x: Any) -> Any:
    """Correctly rounded square root, NaN for negative numbers."""
    if isinstance(x, np.ndarray | np.generic):
        return np.sqrt(x)
    for kind, (_, root) in ELSEWHERE.items():
        if isinstance(x, kind):
            return root(x)
    return math.sqrt(x) if x >= 0 else math.nan


PRIMITIVES: dict[str, Callable[..., Any]] = {
    "sqrt": sqrt,
    "abs": abs,
    "sign": sign,
    "minimum": minimum,
    "maximum": maximum,
    "where": where,
}

# ---------------------------------------------------------------------------------------------------- rules

STATE_KEYS = ("step",)  # what `state_dict` has beside the states of a tensor


@dataclass(frozen=True)
class State:
    """One tensor that a rule keeps beside each parameter, of the parameter's shape.

    name: the variable in the rule; key: its name in `state_dict` (torch's where torch has the optimizer);
    when: the flag that must be true for it to exist; init: its first value, a number or the name of a hyperparameter;
    readonly: an input such as a mask, read by the rule and never written.
    """

    name: str
    key: str
    when: str | None = None
    init: float | str = 0.0
    readonly: bool = False


def _states(spec: Iterable[str] | Mapping[str, str | State]) -> tuple[State, ...]:
    """The states of a rule. Raises RuleSyntaxError at the author's line for what says none, or two that cannot be told apart."""
    if isinstance(spec, str) or not isinstance(spec, Iterable):
        _refuse(f"state = {spec!r}: expected names, such as state=('m',)")
    items = (
        spec.items() if isinstance(spec, Mapping) else [(s.name, s) if isinstance(s, State) else (s, s) for s in spec]
    )
    made = []
    for name, value in items:
        state = State(name, value) if isinstance(value, str) else value
        if not isinstance(state, State) or not isinstance(state.key, str) or not state.key:
            _refuse(f"state {name!r}: {value!r}: expected its name in state_dict(), or State(name, key, init=...)")
        if state.name != name or not isinstance(name, str):
            _refuse(f"state {name!r}: a State called {state.name!r}: expected the same name twice")
        if isinstance(state.init, bool) or not isinstance(state.init, (int, float, str)):
            _refuse(f"state {name!r} begins as {state.init!r}: expected a number or the name of a hyperparameter")
        made.append(state)
    for what, found in (("name", [s.name for s in made]), ("key", [s.key for s in made])):
        for word in found:
            if found.count(word) > 1:
                _refuse(f"two states have the {what} {word!r}: expected another for each")
            if word in (("p", "g") if what == "name" else STATE_KEYS):
                _refuse(f"a state has the {what} {word!r}, which every rule has already: call it something else")
    return tuple(made)


def _refuse(message: str) -> NoReturn:
    raise RuleSyntaxError(message, *caller())


class Rule:
    """An update rule: the function, its states, and the host-side `prepare`. Made by `@rule`, callable on arrays."""

    def __init__(self, function: Callable[..., Any], states: tuple[State, ...], title: str | None) -> None:
        self.function = function
        self.states = states
        self._parse()  # now, so that a mistake is reported where the rule is written
        self.name = function.__name__
        self.title = title or "".join(part.capitalize() for part in self.name.split("_")) or "Rule"
        self.prepare_function: Callable[..., Mapping[str, Any]] | None = None
        self.require_function: Callable[..., str | None] | None = None
        self._asked: Mapping[str, Any] = {}  # what that takes, by the names the optimizer has for it, with its defaults
        self._prepare: Prepare | None = None
        self._definition: Definition | None = None
        self.__doc__ = function.__doc__

    def _parse(self) -> None:
        from gpuopt.compiler.parse import parse_rule

        written = [s.name for s in self.states if not s.readonly]
        self._tree, self._names = parse_rule(self.function, written, [s.name for s in self.states])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __deepcopy__(self, _: Any) -> Rule:
        return self

    def __copy__(self) -> Rule:
        return self

    def __reduce__(self) -> Any:
        from gpuopt.rules.find import find_rule, whereabouts

        return find_rule, whereabouts(self)

    def __repr__(self) -> str:
        return f"<gpuopt rule {self.name}>"

    def definition(self) -> Definition:
        """What the rule means now. The same object as long as no name that it uses is bound again and `prepare` stays what it is.

        Raises RuleSyntaxError naming file and line where it means nothing any more, or `prepare` does not go with it.
        """
        made = self._definition
        if made is not None and self._names.hold() and made.holds():
            return made
        from gpuopt.rules.definition import Definition, Prepare

        if not self._names.hold():
            self._parse()
        if self.prepare_function is not None and (self._prepare is None or not self._prepare.holds()):
            self._prepare = Prepare(self.prepare_function)
        self._definition = Definition(self.function, self.states, self._tree, self._prepare, self._asked)
        return self._definition

    @property
    def tree(self) -> FunctionTree:
        """The checked syntax tree."""
        return self._tree

    @entry
    def prepare(self, function: Callable[..., Mapping[str, Any]] | None = None) -> Callable[..., Mapping[str, Any]]:
        """Decorator: `function(step, *, hyperparameters)` returns the derived scalars, once a step, in float64.

        Any Python will do; it is called once a step. Where it is arithmetic, with `**`, `a if c else b`, min, max, math.exp, log
        and sqrt and this module's functions, kernels can compute it too. The one defined last holds, from the next step on.
        Raises RuleSyntaxError for a function that cannot be called so or returns nothing.
        """
        from gpuopt.rules.definition import Prepare

        if function is None:
            _refuse("`prepare` was called without a function: write the decorator without parentheses")
        self._prepare = Prepare(function)
        self.prepare_function, self._definition = function, None
        return function

    @entry
    def require(self, function: Callable[..., str | None] | None = None) -> Callable[..., str | None]:
        """Decorator: `function(*, hyperparameters)` says what hyperparameters that cannot go together should be, or None."""
        from gpuopt.rules.definition import keywords

        if function is None:
            _refuse("`require` was called without a function: write the decorator without parentheses")
        self._asked = keywords(function, "require", 0, "def _(*, lr):")
        self.require_function, self._definition = function, None
        return function

    @property
    def asked(self) -> frozenset[str]:
        """The hyperparameters that `require` looks at."""
        made = self.definition()
        return frozenset(n for n in self._asked if n in made.hyperparameters or (n == "betas" and made.betas))

    def complaint(self, hyper: Mapping[str, Any]) -> str | None:
        """What is wrong with these hyperparameters together, each of which may be what it is."""
        function = self.require_function
        return function(**{name: hyper[name] for name in self.asked}) if function else None

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Name -> default (`inspect.Parameter.empty` where the caller must give one), flags included, in order."""
        return self.definition().hyperparameters

    def value(self, hyper: Mapping[str, Any], name: str) -> Any:
        """A hyperparameter under the name that the rule has for it: `beta1` is the first of `betas`."""
        betas = self.definition().betas
        return hyper["betas"][betas.index(name)] if name in betas else hyper[name]

    def flags(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """The compile-time constants for these hyperparameters; a flag `has_x` is true where the hyperparameter x is not 0."""
        known = self.hyperparameters
        return {n: plain_flag(hyper[n]) if n in known else bool(self.value(hyper, n[4:])) for n in self.tree.flags}

    def first(self, state: State, hyper: Mapping[str, Any]) -> Any:
        """What a state is before the first step; of a schedule, its first value."""
        found = self.value(hyper, state.init) if isinstance(state.init, str) else state.init
        return found(0) if callable(found) else found

    def active_states(self, flags: Mapping[str, Any]) -> tuple[State, ...]:
        """The states that exist under these flags, in the order of the function's arguments."""
        return tuple(s for s in self.states if s.when is None or flags[s.when])


def plain_flag(value: Any) -> Any:
    """The value of a flag: Python's own True or False for NumPy's."""
    return bool(value) if isinstance(value, np.bool_) else value


def checked_rule(found: object) -> Rule:
    """A rule, or InputError that says how to make one."""
    if isinstance(found, Rule):
        return found
    if isinstance(found, str):
        raise InputError(f"{found!r} is a name, not a rule: expected gpuopt.create({found!r}, params, ...)")
    if hasattr(found, "made_by"):
        title = getattr(found, "__name__", type(found).__name__)
        raise InputError(
            f"rule: {title} is an optimizer already: expected a rule, made by @gpuopt.rule(state=...), or {title}(params, ...)"
        )
    name = getattr(found, "__name__", "f")
    what = f"the function `{name}`" if inspect.isroutine(found) else f"an object of type {type(found).__name__}"
    raise InputError(
        f"rule: found {what}: expected a rule, made by @gpuopt.rule(state=...) above `def {name}(p, g, ...)`"
    )


@overload
def rule(function: Callable[..., Any], /) -> Rule: ...
@overload
def rule(
    *, state: Iterable[str] | Mapping[str, str | State] = (), title: str | None = None
) -> Callable[[Callable[..., Any]], Rule]: ...
@entry
def rule(
    function: Callable[..., Any] | None = None,
    /,
    *,
    state: Iterable[str] | Mapping[str, str | State] = (),
    title: str | None = None,
) -> Rule | Callable[[Callable[..., Any]], Rule]:
    """Make an update rule out of a function `f(p, g, *states, *, scalars, flags)` that returns `p, *states`.

    state: the names of the states in the order of the arguments, or a mapping name -> key or `State`.
    title: the class name of the optimizer made from it, the function's name in CamelCase by default.
    A rule without states needs no parentheses: `@rule`.
    Raises RuleSyntaxError (a SyntaxError) naming file and line for anything outside the language.

    >>> @rule(state=("m",))
    ... def momentum(p, g, m, *, lr, beta=0.9):
    ...     m = m * beta + g
    ...     p = p - lr * m
    ...     return p, m
    """

    if title is not None and (not isinstance(title, str) or not title):
        _refuse(f"title = {title!r}: expected a name")
    states = _states(state)
    if function is not None:
        return Rule(function, states, title)

    @entry
    def decorate(function: Callable[..., Any]) -> Rule:
        return Rule(function, states, title)

    return decorate
