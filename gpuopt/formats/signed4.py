"""Four bits for numbers of either sign that are averages of what comes in at once: first moments."""

from __future__ import annotations

from typing import Any

from gpuopt.formats.language import PACKED, format
from gpuopt.formats.scales import least, most
from gpuopt.rules.primitives import bits, block_max, from_bits, where


@format(planes={"code": PACKED}, per_block={"top": "uint16"}, block=32)
def signed4(code: Any, top: Any) -> Any:
    """Of either sign 0, 3, 8, 15, 24, 35, 48 and 63 steps, (k + 1)^2 - 1, of which 63 are the block's largest value, with as many
    bits as bfloat16 has, rounded up; rounded stochastically. What is drawn in every step adds up in an average, and most of a block
    is small beside its largest value: these levels in these blocks have two thirds to an eighth of the noise that even steps in
    blocks of 128 elements have. Levels farther apart at the end, as those of E2M1, keep a block's largest value up by their own
    noise. Below 2^-119 steps are no smaller; above 3.40e38 a block is NaN.
    """
    k = from_bits((code & 7) + 0x4B000001) - 8388608.0
    y = k * k - 1.0
    step = from_bits(where(top < 0x7C83, top << 16, 0x7FC00000))
    x = from_bits(bits(y) | ((code & 8) << 28)) * step
    return x


@signed4.encode(random=8)
def _(x: Any, *, random: Any) -> Any:
    largest = block_max(abs(x))
    part = bits(largest * 0.015873015873015872) + 0xFFF0  # of exactly 63 steps it may be a bit more than one
    n = most(part >> 16, 0x0100)
    top = where(largest - largest == 0, n, 0x7FC0)
    finite = where(top < 0x7F80, top, 0x0100)  # else a GPU divides by NaN besides, on the slow path
    inverse = 1.0 / from_bits(finite << 16)
    y = abs(x) * inverse + 1.0  # (k + 1)^2
    near = from_bits((bits(y) >> 1) + 0x1FC00000)  # its root, or up to 6 % more
    k = (near - 0.5 + 8388608.0) - 8388608.0
    k = where(k * k > y, k - 1.0, k)
    k = where(k < 7.0, k, 7.0)
    u = from_bits(((random & 0xFF) << 15) | 0x3F800000) - 0.998046875
    k = where(y - k * k > u * (k + k + 1.0), k + 1.0, k)
    size = bits(k + 8388607.0) & 7
    room = least(size << 3, 8)
    sign = (bits(x) >> 28) & room
    code = where(x == x, size | sign, 0)
    return code, top
