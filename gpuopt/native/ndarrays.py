"""NumPy's array objects: where their data lies, and their flags. See `gpuopt.native` for what is relied on.

Called by `gpuopt.arrays` and the engine, as `first_addresses` and `Flags`. Knows no array library but NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpuopt.native.memory import WORD, Words
from gpuopt.native.objects import ids
from gpuopt.native.switch import choose

DATA = object.__basicsize__  # bytes of Python's header; the address of the first element follows
FLAGS = DATA + 6 * WORD.itemsize  # behind data, number of axes, shape, strides, base and dtype
NUMBER = np.dtype(np.int32)  # that the flags are


class ArrayFlags(Protocol):
    """What can change in arrays while they stay where they are: the flags. The caller keeps the arrays."""

    def read(self) -> bytes:
        """To be compared."""
        ...


Maker = Callable[[Sequence[NDArray[Any]]], ArrayFlags]


def asked_addresses(found: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """The addresses of the first elements, from NumPy's interface: a microsecond each."""
    return np.array([array.__array_interface__["data"][0] for array in found], WORD)


class AskedFlags:
    """ArrayFlags from NumPy's interface."""

    def __init__(self, found: Sequence[NDArray[Any]]) -> None:
        self._arrays = found

    def read(self) -> bytes:
        """To be compared."""
        return np.array([array.flags.num for array in self._arrays], NUMBER).tobytes()


def read_addresses(found: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """The addresses of the first elements, from the objects' memory."""
    return Words(ids(found) + DATA, WORD).read() if found else np.zeros(0, WORD)


class ReadFlags:
    """ArrayFlags from the objects' memory."""

    def __init__(self, found: Sequence[NDArray[Any]]) -> None:
        self._words = Words(ids(found) + FLAGS, NUMBER) if found else None

    def read(self) -> bytes:
        """To be compared."""
        return b"" if self._words is None else self._words.read().tobytes()


def fields_hold() -> bool:
    """Whether arrays keep address and flags where DATA and FLAGS say."""
    samples: list[NDArray[Any]] = [np.zeros(3), np.zeros((2, 2), np.float32)[1:, ::-1], np.zeros((3, 2), order="F")]
    samples[0].flags.writeable = False
    addresses = np.array_equal(read_addresses(samples), asked_addresses(samples))
    return addresses and ReadFlags(samples).read() == AskedFlags(samples).read()


FLAGS_OF: tuple[Maker, Maker] = ReadFlags, AskedFlags
NEEDS = ("python", "numpy")
first_addresses = choose("addresses of NumPy arrays", read_addresses, asked_addresses, NEEDS, fields_hold)
Flags = choose("flags of NumPy arrays", *FLAGS_OF, NEEDS, fields_hold)
