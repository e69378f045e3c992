"""Eight bits for numbers of either sign that are averages of what comes in at once: first moments."""

from __future__ import annotations

from typing import Any

from gpuopt.formats.language import format
from gpuopt.formats.scales import least, most, power, with_sign
from gpuopt.rules.primitives import bits, block_max, from_bits, where


@format(planes={"code": "uint8"}, per_block={"top": "uint8"}, block=256)
def signed8(code: Any, top: Any) -> Any:
    """Sign, two bits of exponent and five of mantissa (E2M5), to nearest, in units of a 256th of the power of two above the block's
    largest value: 0 to 63 of them one by one, then by twos, then by fours to 252. Piecewise linear, as the softsign of FlashOptim
    (Zhang et al. 2025) is smoothly. Below 2^-118 a block's units are no smaller; above 3.3e38 it is NaN.
    """
    f = from_bits(((code & 0x7F) << 18) + 0x41800000)  # 16 and halves where units are single
    y = where(f < 32, f + f - 32, f)
    n = most(top, 8)
    unit = power(where(n < 255, n - 7, 255))
    x = with_sign(y * unit, code << 24)
    return x


@signed8.encode
def _(x: Any) -> Any:
    largest = block_max(abs(x))
    top = (bits(largest) + 0x20000) >> 23
    n = most(top, 8)
    y = abs(x) * from_bits((261 - n) << 23)
    c = where(
        y < 32, bits(y + 8388608.0), ((bits(y) + 0x20000) >> 18) + 0x4AFFEFA0
    )  # of which only the last bits are stored
    magnitude = least(c, 0x4B00007F)
    code = where(x < 0, magnitude | 0x80, magnitude)
    return code, top
