"""Floating-point numbers of eight bits whose mantissa has as many of them as the block's range leaves: parts of formats of numbers
from 0 on.

Such a number is a float32 without its last `shift` bits, counted from the power of two 2^(low - 127) on: equally far apart in the
bits of float32, and so within an octave. low = 0 is where blocks of zeros begin, low = 255 a block of NaN.
"""

from __future__ import annotations

from typing import Any

from gpuopt.formats.scales import count, least, most
from gpuopt.rules.primitives import bits, block_max, block_min, from_bits, maximum, where


def grid(x: Any) -> Any:
    """Where a block's numbers begin, at least 31 octaves below the largest, and how far apart they are."""
    largest = block_max(x)
    smallest = block_min(abs(where(x > 0, x, 3.3e38)))  # known to have no sign, it takes fewer instructions
    top = bits(maximum(largest, 0))
    of_largest = most(top, 0x0FC00000)
    low = most(bits(smallest) >> 23, (of_largest - 0x0F400001) >> 23)
    low = where(top != 0, low, 0)
    range = top - (low << 23)
    length = count((range + (range >> 7)) >> 8)
    shift = most(bits(length) >> 23, 142)
    low = where(top < 0x7F800000, low, 255)
    shift = where(low < 255, shift - 126, 0)
    return low, shift


def level(code: Any, low: Any, shift: Any) -> Any:
    """The number of a code."""
    x = from_bits(where(low < 255, low << 23, 0x7FC00000) + (code << shift))
    return x


def place(x: Any, low: Any, shift: Any, more: Any) -> Any:
    """The code of the number below x and `more`, which is in units of the bits of float32."""
    first = from_bits(low << 23)
    y = where(x > first, x, first)
    n = (bits(y) - (low << 23) + more) >> shift
    code = least(n, 255)
    return code


def correction(shift: Any) -> Any:
    """2^(0.4 / numbers of an octave), by two terms of its series: what noise of v between such numbers does to 1/sqrt(v)."""
    octaves = from_bits((shift + 104) << 23)
    kappa = 1.0 + octaves * (0.2772588722239781 + octaves * 0.03843624111345611)
    return kappa
