"""Numbers of 16 bits as the upper halves of words: what every format of bfloat16 or float16 parameters begins and ends with.

A word orders numbers as float32's own bits do, sign above magnitude. Of bfloat16 it is the bits of a float32 themselves; of float16
(half) the 13 bits that a float32 has behind a float16 follow, and three zeros: exact for numbers that float16 holds at full
precision, in steps of 2^-37 below them. NaN is one NaN.
"""

from __future__ import annotations

from typing import Any

from gpuopt.formats.scales import least
from gpuopt.rules.primitives import bits, from_bits, where


def word(x: Any, *, half: bool) -> Any:
    """The word of a number; of float16, everything from 65,536 on is infinite."""
    if half:
        magnitude = bits(abs(x) * 1.925929944387236e-34)  # 2^-112: the exponent of a float16
        magnitude = where(magnitude < 0x0F800000, magnitude, 0x0F800000)
        w = where(x == x, (bits(x) & 0x80000000) | (magnitude << 3), 0x7E000000)
    else:
        w = where(x == x, bits(x), 0x7FC00000)
    return w


def number(w: Any, *, half: bool) -> Any:
    """The number of a word."""
    if half:
        magnitude = (w & 0x7FFFFFFF) >> 3
        finite = bits(from_bits(magnitude) * 5.192296858534828e33)  # 2^112
        magnitude = where(magnitude < 0x0F800000, finite, magnitude + 0x70000000)
        x = from_bits(magnitude | (w & 0x80000000))
    else:
        x = from_bits(w)
    return x


def nearest(x: Any, *, half: bool) -> Any:
    """The bits of the nearest number of 16 bits, to even: infinite where float32 is beyond them, one NaN."""
    if half:
        m = bits(abs(x))
        small = bits(abs(x) + 0.5) - 0x3F000000  # in steps of 2^-24, below 2^-14
        large = (m - 0x38000000 + (((m >> 13) & 1) + 0xFFF)) >> 13
        magnitude = least(where(m < 0x38800000, small, large), 0x7C00)
        h = where(x == x, ((bits(x) >> 16) & 0x8000) | magnitude, 0x7E00)
    else:
        rounded = bits(x) + (((bits(x) >> 16) & 1) + 0x7FFF)
        h = where(x == x, rounded, 0x7FC00000) >> 16
    return h
