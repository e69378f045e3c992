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
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gpuopt.compiler.tree import FunctionTree

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
    if isinstance(spec, Mapping):
        return tuple(s if isinstance(s, State) else State(name, s) for name, s in spec.items())
    return tuple(State(name, name) for name in spec)


class Rule:
    """An update rule: the function, its states, and the host-side `prepare`. Made by `@rule`, callable on arrays."""

    def __init__(self, function: Callable[..., Any], states: tuple[State, ...], title: str | None) -> None:
        self.function = function
        self.states = states
        self.name = function.__name__
        self.title = title or "".join(part.capitalize() for part in self.name.split("_"))
        self.prepare_function: Callable[..., dict[str, Any]] | None = None
        self.require_function: Callable[..., str | None] | None = None
        self.asked: frozenset[str] = frozenset()  # what that looks at, by the names the optimizer has for it
        self.__doc__ = function.__doc__
        _ = self.tree  # parse now, so that a mistake is reported where the rule is written

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __deepcopy__(self, _: Any) -> Rule:
        return self

    def __reduce__(self) -> Any:
        return _find_rule, (self.function.__module__, self.name)

    def __repr__(self) -> str:
        return f"<gpuopt rule {self.name}>"

    @cached_property
    def tree(self) -> FunctionTree:
        """The checked syntax tree. Raises RuleSyntaxError naming file and line."""
        from gpuopt.compiler.parse import parse_rule

        written = tuple(s.name for s in self.states if not s.readonly)
        return parse_rule(self.function, written, tuple(s.name for s in self.states))

    @cached_property
    def prepare_tree(self) -> FunctionTree | None:
        """The checked tree of `prepare`, or None if there is none or it uses Python beyond the prepare language."""
        from gpuopt.compiler.parse import parse_prepare

        return parse_prepare(self.prepare_function) if self.prepare_function else None

    def prepare(self, function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        """Decorator: `function(step, *, hyperparameters)` returns the derived scalars, once a step, in float64."""
        from gpuopt.compiler.parse import refuse_option_names

        self.prepare_function = function
        for cached in ("prepare_tree", "hyperparameters", "prepared"):
            self.__dict__.pop(cached, None)
        refuse_option_names(function, inspect.signature(function).parameters)
        return function

    def require(self, function: Callable[..., str | None]) -> Callable[..., str | None]:
        """Decorator: `function(*, hyperparameters)` says what hyperparameters that cannot go together should be, or None."""
        self.require_function, self.asked = function, frozenset(inspect.signature(function).parameters)
        return function

    def complaint(self, hyper: Mapping[str, Any]) -> str | None:
        """What is wrong with these hyperparameters together, each of which may be what it is."""
        function = self.require_function
        return function(**{name: hyper[name] for name in self.asked}) if function else None

    @cached_property
    def hyperparameters(self) -> dict[str, Any]:
        """Name -> default (`inspect.Parameter.empty` where the caller must give one), flags included, in order."""
        found: dict[str, Any] = {}
        for function in (self.function, self.prepare_function):
            if function is not None:
                for name, parameter in inspect.signature(function).parameters.items():
                    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                        found.setdefault(name, parameter.default)
        derived = set(self.prepared) | {name for name in found if name.startswith("has_") and name[4:] in found}
        return {name: default for name, default in found.items() if name not in derived}

    @cached_property
    def prepared(self) -> tuple[str, ...]:
        """Names of the scalars that `prepare` returns."""
        if self.prepare_function is None:
            return ()
        if self.prepare_tree is not None:
            return self.prepare_tree.outputs
        parameters = inspect.signature(self.function).parameters.values()
        taken = set(inspect.signature(self.prepare_function).parameters)
        return tuple(
            p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in taken
        )

    def flags(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """The compile-time constants for these hyperparameters; a flag `has_x` is true where the hyperparameter x is not 0."""
        values: dict[str, Any] = {}
        for name in self.tree.flags:
            values[name] = hyper[name] if name in self.hyperparameters else bool(hyper[name[4:]])
        return values

    def active_states(self, flags: Mapping[str, Any]) -> tuple[State, ...]:
        """The states that exist under these flags, in the order of the function's arguments."""
        return tuple(s for s in self.states if s.when is None or flags[s.when])


def _find_rule(module: str, name: str) -> Rule:
    """A pickled rule: the one of that name in its module, as Python pickles functions."""
    found = getattr(import_module(module), name)
    assert isinstance(found, Rule)
    return found


def rule(
    *, state: Iterable[str] | Mapping[str, str | State] = (), title: str | None = None
) -> Callable[[Callable[..., Any]], Rule]:
    """Make an update rule out of a function `f(p, g, *states, *, scalars, flags)` that returns `p, *states`.

    state: the names of the states in the order of the arguments, or a mapping name -> key or `State`.
    title: the class name of the optimizer made from it, the function's name in CamelCase by default.
    Raises RuleSyntaxError (a SyntaxError) naming file and line for anything outside the language.

    >>> @rule(state=("m",))
    ... def momentum(p, g, m, *, lr, beta=0.9):
    ...     m = m * beta + g
    ...     p = p - lr * m
    ...     return p, m
    """

    def decorate(function: Callable[..., Any]) -> Rule:
        return Rule(function, _states(state), title)

    return decorate
