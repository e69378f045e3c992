"""What a rule declares beside its function: states, what hyperparameters may be, and which are taken together as one tuple.

Checked by `rules.language` where a rule is made, so that a mistake is reported at the author's line; `State` is read by all who
keep or move states. Knows no function of a rule and no optimizer.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from gpuopt.errors import RuleSyntaxError, caller


def of_matrices(
    matrix: Callable[[int, int, int], tuple[int, int]],
) -> Callable[[tuple[int, ...], int, int], tuple[int, ...]]:
    """The shape of a state of one matrix beside each matrix of a tensor, by its rows, its columns and the bound."""

    def shape_of(shape: tuple[int, ...], axis: int, bound: int) -> tuple[int, ...]:
        first = max(0, axis - 1)
        return *shape[:first], *matrix(math.prod(shape[first:axis]), math.prod(shape[axis:]), bound)

    return shape_of


# Of a state beside a parameter; axis: the parameter's first one that counts columns; bound: what BOUNDS says.
HIDDEN: dict[str, Callable[[tuple[int, ...], int, int], tuple[int, ...]]] = {
    "left": of_matrices(lambda rows, columns, _: (rows, rows)),
    "right": of_matrices(lambda rows, columns, _: (columns, columns)),
    "left_factor": of_matrices(lambda rows, columns, most: (rows if rows <= most else 1, rows)),
    "right_factor": of_matrices(lambda rows, columns, most: (columns if columns <= most else 1, columns)),
    "projection": of_matrices(lambda rows, columns, rank: (min(rank, rows, columns), min(rows, columns))),
    "projected": of_matrices(
        lambda rows, columns, rank: (min(rank, rows), columns) if rows < columns else (rows, min(rank, columns))
    ),
    "matrix": of_matrices(lambda rows, columns, _: (1, 1)),
}  # which no kernel knows
SHAPES: dict[str, Callable[[tuple[int, ...], int, int], tuple[int, ...]]] = {
    "parameter": lambda shape, axis, _: shape,
    "scalar": lambda shape, axis, _: (),
    "global": lambda shape, axis, _: (),
    "row": lambda shape, axis, _: (*shape[:axis], *[1] * len(shape[axis:])),
    "column": lambda shape, axis, _: (*shape[: axis - 1], 1, *shape[axis:]),
    **HIDDEN,
}
SIDES = ("left", "right")  # shapes of square states, and flags: whether there are some
LONGEST = "max_precond_dim"  # the hyperparameter that says how long a side with some may be
# Of shapes the hyperparameter that bounds them.
BOUNDS = dict.fromkeys(("projection", "projected"), "rank") | dict.fromkeys(
    ("left_factor", "right_factor"), "max_size_triangular"
)
_INTERVAL = re.compile(r"[\[(] *-?(inf|[\d.e+-]+) *, *-?(inf|[\d.e+-]+) *[\])]")
HOLDS = ("numbers", "squares", "sizes")
NOT = "not "
STATE_KEYS = ("step",)  # what `state_dict` has beside the states of a tensor


PARAMETER = "parameter"  # a state that begins as the parameter is
IDENTITY = "identity"  # one that begins as the matrix that changes no other


@dataclass(frozen=True)
class State:
    """One tensor that a rule keeps beside each parameter, of the parameter's shape.

    name: the variable in the rule; key: its name in `state_dict` (torch's where torch has the optimizer); when: the flag that must
    be true for it to exist, or "not flag", or "flag == 'choice'"; init: its first value, a number, the name of a hyperparameter,
    "parameter", what the parameter is before its first step, or "identity", of a square matrix; readonly: read by the rule and
    never written, as such a state, or a mask. shape: "parameter" (as the parameter), "scalar" (one number a tensor), "global" (one
    number for all tensors), "row" or "column" (one a row or column of the matrix, see `rule`); of one matrix beside each matrix,
    which only products of matrices read and write, so that it is readonly, "left" or "right" (square, of as many rows as the matrix
    has, or columns), "left_factor" or "right_factor" (the same, of one row where a side is longer than the hyperparameter
    `max_size_triangular`), "projection" (of the shorter side to as many rows as `rank` says), "projected" (what is behind it) or
    "matrix" (one number). A readonly row or column is read by the rule and written by products. exact: parameters in another
    place, which are rounded only where `state_format` names them. holds: "numbers", of either sign; "squares", averages of what is
    never negative, through whose root an update is divided; or "sizes", never negative either, which change by factors or only
    grow: in fewer bits each of them is kept in another way.

    plane: the dtype of a plane of the parameter or of a state, see `optim.keeping`, which no function of a rule takes, and per: how
    many elements of a row have one number of it; empty and 1 for all others.
    """

    name: str
    key: str
    when: str | None = None
    init: float | str = 0.0
    readonly: bool = False
    shape: str = "parameter"
    exact: bool = False
    holds: str = "numbers"
    plane: str = ""
    per: int = 1

    @property
    def cell(self) -> bool:
        """Whether it is one number."""
        return self.shape in ("scalar", "global")

    @property
    def walked(self) -> bool:
        """Whether it is of the parameter's shape."""
        return self.shape == "parameter"

    @property
    def hidden(self) -> bool:
        """Whether it is a matrix beside each matrix, which no kernel knows."""
        return self.shape in HIDDEN

    @property
    def multiplied(self) -> bool:
        """Whether products of matrices take it, and only they write it."""
        return self.hidden or (self.readonly and self.shape in ("row", "column"))

    @property
    def large(self) -> bool:
        """Whether it grows with the parameter: not one number for a tensor, row or column."""
        return self.shape in ("parameter", "blocks")

    @property
    def condition(self) -> tuple[str, object]:
        """The flag that it depends on, and what that must be."""
        flag, _, choice = str(self.when).partition(" == ")
        return flag.removeprefix(NOT), ast.literal_eval(choice) if choice else not flag.startswith(NOT)

    def exists(self, flags: Mapping[str, Any]) -> bool:
        """Whether it is there under these flags."""
        flag, choice = self.condition
        return self.when is None or flags[flag] == choice


def checked_states(spec: Iterable[str | State] | Mapping[str, str | State]) -> tuple[State, ...]:
    """The states of a rule. Raises RuleSyntaxError at the author's line for what says none, or two that cannot be told apart."""
    if isinstance(spec, str) or not isinstance(spec, Iterable):
        refuse(f"state = {spec!r}: expected names, such as state=('m',)")
    items = (
        spec.items() if isinstance(spec, Mapping) else [(s.name, s) if isinstance(s, State) else (s, s) for s in spec]
    )
    made = []
    for name, value in items:
        state = State(name, value) if isinstance(value, str) else value
        if not isinstance(state, State) or not isinstance(state.key, str) or not state.key:
            refuse(f"state {name!r}: {value!r}: expected its name in state_dict(), or State(name, key, init=...)")
        if state.name != name or not isinstance(name, str):
            refuse(f"state {name!r}: a State called {state.name!r}: expected the same name twice")
        if isinstance(state.init, bool) or not isinstance(state.init, (int, float, str)):
            refuse(f"state {name!r} begins as {state.init!r}: expected a number or the name of a hyperparameter")
        if state.init == PARAMETER and not state.walked:
            refuse(f"state {name!r} begins as the parameter: expected one of its shape, not {state.shape!r}")
        if state.init == IDENTITY and state.shape not in SIDES:
            refuse(
                f"state {name!r} begins as the identity: expected the shape of a side, {' or '.join(SIDES)}, not {state.shape!r}"
            )
        if state.holds not in HOLDS:
            refuse(f"state {name!r}: holds = {state.holds!r}: expected one of {', '.join(HOLDS)}")
        if state.shape not in SHAPES:
            refuse(f"state {name!r}: shape = {state.shape!r}: expected one of {', '.join(SHAPES)}")
        if state.hidden and not state.readonly:
            refuse(f"state {name!r}: shape = {state.shape!r}: only products write it, expected readonly=True")
        made.append(state)
    for what, found in (("name", [s.name for s in made]), ("key", [s.key for s in made])):
        for word in found:
            if found.count(word) > 1:
                refuse(f"two states have the {what} {word!r}: expected another for each")
            if word in (("p", "g") if what == "name" else STATE_KEYS):
                refuse(f"a state has the {what} {word!r}, which every rule has already: call it something else")
    return tuple(made)


def checked_tuples(spec: Any) -> dict[str, tuple[str, ...]]:
    """The tuples of a rule. Raises RuleSyntaxError at the author's line for what names none, or a hyperparameter twice."""
    from gpuopt.compiler.parse import refuse_reserved

    def fail(_: Any, message: str) -> NoReturn:
        refuse(f"tuples: {message}")

    found: list[str] = []
    for name, members in spec.items() if isinstance(spec, Mapping) else [("", spec)]:
        names = members if isinstance(members, (tuple, list)) else ()
        if not isinstance(name, str) or not name or not names or not all(isinstance(n, str) for n in names):
            refuse(
                f"tuples: {name!r}: {members!r}: expected names of hyperparameters, such as {{'nus': ('nu1', 'nu2')}}"
            )
        refuse_reserved(fail, {name: None})
        found += [name, *names]
    for name in found:
        if found.count(name) > 1 or (re.fullmatch("beta[0-9]+", name)):
            refuse(f"tuples: {name!r} is in two places: expected each hyperparameter in one tuple")
    return {name: tuple(members) for name, members in spec.items()}


def checked_ranges(spec: Mapping[str, str]) -> dict[str, str]:
    """The ranges of a rule. Raises RuleSyntaxError at the author's line for what is no interval."""
    for name, interval in spec.items():
        if not isinstance(interval, str) or not _INTERVAL.fullmatch(interval):
            refuse(f"ranges: {name!r}: {interval!r}: expected an interval such as '[0, 1)' or '(0, inf)'")
    return dict(spec)


def refuse(message: str) -> NoReturn:
    raise RuleSyntaxError(message, *caller())
