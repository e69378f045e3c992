"""Numbers of a block as powers of two, and whole numbers as float32 ones: parts of the formats of states.

A scale is the exponent of a float32, 8 bits as it stands in one. From 255 on everything in the block is NaN.
"""

from __future__ import annotations

from typing import Any

from gpuopt.rules.primitives import bits, from_bits, where


def count(n: Any) -> Any:
    """A whole number from 0 to 2^23 - 1 as a number."""
    x = from_bits(n | 0x4B000000) - 8388608.0
    return x


def power(exponent: Any) -> Any:
    """2^(exponent - 127), exponent 1 to 254; NaN from 255 on."""
    x = from_bits(where(exponent < 255, exponent << 23, 0x7FC00000))
    return x


def least(a: Any, b: Any) -> Any:
    """The smaller of two whole numbers."""
    n = where(a < b, a, b)
    return n


def most(a: Any, b: Any) -> Any:
    """The larger of two whole numbers."""
    n = where(a > b, a, b)
    return n


def fifteenth(n: Any) -> Any:
    """A whole number divided by 15, by its series; a little more, at most 7, never less."""
    m = (n >> 4) + (n >> 8) + (n >> 12) + (n >> 16) + (n >> 20) + (n >> 24) + 7
    return m


def with_sign(y: Any, sign: Any) -> Any:
    """A number from 0 on, and its sign in the highest bit of a whole one."""
    x = from_bits(bits(y) | (sign & 0x80000000))
    return x
