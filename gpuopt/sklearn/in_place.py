"""Products of a minibatch with one column, its rows read where they lie in the data: compiled, by several threads, nothing copied.

Made by `batches.py`, multiplied by `network.py`. Knows no loss and no optimizer. BLAS needs rows that lie together: to gather them
writes each number once more and takes longer than both products of a step. What a part of PART rows adds to a gradient is summed by
itself, then these one after another, so that no number of threads changes a bit.

A product takes a tenth of a millisecond. OpenMP's threads wait for each other at its end, spinning, for many times that where
another program keeps one of them from running. So threads take parts from a counter here, whoever is there: one that comes late
finds none, and is not waited for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from gpuopt.compiler import numba_cpu

Array = np.ndarray[Any, Any]
PART = 256  # rows
HELPERS = 3  # threads besides the one that calls, at most
ARGUMENTS = 9
FOUR = ", ".join(f"load_word(order, k + {r}) * width" for r in range(4))
# Four rows at once: each number of the column, or of the sums, is read and written for all of them together.
TIMES = """
        for k in range(begin, end - 3, 4):
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
        for k in range(end - (end - begin) % 4, end):
            a0 = load_word(order, k) * width
            s0 = C(0)
            for j in range(width):
                s0 = add(s0, mul(C(read(array, a0 + j)), load(column, j)))
            store(out, k, s0)
"""
BACK = """
        first = part * width
        for j in range(width):
            store(out, first + j, C(0))
        for k in range(begin, end - 3, 4):
            a0, a1, a2, a3 = (FOUR)
            r0, r1, r2, r3 = load(column, k), load(column, k + 1), load(column, k + 2), load(column, k + 3)
            for j in range(width):
                s = add(mul(C(read(array, a0 + j)), r0), mul(C(read(array, a1 + j)), r1))
                t = add(mul(C(read(array, a2 + j)), r2), mul(C(read(array, a3 + j)), r3))
                store(out, first + j, add(again(out, first + j), add(s, t)))
        for k in range(end - (end - begin) % 4, end):
            a0 = load_word(order, k) * width
            r0 = load(column, k)
            for j in range(width):
                store(out, first + j, add(again(out, first + j), mul(C(read(array, a0 + j)), r0)))
"""
PARTS = """def product(taken, done, parts, array, order, count, width, column, out):
    part = counted(taken, 1)
    while part < parts:
        begin = part * PART
        end = min(begin + PART, count)
BODY
        counted(done, 1)
        part = counted(taken, 1)
"""
WAIT = """def wait(done, parts):
    while counted(done, 0) < parts:
        pass
"""
BODIES = {"times": TIMES, "back": BACK}
Job = tuple[Callable[..., None], tuple[int, ...], Array]  # with its counters, which nobody uses again


class Helper(threading.Thread):
    """A thread that looks for parts of a job whenever it is called, and has none of its own to do."""

    def __init__(self) -> None:
        super().__init__(name="gpuopt-helper", daemon=True)
        self.job: Job | None = None
        self.called = threading.Lock()
        self.called.acquire()
        self.start()

    def call(self, job: Job | None) -> None:
        """Let it take part in this job, or end. It may be busy with the last one still: then it looks behind that."""
        self.job = job
        if self.called.locked():
            self.called.release()

    def run(self) -> None:
        """Until it is told to end."""
        while True:
            self.called.acquire()
            job = self.job
            if job is None:
                return
            function, arguments, _ = job
            function(*arguments)


class Lying:
    """Data, (n, features) in C order of float32 or float64, for products in a dtype of minibatches of up to `rows` rows."""

    def __init__(self, array: Array, dtype: Any, rows: int) -> None:
        self.array, self.dtype = np.ascontiguousarray(array), np.dtype(dtype)
        self.sums = np.empty((-(-rows // PART), array.shape[1]), self.dtype)
        self.functions = {name: _product(name, self.array.dtype.name, self.dtype.name) for name in BODIES}
        self.wait = _wait()
        self.helpers: list[Helper] = []

    @contextmanager
    def helped(self) -> Iterator[None]:
        """Meanwhile other threads help, as many as Numba may use."""
        from numba import get_num_threads

        try:
            self.helpers = [Helper() for _ in range(min(get_num_threads() - 1, HELPERS, len(self.sums) - 1))]
            yield
        finally:
            for helper in self.helpers:
                helper.call(None)
            for helper in self.helpers:
                helper.join()
            self.helpers = []

    def run(self, name: str, count: int, *addresses: int) -> None:
        """One of the products, of `count` rows."""
        parts, counters = -(-count // PART), np.zeros(16, np.int64)  # two, in cache lines of their own
        taken, done = counters.ctypes.data, counters.ctypes.data + 64
        function, arguments = self.functions[name], (taken, done, parts, *addresses)
        for helper in self.helpers:
            helper.call((function, arguments, counters))
        function(*arguments)
        if self.helpers:
            self.wait(done, parts)


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
        array, order, (count, width) = self.of.array.ctypes.data, self.order.ctypes.data, self.shape
        self.of.run(name, count, array, order, count, width, column.ctypes.data, out.ctypes.data)


@cache
def _product(name: str, read: str, compute: str) -> Callable[..., None]:
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
            "counted": numba_ir.counted(intrinsic),
            "C": np.dtype(compute).type,
            "PART": PART,
        }

    text = PARTS.replace("BODY", BODIES[name].strip("\n")).replace("FOUR", FOUR)
    address = numba_cpu.address_of(text, "product", names, repr((read, compute, PART)), ARGUMENTS)
    return numba_cpu.as_python(address, ARGUMENTS, held=False)


@cache
def _wait() -> Callable[..., None]:
    """Until so many parts are done."""

    def names() -> dict[str, Any]:
        from numba.extending import intrinsic

        from gpuopt.compiler import numba_ir

        return {"counted": numba_ir.counted(intrinsic)}

    return numba_cpu.as_python(numba_cpu.address_of(WAIT, "wait", names, "", 2), 2, held=False)
