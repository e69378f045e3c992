"""Where the data of many arrays lie: 0.1 us for each of NumPy's, where its own attributes take 1 us.

Called by `gpuopt.arrays`. Relies on the layout of NumPy's array objects, of which the address of the data is the first field
behind Python's header; whether that holds is tried once, on an array, and where it does not, NumPy is asked.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = object.__basicsize__  # bytes of Python's header
_word = ctypes.c_size_t.from_address


def asked(found: Sequence[Any]) -> list[int]:
    """The addresses of the first elements, from NumPy's interface."""
    return [array.__array_interface__["data"][0] for array in found]


def read(found: Sequence[Any]) -> list[int]:
    """The same, from the objects' memory."""
    return [_word(at + DATA).value for at in map(id, found)]


def _holds() -> bool:
    samples: list[NDArray[Any]] = [np.zeros(3), np.zeros((2, 2), np.float32)[1:, ::-1]]
    return read(samples) == asked(samples)


firsts = read if _holds() else asked
