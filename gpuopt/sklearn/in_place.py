"""Products of a minibatch with one column, its rows read where they lie in the data: compiled, on all threads, nothing is copied.

Made by `batches.py`, multiplied by `network.py`. Knows no loss and no optimizer. BLAS needs rows that lie together: to gather them
writes each number once more and takes longer than both products of a step. Rows are read in dtypes that may differ from that of
the products; what a part of PART rows adds to a gradient is summed by itself, then these one after another, so that no number of
threads changes a bit.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from gpuopt.backends.numba import Ranges, even_ranges
from gpuopt.compiler import numba_cpu

Array = np.ndarray[Any, Any]
PART = 256  # rows
LEAST = 2  # parts for which a second thread is woken
ARGUMENTS = ("lo", "hi", "array", "order", "count", "width", "column", "out")
FOUR = ", ".join(f"load_word(order, k + {r}) * width" for r in range(4))
# Four rows at once: each number of the column, or of the sums, is read and written for all of them together.
TIMES = """def times(lo, hi, array, order, count, width, column, out):
    for k in range(lo * PART, min(hi * PART, count) - 3, 4):
        a0, a1, a2, a3 = (FOUR)
        s0 = s1 = s2 = s3 = C(0)
        for j in range(width):
            w = load(column, j)
            s0 = add(s0, mul(C(read(array, a0 + j)), w))
            s1 = add(s1, mul(C(read(array, a1 + j)), w))
            s2 = add(s2, mul(C(read(array, a2 + j)), w))
            s3 = add(s3, mul(C(read(array, a3 + j)), w))
        store(out, k, s0)
        store(out, k + 1, s1)
        store(out, k + 2, s2)
        store(out, k + 3, s3)
    end = min(hi * PART, count)
    for k in range(end - (end - lo * PART) % 4, end):
        a0 = load_word(order, k) * width
        s0 = C(0)
        for j in range(width):
            s0 = add(s0, mul(C(read(array, a0 + j)), load(column, j)))
        store(out, k, s0)
"""
BACK = """def back(lo, hi, array, order, count, width, column, out):
    for part in range(lo, hi):
        first = part * width
        for j in range(width):
            store(out, first + j, C(0))
        end = min((part + 1) * PART, count)
        for k in range(part * PART, end - 3, 4):
            a0, a1, a2, a3 = (FOUR)
            r0, r1, r2, r3 = load(column, k), load(column, k + 1), load(column, k + 2), load(column, k + 3)
            for j in range(width):
                s = add(mul(C(read(array, a0 + j)), r0), mul(C(read(array, a1 + j)), r1))
                t = add(mul(C(read(array, a2 + j)), r2), mul(C(read(array, a3 + j)), r3))
                store(out, first + j, add(again(out, first + j), add(s, t)))
        for k in range(end - (end - part * PART) % 4, end):
            a0 = load_word(order, k) * width
            r0 = load(column, k)
            for j in range(width):
                store(out, first + j, add(again(out, first + j), mul(C(read(array, a0 + j)), r0)))
"""


class Lying:
    """Data, (n, features) in C order of float32 or float64, for products in a dtype of minibatches of up to `rows` rows."""

    def __init__(self, array: Array, dtype: Any, rows: int) -> None:
        self.array, self.dtype = np.ascontiguousarray(array), np.dtype(dtype)
        self.sums = np.empty((-(-rows // PART), array.shape[1]), self.dtype)
        self.runs: dict[tuple[str, int], Ranges] = {}

    def run(self, name: str, parts: int) -> Ranges:
        """One of the two products over so many parts."""
        if (name, parts) not in self.runs:
            address = _address(name, self.array.dtype.name, self.dtype.name)
            self.runs[name, parts] = Ranges(address, (), even_ranges(parts, LEAST), (), len(ARGUMENTS) - 2)
        return self.runs[name, parts]


class Rows:
    """Some rows of the data: `order`, (count,) of int64 in C order, from 0 to n - 1, which nothing checks."""

    def __init__(self, of: Lying, order: Array) -> None:
        self.of, self.order = of, order
        self.shape = len(order), of.array.shape[1]

    def times(self, column: Array, out: Array) -> None:
        """out = rows @ column: (features, 1) -> (count, 1), both contiguous and of the dtype of the products."""
        self._run("times", column, out)

    def back(self, column: Array, out: Array) -> None:
        """out = rows.T @ column: (count, 1) -> (features, 1), as above."""
        sums = self.of.sums[: -(-self.shape[0] // PART)]
        self._run("back", column, sums)
        np.add.reduce(sums, axis=0, out=out[:, 0])

    def _run(self, name: str, column: Array, out: Array) -> None:
        count, width = self.shape
        run = self.of.run(name, -(-count // PART))
        run(self.of.array.ctypes.data, self.order.ctypes.data, count, width, column.ctypes.data, out.ctypes.data)


@cache
def _address(name: str, read: str, compute: str) -> int:
    """The compiled product for these dtypes of data and of the rest."""

    def names() -> dict[str, Any]:
        from numba.extending import intrinsic

        from gpuopt.compiler import numba_ir

        return {
            "load_word": numba_ir.load(intrinsic, "int64", compute, 0, 4),
            "read": numba_ir.load(intrinsic, read, read, 1, 4),
            "load": numba_ir.load(intrinsic, compute, compute, 2, 4),
            "again": numba_ir.load(intrinsic, compute, compute, 3, 4),
            "store": numba_ir.store(intrinsic, compute, compute, 3, 4),
            **{op: numba_ir.joined(intrinsic, op, compute) for op in ("add", "mul")},
            "C": np.dtype(compute).type,
            "PART": PART,
        }

    text = {"times": TIMES, "back": BACK}[name].replace("FOUR", FOUR)
    return numba_cpu.address_of(text, name, names, repr((read, compute, PART)), len(ARGUMENTS))
