"""The options every optimizer takes, as fragments of the rule language fused before and after any rule.

`compiler.lower` puts those of AHEAD in front of a rule and those of BEHIND behind it; `sums` are the totals that a global norm and
the non-finite check need. Knows no rule.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from gpuopt.rules.companions import averaging, looking_ahead
from gpuopt.rules.fragments import Fragment
from gpuopt.rules.geometry import bending, by_units, remembered
from gpuopt.rules.primitives import maximum, minimum, sign, where


@Fragment
def gradient(g: Any, *, direction: Any, grad_multiplier: Any, clip_value: Any, scaled: bool, clipped: bool) -> Any:
    """The gradient: unscaled and norm-clipped (grad_multiplier), negated (direction), clipped by value."""
    if scaled:
        g = g * (direction * grad_multiplier)
    if clipped:
        g = minimum(maximum(g, -clip_value), clip_value)
    return g


@Fragment
def before(
    p: Any, g: Any, anchor: Any, start: Any, *, lr: Any, decay_value: Any, decay_coupled: Any, decay_shrinking: Any,
    decay_corrected: Any, decay_peak: Any, decayed: bool, anchored: bool, from_start: bool,
) -> Any:  # fmt: skip
    """The gradient with the decay that is coupled to it; the parameter after the decay that comes before the update. With an anchor
    what decays is how far the parameter is from that.
    """
    if from_start:
        anchor = start
    if decayed:
        if anchored or from_start:
            away = p - anchor
            g = where(decay_coupled != 0, g + decay_value * decay_coupled * away, g)
            p = p - away * (lr * decay_value * (decay_shrinking + decay_corrected * lr) / decay_peak)
        else:
            g = where(decay_coupled != 0, g + decay_value * decay_coupled * p, g)
            p = p * (1 - lr * decay_value * (decay_shrinking + decay_corrected * lr) / decay_peak)
    return p, g, anchor


# The arrays beside a tensor that fragments read, by their arguments there, and the flag that says whether there is one.
BESIDE = {"lower": "bounded_below", "upper": "bounded_above", "mask": "masked", "anchor": "anchored"}


@Fragment
def after(
    p: Any, old: Any, anchor: Any, *, lr: Any, l1: Any, decay_value: Any, decay_proximal: Any, decay_cautious: Any,
    sparse: bool, proximal: bool, cautious: bool, anchored: bool, from_start: bool,
) -> Any:  # fmt: skip
    """The parameter behind the update: decayed where that did not move it away from zero or its anchor (cautious), soft threshold
    of lr * l1, divided by 1 + lr * decay (proximal, behind l1 as in the proximal operator of both).
    """
    if cautious:
        if anchored or from_start:
            away = old - anchor
            p = where(decay_cautious != 0, where(sign(away) * (old - p) >= 0, p - lr * decay_value * away, p), p)
        else:
            p = where(decay_cautious != 0, where(sign(old) * (old - p) >= 0, p - lr * decay_value * old, p), p)
    if sparse:
        p = sign(p) * maximum(abs(p) - lr * l1, 0)
    if proximal:
        if anchored or from_start:
            p = p + lr * decay_value * decay_proximal * anchor
        p = p / (1 + lr * decay_value * decay_proximal)
    return p


@Fragment
def limits(p: Any, lower: Any, upper: Any, mask: Any, *, bounded_below: bool, bounded_above: bool, masked: bool) -> Any:
    """The parameter that is stored: brought between its bounds, which with l1 and proximal decay is the proximal operator of all
    three, NaN staying NaN; then pruned weights back to zero.
    """
    if bounded_below:
        p = maximum(p, lower)
    if bounded_above:
        p = minimum(p, upper)
    if masked:
        p = where(mask != 0, p, 0)
    return p


# In front of a rule, and behind it: each takes what it names, and gives what it returns to those that come later.
AHEAD = (gradient, by_units, before, remembered)
BEHIND = (bending, after, looking_ahead, limits, averaging)


@cache
def variables() -> frozenset[str]:
    """The arrays that these take and give."""
    return frozenset(name for f in (*AHEAD, *BEHIND) for name in f.tree.positional)


@cache
def scalars() -> frozenset[str]:
    """The numbers that these take."""
    return frozenset(name for f in (*AHEAD, *BEHIND) for name in f.tree.scalars)


@Fragment
def sums(g: Any) -> Any:
    """Squares for the global norm, and a count of the elements that are not finite (x - x is 0 for finite x only)."""
    return g * g, where(g - g == 0, 0, 1)
