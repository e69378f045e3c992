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
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from gpuopt.compiler.names import OPTION
from gpuopt.errors import InputError, entry
from gpuopt.rules.between import EVALUATE, RESUME, Between
from gpuopt.rules.declared import (
    BOUNDS,
    LONGEST,
    SHAPES,
    SIDES,
    State,
    checked_ranges,
    checked_states,
    checked_tuples,
    refuse,
)
from gpuopt.rules.definition import MATRIX, Definition, Prepare
from gpuopt.rules.primitives import (
    column_sum,
    columns,
    epsilon,
    global_sum,
    maximum,
    minimum,
    numel,
    row_sum,
    rows,
    sign,
    sqrt,
    tensor_max,
    tensor_sum,
    where,
)
from gpuopt.rules.products import (
    from_bases,
    learn_bases,
    learn_roots,
    learn_sides,
    orthogonalize,
    orthogonalize_largest,
    scale_by_projection,
    to_bases,
    turn_bases,
    whiten,
)

if TYPE_CHECKING:
    from gpuopt.compiler.tree import FunctionTree

__all__ = [
    "Rule",
    "State",
    "checked_rule",
    "column_sum",
    "columns",
    "epsilon",
    "from_bases",
    "global_sum",
    "learn_bases",
    "learn_roots",
    "learn_sides",
    "maximum",
    "minimum",
    "numel",
    "orthogonalize",
    "orthogonalize_largest",
    "plain_flag",
    "row_sum",
    "rows",
    "rule",
    "scale_by_projection",
    "sign",
    "sqrt",
    "tensor_max",
    "tensor_sum",
    "to_bases",
    "turn_bases",
    "where",
    "whiten",
]


CONVOLUTIONS = "convolutions"


class Rule:
    """An update rule: the function, its states, and the host-side `prepare`. Made by `@rule`, callable on arrays."""

    def __init__(
        self,
        function: Callable[..., Any],
        states: tuple[State, ...],
        title: str | None,
        ranges: Mapping[str, str],
        tuples: Mapping[str, tuple[str, ...]] = {},
        flatten: bool | str = False,
        rest: str = "vector",
    ) -> None:
        self.function, self.ranges, self._tuples, self.flatten = function, dict(ranges), dict(tuples), flatten
        self.states, self.rest = states, rest
        self._parse()  # now, so that a mistake is reported where the rule is written
        self.name = function.__name__
        self.title = title or "".join(part.capitalize() for part in self.name.split("_")) or "Rule"
        self.prepare_function: Callable[..., Mapping[str, Any]] | None = None
        self.require_function: Callable[..., str | None] | None = None
        self.between: dict[str, Between] = {}  # what may be asked for between two steps, by name
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

        if not self._names.hold():
            self._parse()
        if self.prepare_function is not None and (self._prepare is None or not self._prepare.holds()):
            self._prepare = Prepare(self.prepare_function)
        parts = self.states, self._tree, self._prepare, self._asked, self._tuples
        self._definition = Definition(self.function, *parts)
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
        if function is None:
            refuse("`prepare` was called without a function: write the decorator without parentheses")
        self._prepare = Prepare(function)
        self.prepare_function, self._definition = function, None
        return function

    @entry
    def require(self, function: Callable[..., str | None] | None = None) -> Callable[..., str | None]:
        """Decorator: `function(*, hyperparameters)` says what hyperparameters that cannot go together should be, or None."""
        from gpuopt.rules.definition import keywords

        if function is None:
            refuse("`require` was called without a function: write the decorator without parentheses")
        self._asked = keywords(function, "require", 0, "def _(*, lr):")
        self.require_function, self._definition = function, None
        return function

    @entry
    def evaluate(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: `function(p, states, *, hyperparameters)` gives the parameters to evaluate, where they are not those that are
        trained: the optimizer then has `eval()`, `train()` and `averaged_params()`. Goes with `resume`.
        """
        return self._add(EVALUATE, function, "p")

    @entry
    def resume(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: the inverse of `evaluate`, the parameters to train of those to evaluate."""
        return self._add(RESUME, function, "p")

    @entry
    def observe(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: `function(g, state, *, hyperparameters)` gives the state anew from a gradient of another kind, which the
        optimizer takes by a method of the function's name between two steps, whenever it is given one.
        """
        return self._add(function.__name__, function, "g")

    def _add(self, name: str, function: Callable[..., Any], first: str) -> Callable[..., Any]:
        made = Between(function)
        wrong = made.complaint(name, first, [s.name for s in self.states], self.hyperparameters, self.name)
        if wrong:
            refuse(wrong)
        self.between[name] = made
        return function

    @property
    def asked(self) -> frozenset[str]:
        """The hyperparameters that `require` looks at."""
        made = self.definition()
        return frozenset(n for n in self._asked if n in made.hyperparameters or n in made.tuples)

    def complaint(self, hyper: Mapping[str, Any]) -> str | None:
        """What is wrong with these hyperparameters together, each of which may be what it is."""
        function = self.require_function
        return function(**{name: hyper[name] for name in self.asked}) if function else None

    @property
    def joint(self) -> bool:
        """Whether a step of one tensor depends on all of them."""
        from gpuopt.compiler.tree import operations

        return "global_sum" in operations(self.definition().tree.body) or any(s.shape == "global" for s in self.states)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Name -> default (`inspect.Parameter.empty` where the caller must give one), flags included, in order."""
        return self.definition().hyperparameters

    def value(self, hyper: Mapping[str, Any], name: str) -> Any:
        """A hyperparameter as the rule sees it: `beta1` is the first of `betas`; there is no decay where an option decays."""
        if name == "weight_decay" and hyper.get("weight_decay_mode"):
            return 0.0
        for together, members in self.definition().tuples.items():
            if name in members:
                return hyper[together][members.index(name)]
        return hyper[name]

    def flags(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """The compile-time constants for these hyperparameters; a flag `has_x` is true where the hyperparameter x is not 0 (nor
        None). Whether there is a decay does not depend on who carries it out. `matrix` is false for tensors of any shape where a
        group says so. Those of sides are how long these may be, until the tensor is known, see `shaped`.
        """
        known, sides = self.hyperparameters, self.definition().sides
        found = {n: n[4:] for n in self.tree.flags if n not in known and n not in (MATRIX, *sides)}
        given = {n: bool(hyper[x] if x in hyper else self.value(hyper, x)) for n, x in found.items()}
        given |= {MATRIX: bool(hyper.get(MATRIX, True))}
        for name in sides:
            longest = self.value(hyper, LONGEST)
            given[name] = longest(0) if callable(longest) else longest
        return {n: given[n] if n in given else plain_flag(hyper[n]) for n in self.tree.flags}

    def shaped(
        self, flags: Mapping[str, Any], shape: tuple[int, ...], pairs: bool = False, dtype: str = "float32"
    ) -> dict[str, Any]:
        """The flags for a tensor of this shape: `matrix` says whether it has rows and columns, that of the options where one of
        them asks; `left` and `right`, whether the columns and the rows of a matrix are short enough. pairs: of complex numbers.
        """
        asks = [name for name in (MATRIX, OPTION + MATRIX) if flags.get(name)]
        found = {**flags, **dict.fromkeys(asks, len(shape) > 1 and not pairs)}
        for name in self.definition().sides:
            length = self.matrix(shape)[SIDES.index(name)]
            found[name] = bool(found.get(MATRIX)) and (flags[name] is True or length <= flags[name])
        return found

    def axis(self, shape: tuple[int, ...]) -> int:
        """The first axis of a tensor that counts its columns: the last one, or all behind the first, flattened. So are those of a
        rule that looks at no rows or columns itself: options that do take each output of a convolution for a row.
        """
        looks = any(s.shape in ("row", "column") for s in self.states) or self.definition().along
        whole = len(shape) > 3 if self.flatten == CONVOLUTIONS else self.flatten or not looks
        return min(1, len(shape)) if whole else max(0, len(shape) - 1)

    def matrix(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of each matrix of a tensor of this shape; of a vector, one row."""
        axis = self.axis(shape)
        return (shape[axis - 1] if axis else 1), math.prod(shape[axis:])

    def shape_of(self, state: State, parameter: tuple[int, ...], hyper: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape of a state beside a parameter of this one; hyper: of its group, as it is before the first step."""
        bound = hyper.get(BOUNDS.get(state.shape, ""), 0)
        return SHAPES[state.shape](parameter, self.axis(parameter), int(bound(0) if callable(bound) else bound))

    def first(self, state: State, hyper: Mapping[str, Any]) -> Any:
        """What a state is before the first step; of a schedule, its first value."""
        found = self.value(hyper, state.init) if isinstance(state.init, str) else state.init
        return found(0) if callable(found) else found

    def active_states(self, flags: Mapping[str, Any]) -> tuple[State, ...]:
        """The states that exist under these flags, in the order of the function's arguments."""
        return tuple(s for s in self.states if s.exists(flags))


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
    *,
    state: Iterable[str | State] | Mapping[str, str | State] = (),
    title: str | None = None,
    ranges: Mapping[str, str] = {},
    tuples: Mapping[str, tuple[str, ...]] = {},
    flatten: bool | str = False,
    rest: str = "vector",
) -> Callable[[Callable[..., Any]], Rule]: ...
@entry
def rule(
    function: Callable[..., Any] | None = None,
    /,
    *,
    state: Iterable[str | State] | Mapping[str, str | State] = (),
    title: str | None = None,
    ranges: Mapping[str, str] = {},
    tuples: Mapping[str, tuple[str, ...]] = {},
    flatten: bool | str = False,
    rest: str = "vector",
) -> Rule | Callable[[Callable[..., Any]], Rule]:
    """Make an update rule out of a function `f(p, g, *states, *, scalars, flags)` that returns `p, *states`.

    state: the names of the states in the order of the arguments, or a mapping name -> key or `State`.
    title: the class name of the optimizer made from it, the function's name in CamelCase by default.
    ranges: what hyperparameters may be, such as {"alpha": "[0, 1]"}; lr, eps, betas and the like have theirs.
    tuples: what an optimizer takes several hyperparameters together as, such as {"nus": ("nu1", "nu2")}; beta1, beta2 ... are
    `betas` of themselves. flatten: the rows of a tensor of three or more axes are counted by the first axis, as the channels of a
    convolution, and its columns by all others; by default it is a batch of matrices of the last two axes; "convolutions" flattens
    those of four axes or more, and three are a batch, of experts say.
    rest: what `opt.routing()` calls the steps of tensors for which the flag `matrix` is false, of a rule that multiplies matrices.
    A rule without states needs no parentheses: `@rule`.
    Raises RuleSyntaxError (a SyntaxError) naming file and line for anything outside the language.

    >>> @rule(state=("m",))
    ... def momentum(p, g, m, *, lr, beta=0.9):
    ...     m = m * beta + g
    ...     p = p - lr * m
    ...     return p, m
    """

    if title is not None and (not isinstance(title, str) or not title):
        refuse(f"title = {title!r}: expected a name")
    if not isinstance(flatten, bool) and flatten != CONVOLUTIONS:
        refuse(f"flatten = {flatten!r}: expected True, False or {CONVOLUTIONS!r}")
    states, ranges, tuples = checked_states(state), checked_ranges(ranges), checked_tuples(tuples)
    if function is not None:
        return Rule(function, states, title, ranges, tuples, flatten, rest)

    @entry
    def decorate(function: Callable[..., Any]) -> Rule:
        return Rule(function, states, title, ranges, tuples, flatten, rest)

    return decorate
