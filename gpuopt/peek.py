"""Host memory by address: one array over it, or one word of each of many objects, read together in 10 ns each.

Called by `gpuopt.arrays`, the engine and `gpuopt.torch`. What lies in NumPy's array objects is read so too: the address of the
data is the first field behind Python's header, the flags follow five more words. Whether that holds is tried once, on arrays, and
where it does not, NumPy is asked. Knows no array library but NumPy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD = np.dtype(np.int64)
DATA = object.__basicsize__  # bytes of Python's header
FLAGS = DATA + 6 * WORD.itemsize  # behind data, number of axes, shape, strides, base and dtype
NUMBER = np.dtype(np.int32)
# Where a list object keeps the address of its items: in front of its last word, which counts those it has room for.
ITEMS = list.__basicsize__ - 2 * WORD.itemsize
MANY = 32  # items of a list that are read together


def memory(address: int, dtype: np.dtype[Any], count: int = 1) -> NDArray[Any]:
    """Host memory at an address as an array of `count` elements."""
    if address % dtype.itemsize:
        raise ValueError(f"address {address} is not aligned for {dtype}")
    if not count:
        return np.empty(0, dtype)
    buffer: Any = (ctypes.c_char * (dtype.itemsize * count)).from_address(address)
    result: NDArray[Any] = np.frombuffer(buffer, dtype, count)
    return result


def contents(items: Any) -> bytes | list[int]:
    """What tells a list of objects from any other, as long as those objects live: their addresses; of many, read from the list
    itself, which takes a microsecond for a thousand where asking each would take thirty.
    """
    if type(items) is not list or len(items) < MANY:
        return list(map(id, items))
    address = ctypes.c_size_t.from_address(id(items) + ITEMS).value
    return ctypes.string_at(address, WORD.itemsize * len(items))


class Words:
    """Elements of one dtype that lie at these addresses, in memory that the caller keeps: read and written together."""

    def __init__(self, addresses: NDArray[np.int64], dtype: np.dtype[Any]) -> None:
        low = int(addresses.min())
        index = (addresses - low) // dtype.itemsize
        # One array from the first to the last of them: of all the memory between, none is touched.
        self._all = memory(low, dtype, int(index.max()) + 1)
        self._index: Any = index if len(index) > 1 else slice(None)

    def read(self) -> NDArray[Any]:
        """What they hold."""
        found: NDArray[Any] = self._all[self._index]
        return found

    def write(self, values: Any) -> None:
        """One value for each, or one for all."""
        self._all[self._index] = values


def ids(objects: Sequence[Any]) -> NDArray[np.int64]:
    """The addresses of Python objects."""
    return np.fromiter(map(id, objects), WORD, len(objects))


def asked(found: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """The addresses of the first elements, from NumPy's interface: a microsecond each."""
    return np.array([array.__array_interface__["data"][0] for array in found], WORD)


def read(found: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """The same, from the objects' memory."""
    return Words(ids(found) + DATA, WORD).read() if found else np.zeros(0, WORD)


class AskedFlags:
    """What can change in NumPy arrays while they stay where they are: the flags, from NumPy's interface. The caller keeps them."""

    def __init__(self, found: Sequence[NDArray[Any]]) -> None:
        self._arrays = found

    def read(self) -> bytes:
        """To be compared."""
        return np.array([array.flags.num for array in self._arrays], NUMBER).tobytes()


class ReadFlags:
    """The same, from the objects' memory."""

    def __init__(self, found: Sequence[NDArray[Any]]) -> None:
        self._words = Words(ids(found) + FLAGS, NUMBER) if found else None

    def read(self) -> bytes:
        """To be compared."""
        return b"" if self._words is None else self._words.read().tobytes()


def _holds() -> bool:
    samples: list[NDArray[Any]] = [np.zeros(3), np.zeros((2, 2), np.float32)[1:, ::-1], np.zeros((3, 2), order="F")]
    samples[0].flags.writeable = False
    addresses = np.array_equal(read(samples), asked(samples))
    return addresses and ReadFlags(samples).read() == AskedFlags(samples).read()


firsts, Flags = (read, ReadFlags) if _holds() else (asked, AskedFlags)
