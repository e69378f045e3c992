"""The options every optimizer takes, as fragments of the rule language fused before and after any rule.

`compiler.lower` puts `before` in front of a rule and `after` behind it; `sums` are the totals that a global norm and
the non-finite check need. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gpuopt.rules.primitives import maximum, minimum, sign, where

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
def before(
    p: Any, g: Any, old: Any, *, direction: Any, grad_multiplier: Any, clip_value: Any, lr: Any,
    decay_value: Any, decay_coupled: Any, decay_shrinking: Any, decay_corrected: Any, decay_peak: Any,
    scaled: bool, clipped: bool, decayed: bool, cautious: bool,
) -> Any:  # fmt: skip
    """What a rule sees. The gradient: unscaled and norm-clipped (grad_multiplier), negated (direction), clipped by value, with the
    decay that is coupled to it; the parameter, after the decay that comes before the update. `old` is kept for `after`.
    """
    if scaled:
        g = g * (direction * grad_multiplier)
    if clipped:
        g = minimum(maximum(g, -clip_value), clip_value)
    if decayed:
        g = where(decay_coupled != 0, g + decay_value * decay_coupled * p, g)
        p = p * (1 - lr * decay_value * (decay_shrinking + decay_corrected * lr) / decay_peak)
    if cautious:
        old = p
    return p, g, old


# The arrays beside a tensor that `after` reads, by their arguments there, and the flag that says whether there is one.
BESIDE = {"lower": "bounded_below", "upper": "bounded_above", "mask": "masked"}


@Fragment
def after(
    p: Any, old: Any, lower: Any, upper: Any, mask: Any, *, lr: Any, l1: Any,
    decay_value: Any, decay_proximal: Any, decay_cautious: Any,
    sparse: bool, bounded_below: bool, bounded_above: bool, masked: bool, proximal: bool, cautious: bool,
) -> Any:  # fmt: skip
    """The parameter that is stored: decayed where the update did not move it away from zero (cautious), soft threshold of lr * l1,
    divided by 1 + lr * decay (proximal, behind l1 as in the proximal operator of both), brought between its bounds, which is the
    proximal operator of all three, NaN staying NaN; then pruned weights back to zero.
    """
    if cautious:
        p = where(decay_cautious != 0, where(sign(old) * (old - p) >= 0, p - lr * decay_value * old, p), p)
    if sparse:
        p = sign(p) * maximum(abs(p) - lr * l1, 0)
    if proximal:
        p = p / (1 + lr * decay_value * decay_proximal)
    if bounded_below:
        p = maximum(p, lower)
    if bounded_above:
        p = minimum(p, upper)
    if masked:
        p = where(mask != 0, p, 0)
    return p


@Fragment
def sums(g: Any) -> Any:
    """Squares for the global norm, and a count of the elements that are not finite (x - x is 0 for finite x only)."""
    return g * g, where(g - g == 0, 0, 1)
