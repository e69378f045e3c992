"""What a fragment of the rule language is: a function that is fused around every rule, see `rules.options`. Knows no rule."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuopt.compiler.tree import FunctionTree


class Fragment:
    """A piece of the rule language that is no rule by itself: it takes variables, and returns some of them by their names."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    @cached_property
    def tree(self) -> FunctionTree:
        from gpuopt.compiler.parse import parse_function

        return parse_function(self.function)
