"""Four bits for numbers of either sign that are averages of what comes in at once: first moments."""

from __future__ import annotations

from typing import Any

from gpuopt.formats.language import PACKED, format
from gpuopt.formats.scales import most
from gpuopt.rules.primitives import bits, block_max, from_bits, where


@format(planes={"code": PACKED}, per_block={"top": "uint16"}, block=128)
def signed4(code: Any, top: Any) -> Any:
    """-7 to 7 in equal steps, of which seven are the block's largest value, with as many bits as bfloat16 has, rounded up;
    rounded stochastically. A step that is a power of two has twice the noise. Small floats, whose levels are closer near zero and
    farther apart at the end, keep a block's largest value up by their own noise: with E2M1 training departs from float32. Below
    2^-122 steps are no smaller; above 3.38e38 a block is NaN.
    """
    y = from_bits((code ^ 8) + 0x4B3FFFF8) - 12582912.0
    step = from_bits(where(top < 0x7E13, top << 16, 0x7FC00000))
    x = y * step
    return x


@signed4.encode(random=8)
def _(x: Any, *, random: Any) -> Any:
    largest = block_max(abs(x))
    seventh = bits(largest * 0.14285714285714285) + 0xFFF0  # of exactly seven steps it may be a bit more than one
    n = most(seventh >> 16, 0x0100)
    top = where(largest - largest == 0, n, 0x7FC0)
    inverse = 1.0 / from_bits(top << 16)
    u = from_bits(((random & 0xFF) << 15) | 0x3F800000) - 1.498046875
    y = x * inverse + u
    code = where(y == y, bits(y + 12582912.0) & 15, 0)
    return code, top
