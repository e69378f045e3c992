"""Eight bits as hardware has them: sign, four bits of exponent and three of mantissa."""

from __future__ import annotations

from typing import Any

from gpuopt.formats.language import format
from gpuopt.formats.scales import count, least, most, power, with_sign
from gpuopt.rules.primitives import bits, block_max, from_bits, where


@format(planes={"code": "uint8"}, per_block={"top": "uint8"}, block=256)
def float8(code: Any, top: Any) -> Any:
    """E4M3 of Micikevicius et al. 2022, "FP8 formats for deep learning", up to 448, times a power of two, so that the block's
    largest value is within them; rounded stochastically. Below 2^-118 a block's units are no smaller; above 2.9e38 it is NaN.
    """
    c = code & 0x7F
    whole = count(c)
    y = where(c < 8, whole * 0.001953125, from_bits((c + 0x3C0) << 20))
    n = most(top, 9)
    unit = power(where(n < 255, n - 8, 255))
    x = with_sign(y * unit, code << 24)
    return x


@float8.encode(random=8)
def _(x: Any, *, random: Any) -> Any:
    largest = block_max(abs(x))
    top = (bits(largest) + 0x1FFFFF) >> 23
    n = most(top, 9)
    y = abs(x) * from_bits((262 - n) << 23)
    u = from_bits(((random & 0xFF) << 15) | 0x3F800000) - 1.498046875
    small = bits((y * 512.0 + u) + 8388624.0) & 15
    c = where(y < 0.015625, small, ((bits(y) + ((random & 0xFF) << 12) + 0x800) >> 20) - 0x3C0)
    magnitude = least(c, 0x7E)
    code = where(x < 0, magnitude | 0x80, magnitude)
    return code, n
