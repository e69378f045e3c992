"""Arguments of C functions as 64-bit words, and what lies where they point. Used by everything that answers a call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

Words = Sequence[int]

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, INVALID_DEVICE, NOT_FOUND, NOT_READY = 0, 1, 2, 101, 500, 600
LAUNCH_FAILED, NOT_SUPPORTED = 719, 801


def put(address: int, value: int, size: int = 8) -> None:
    """Write a whole number of `size` bytes."""
    ctypes.memmove(address, int(value).to_bytes(size, "little", signed=value < 0), size)


def get(address: int, size: int = 8) -> int:
    """Read a whole number of `size` bytes, without a sign."""
    return int.from_bytes(ctypes.string_at(address, size), "little")


def low(word: int) -> int:
    """An argument of 32 bits: the upper half of its word is anything at all."""
    return word & 0xFFFFFFFF


def text(address: int) -> str:
    """A string that ends in a zero."""
    return ctypes.string_at(address).decode()
