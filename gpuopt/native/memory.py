"""Host memory of data by its address: one array over it, or elements that lie far apart, read and written together in 10 ns each.

Called by backends, `gpuopt.torch` and the other parts of `gpuopt.native`. No layout of any object is assumed: the caller knows what
lies there, and keeps alive what owns it. So it is in use whatever `switch` says.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD = np.dtype(np.int64)


def memory(address: int, dtype: np.dtype[Any], count: int = 1) -> NDArray[Any]:
    """Host memory at an address as an array of `count` elements. Raises ValueError for an address that is not aligned."""
    if address % dtype.itemsize:
        raise ValueError(f"address {address} is not aligned for {dtype}")
    if not count:
        return np.empty(0, dtype)
    buffer: Any = (ctypes.c_char * (dtype.itemsize * count)).from_address(address)
    result: NDArray[Any] = np.frombuffer(buffer, dtype, count)
    return result


class Words:
    """Elements of one dtype that lie at these addresses: one at least. They are read and written together."""

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
