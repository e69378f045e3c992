"""Rows of an array, gathered and converted to another floating dtype in one walk: compiled, from the disk cache where it is there.

Called by `batches.py`, also in a thread, which holds no lock of Python meanwhile. NumPy would write the rows as they are and read
them again. Knows nothing of what the rows are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from gpuopt.compiler import numba_cpu

Array = np.ndarray[Any, Any]
SOURCE = """def convert(array, order, count, width, out):
    for k in range(count):
        row = load_word(order, k) * width
        for j in range(width):
            store(out, k * width + j, C(load(array, row + j)))
"""


def convert(array: Array, rows: Array, out: Array) -> None:
    """out[k] = array[rows[k]], rounded to nearest even. array: (n, width), out: (count, width), both in C order and of float32 or
    float64; rows: (count,) of int64, from 0 to n - 1, which nothing checks.
    """
    width = array.shape[1]
    _compiled(array.dtype.name, out.dtype.name)(array.ctypes.data, rows.ctypes.data, len(rows), width, out.ctypes.data)


@cache
def _compiled(read: str, written: str) -> Callable[..., None]:
    """The walk for these dtypes."""

    def names() -> dict[str, Any]:
        from numba.extending import intrinsic

        from gpuopt.compiler import numba_ir

        return {
            "load_word": numba_ir.load(intrinsic, "int64", written, 0, 3),
            "load": numba_ir.load(intrinsic, read, read, 1, 3),
            "store": numba_ir.store(intrinsic, written, written, 2, 3),
            "C": np.dtype(written).type,
        }

    address = numba_cpu.address_of(SOURCE, "convert", names, repr((read, written)), 5)
    return numba_cpu.as_python(address, 5, held=False)
