"""Four bits for averages of squares, through whose root an update is divided: second moments."""

from __future__ import annotations

from typing import Any

from gpuopt.formats.language import PACKED, format
from gpuopt.formats.scales import count, fifteenth, least
from gpuopt.rules.primitives import bits, block_max, block_min, from_bits, maximum, where


@format(planes={"code": PACKED}, per_block={"top": "float32", "low": "uint16"}, block=256)
def squares4(code: Any, top: Any, low: Any) -> Any:
    """Sixteen numbers from the block's smallest to its largest value, equally far apart in the bits of float32 (a geometric
    progression whose ratio is nearly the same throughout), rounded stochastically between neighbours. The largest is kept as it is:
    rounded to nearest it could not grow by a thousandth of itself, which is what a step adds. The smallest is rounded to the
    nearest 128th of an octave: rounded outwards the range would widen by itself, since what lies below the smallest value is
    sometimes chosen. With what it is to be multiplied with in the update, ratio^0.4 (see `squares8`).
    """
    base = low << 16
    range = bits(top) - base
    step = fifteenth(range)
    x = where(top - top == 0, from_bits(base + code * step), top)
    width = count(range >> 8)
    octaves = width * 8.138020833333334e-07
    kappa = 1.0 + octaves * (0.6931471805599453 + octaves * (0.2402265069591007 + octaves * 0.06463))
    return x, kappa


@squares4.encode(random=16)
def _(x: Any, *, random: Any) -> Any:
    largest = block_max(x)
    smallest = block_min(abs(where(x > 0, x, 3.3e38)))
    top = where(largest - largest == 0, maximum(largest, 0), from_bits(bits(largest) | 0x7FC00000))
    low = least(bits(smallest), bits(top))
    low = (low + 0x8000) >> 16
    low = where(low << 16 > bits(top), low - 1, low)
    base = low << 16
    range = bits(top) - base
    step = fifteenth(range)
    width = count(range >> 8)
    inverse = 15.0 / maximum(width, 1)
    first = from_bits(base)
    last = from_bits(base + step * 15)
    y = where(x > first, x, first)
    y = where(y < last, y, last)
    n = count((bits(y) - base) >> 8)
    i = bits((n * inverse - 0.5) + 8388624.0) & 15
    below = from_bits(base + i * step)
    above = from_bits(base + i * step + step)
    u = from_bits(((random & 0xFFFF) << 7) | 0x3F800000) - 0.99999237060546875
    code = where(y - below > u * (above - below), i + 1, i)
    return code, top, low
