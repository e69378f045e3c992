"""A function of a rule that is called between two steps; see `Rule.evaluate`, `resume` and `observe`. Knows no optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

EVALUATE, RESUME = "averaged", "trained"  # parameters


class Between:
    """arrays: the names of those that it takes, the parameter or a gradient first; hyper: of hyperparameters."""

    def __init__(self, function: Callable[..., Any]) -> None:
        code = function.__code__
        self.function = function
        self.arrays = code.co_varnames[: code.co_argcount]
        self.hyper = code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount]

    def complaint(self, name: str, first: str, states: Sequence[str], known: Iterable[str], of: str) -> str | None:
        """What is wrong with its arguments; `first` is what it has to take first."""
        if self.arrays[:1] != (first,) or not self.arrays[1:] or not set(self.arrays[1:]) <= {*states}:
            taken = ", ".join(self.arrays)
            return f"`{name}` takes `{taken}`: expected `{first}` and states of {of}: {', '.join(states)}"
        for word in self.hyper:
            if word not in known:
                return f"`{name}` takes `{word}`, which is no hyperparameter of {of}: it has {', '.join(known)}"
        return None
