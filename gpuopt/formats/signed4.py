"""Four bits for numbers of either sign that are averages of what comes in at once: first moments."""

from __future__ import annotations

from typing import Any

from gpuopt.formats.language import PACKED, format
from gpuopt.formats.scales import most, power
from gpuopt.rules.primitives import bits, block_max, from_bits, where


@format(planes={"code": PACKED}, per_block={"top": "uint8"}, block=128)
def signed4(code: Any, top: Any) -> Any:
    """-7 to 7 in equal steps, a power of two, so that the block's largest value is within them; rounded stochastically. Small
    floats waste their levels near zero: E2M1 departs from float32 in training where this does not. Below 2^-124 a block's steps are
    no smaller; above 2.9e38 it is NaN.
    """
    y = from_bits((code ^ 8) + 0x4B3FFFF8) - 12582912.0
    n = most(top, 3)
    step = power(where(n < 255, n - 2, 255))
    x = where(top != 0, y * step, 0)
    return x


@signed4.encode(random=8)
def _(x: Any, *, random: Any) -> Any:
    largest = block_max(abs(x))
    top = (bits(largest) + 0x1FFFFF) >> 23
    n = most(top, 3)
    u = from_bits(((random & 0xFF) << 15) | 0x3F800000) - 1.498046875
    y = x * from_bits((256 - n) << 23) + u
    code = where(y == y, bits(y + 12582912.0) & 15, 0)
    return code, n
