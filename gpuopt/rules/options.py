"""The options every optimizer takes, as fragments of the rule language fused before and after any rule.

`compiler.lower` puts `before` in front of a rule and `after` behind it; `sums` are the totals that a global norm and
the non-finite check need. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gpuopt.rules.language import maximum, minimum, sign, where

if TYPE_CHECKING:
    from gpuopt.compiler.tree import FunctionTree


class Fragment:
    """A piece of the rule language that is no rule by itself."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    @cached_property
    def tree(self) -> FunctionTree:
        from gpuopt.compiler.parse import parse_function

        return parse_function(self.function)


@Fragment
def before(g: Any, *, direction: Any, grad_multiplier: Any, clip_value: Any, scaled: bool, clipped: bool) -> Any:
    """The gradient a rule sees: unscaled and norm-clipped (grad_multiplier), negated (direction), clipped by value."""
    if scaled:
        g = g * (direction * grad_multiplier)
    if clipped:
        g = minimum(maximum(g, -clip_value), clip_value)
    return g


@Fragment
def after(p: Any, mask: Any, *, lr: Any, l1: Any, sparse: bool, masked: bool) -> Any:
    """The parameter that is stored: proximal soft threshold of lr * l1, then pruned weights back to zero."""
    if sparse:
        p = sign(p) * maximum(abs(p) - lr * l1, 0)
    if masked:
        p = where(mask != 0, p, 0)
    return p


@Fragment
def sums(g: Any) -> Any:
    """Squares for the global norm, and a count of the elements that are not finite (x - x is 0 for finite x only)."""
    return g * g, where(g - g == 0, 0, 1)
