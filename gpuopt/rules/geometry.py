"""Options that look at how long a gradient or an update is beside the parameter, as fragments of the rule language.

`options` puts them around every rule. An update is what a rule takes from the parameter that it was given, d = old - p, in the
compute type; u = d / lr is the update before the rate, of which papers speak. What follows scales d or bends it, all from sums
over one look at d and the old parameter. Knows no rule.
"""

from __future__ import annotations

from typing import Any

from gpuopt.rules.fragments import Fragment
from gpuopt.rules.primitives import maximum, minimum, numel, row_sum, sign, sqrt, tensor_sum, where


def unit_length(x: Any, *, matrix: bool) -> Any:
    """The length of each row, or of a tensor without rows."""
    if matrix:
        n = sqrt(row_sum(x * x))
    else:
        n = sqrt(tensor_sum(x * x))
    return n


@Fragment
def by_units(p: Any, g: Any, *, adaptive_clip: Any, by_unit: bool, matrix: bool) -> Any:
    """The gradient of each row, at most adaptive_clip times as long as the row or, where that is shorter than 1e-3, as 1e-3: Brock
    et al. 2021. A tensor without rows is one.
    """
    if by_unit:
        slope = unit_length(g, matrix=matrix)
        held = unit_length(p, matrix=matrix)
        allowed = adaptive_clip * maximum(held, 1e-3)
        g = g * where(slope > allowed, allowed / slope, 1)
    return g


@Fragment
def remembered(p: Any, g: Any, old: Any, seen: Any, *, cautious: bool, bent: bool, agreeing: bool) -> Any:
    """What the rule is given, for the fragments behind it."""
    if cautious or bent:
        old = p
    if agreeing:
        seen = g
    return old, seen


@Fragment
def bending(
    p: Any, old: Any, seen: Any, *, lr: Any, clip_update_rms: Any, radial_brake: Any, update_floor: Any,
    row_update_floor: Any, bent: bool, agreeing: bool, in_mean: bool, measured: bool, clipped_update: bool, braked: bool,
    floored: bool, relative: bool, on_sphere: bool, floored_rows: bool, matrix: bool,
) -> Any:  # fmt: skip
    """The parameter after an update that is, in this order: only where it agrees with the gradient in sign (cautious), of a bounded
    root mean square, braked outwards, of a least length, of the parameter's own length times lr, of a least length by rows, and
    brought back to the parameter's length (hyperball). What an option leaves as it is keeps its bits.
    """
    if bent:
        d = old - p
        move = d
        scale = 1
    if agreeing:
        keep = where(sign(d) * sign(seen) > 0, 1, 0)
        move = d * keep
    if in_mean:
        scale = 1 / maximum(tensor_sum(keep) / numel(p), 1e-3)
    if measured:
        squares = tensor_sum(move * move)
        held = tensor_sum(old * old)
        radial = tensor_sum(move * old)
        size = sqrt(held)
    if clipped_update:
        length = scale * sqrt(squares)
        allowed = lr * clip_update_rms * sqrt(numel(p))
        scale = scale * where(length > allowed, allowed / length, 1)
    if braked:
        outwards = where(held > 0, minimum(radial / held, 0), 0)
        move = move - (1 - radial_brake) * outwards * old
        squares = maximum(squares - (1 - radial_brake * radial_brake) * outwards * radial, 0)
        radial = where(radial < 0, radial_brake * radial, radial)
    if floored:
        length = scale * sqrt(squares)
        scale = scale * where(length > 0, maximum(lr * update_floor * size / length, 1), 1)
    if relative:
        length = scale * sqrt(squares)
        scale = where(size > 1e-15, where(length > lr * 1e-15, scale * lr * size / length, 0), 0)
    if on_sphere:
        length = scale * sqrt(squares)
        scale = where(length > 0, scale * lr * size / maximum(length, lr * 1e-10), 0)
        left = held - 2 * scale * radial + scale * scale * squares
        back = where(left > 0, size / sqrt(left), 1)
    if in_mean or measured:
        move = move * scale
    if floored_rows:
        length = unit_length(move, matrix=matrix)
        size = unit_length(old, matrix=matrix)
        move = move * where(length > 0, maximum(lr * row_update_floor * size / length, 1), 1)
    if bent:
        p = where(move == d, p, old - move)
    if on_sphere:
        p = p * back
    return p
