"""Four bits for averages of squares, through whose root an update is divided: second moments."""

from __future__ import annotations

from typing import Any

from gpuopt.formats.language import PACKED, format
from gpuopt.formats.scales import count, least, most
from gpuopt.rules.primitives import bits, block_max, block_min, from_bits, maximum, where


@format(planes={"code": PACKED}, per_block={"top": "uint16", "span": "uint8"}, block=128)
def squares4(code: Any, top: Any, span: Any) -> Any:
    """Sixteen numbers from the block's smallest to its largest value, equally far apart in the bits of float32 (a geometric progression
    whose ratio is nearly the same throughout). Both ends are rounded to the nearest eighth of an octave, 2^20 of these bits, at most
    32 octaves apart: rounded outwards the range would widen by itself, since what lies below the smallest value is sometimes chosen.
    Rounded stochastically between neighbours. With what it is to be multiplied with in the update, ratio^0.4 (see `squares8`).
    From 3.3e38 on a block is NaN.
    """
    base = where(top < 0x7F8, (top - span) << 20, 0x7FC00000)
    x = from_bits(base + code * (span * 69905))
    width = count(span)
    octaves = width * 0.0033333333333333335
    kappa = 1.0 + octaves * (0.6931471805599453 + octaves * (0.2402265069591007 + octaves * 0.06463))
    return x, kappa


@squares4.encode(random=16)
def _(x: Any, *, random: Any) -> Any:
    largest = block_max(x)
    smallest = block_min(where(x > 0, x, 3.3e38))
    top = (bits(maximum(largest, 0)) + 0x80000) >> 20
    low = (bits(smallest) + 0x80000) >> 20
    above = most(top, low + 1)
    span = least(above - low, 255)
    span = least(span, top)
    span = where(top < 0x7F8, span, 0)
    base = (top - span) << 20
    step = span * 69905
    width = count(span)
    inverse = 32.0 / maximum(width * 69905.0, 1)
    first = from_bits(base)
    last = from_bits(base + step * 15)
    y = where(x > first, x, first)
    y = where(y < last, y, last)
    n = count((bits(y) - base) >> 5)
    i = bits((n * inverse - 0.5) + 8388624.0) & 15
    below = from_bits(base + i * step)
    above = from_bits(base + i * step + step)
    u = from_bits(((random & 0xFFFF) << 7) | 0x3F800000) - 0.99999237060546875
    code = where(y - below > u * (above - below), i + 1, i)
    return code, top, span
