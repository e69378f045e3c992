"""Formats of states of a user's own: one with blocks, and two without, of which one packs two codes into a byte.

Used by the tests of bits, on every backend, and of what optimizers keep.
"""

from __future__ import annotations

from typing import Any

import gpuopt
from gpuopt import bits, block_max, from_bits, where


@gpuopt.format(planes={"n": "int8"}, per_block={"unit": "float32"}, block=64)
def linear(n: Any, unit: Any) -> Any:
    x = unit * (from_bits((n ^ 0x80) + 0x4B3FFF80) - 12582912.0)
    return x


@linear.encode
def _(x: Any) -> Any:
    largest = block_max(abs(x))
    unit = largest * 0.007874015748031496
    n = bits(x / where(unit > 0, unit, 1.0) + 12582912.0)
    return n, unit


@gpuopt.format(planes={"h": "uint16"})
def upper(h: Any) -> Any:
    """The upper half of a float32."""
    x = from_bits(h << 16)
    return x


@upper.encode
def _(x: Any) -> Any:
    return bits(x) >> 16


@gpuopt.format(planes={"n": "uint4"})
def sixteenths(n: Any) -> Any:
    """-8 to 7 sixteenths, two a byte."""
    x = (from_bits((n ^ 8) + 0x4B3FFFF8) - 12582912.0) * 0.0625
    return x


@sixteenths.encode
def _(x: Any) -> Any:
    return bits(where(abs(x) < 0.4, x, 0.25) * 16.0 + 12582912.0)


OWN = (linear, upper, sixteenths)
