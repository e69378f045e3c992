"""The Numba CPU backend: each rule compiled once, all tensors in one parallel region, arrays reached by address.

A kernel is a C function over a range of tiles; one small parallel driver, compiled once for every rule, calls it by address
with ranges of equal cost. Numba's `parallel=True` on each rule would cost seconds of compile time a rule.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpuopt.backends.host import Addresses, HostBackend
from gpuopt.compiler import numba_cpu
from gpuopt.compiler.parts import Layout, PerMatrix, PerTensor, Step
from gpuopt.launch import table as t
from gpuopt.launch.launcher import Launch
from gpuopt.launch.plan import Plan
from gpuopt.messages import one_line

TILE = 16384
SERIAL = 16384  # elements below which waking a second thread costs more than it saves
TILE_COST = 64  # elements that the overhead of one tile is worth
RANGES_PER_THREAD = 8
TENSORS = 512  # below which waking a second thread for them costs more than it saves


def missing() -> str | None:
    """None where Numba imports."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        return f"Numba does not import ({one_line(error)}); python -m pip install numba"
    return None


# One parallel region at a time: it has all cores anyway, and Numba's workqueue layer dies of two.
_region = threading.Lock()
# lost: to a fork, after which OpenMP hangs or ends the process that asks for them
_threads = {"started": False, "lost": False}
OPENMP = re.compile(r"/(lib[gi]?omp|omppool)[^/]*$", re.MULTILINE)  # of GNU, Intel and LLVM, and Numba's own layer


def openmp_loaded() -> bool:
    """Whether an OpenMP library is in this process: torch's and Numba's are one, so that another package may have its threads."""
    try:
        return OPENMP.search(Path("/proc/self/maps").read_text()) is not None
    except OSError:  # not Linux
        return _threads["started"]


def forked() -> bool:
    """Whether this process came of a fork without a program of its own: the kernel's flag PF_FORKNOEXEC."""
    try:
        return bool(int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6]) & 0x40)
    except OSError:
        return False


def threads_lost() -> bool:
    """Whether this is a forked process that must do with one thread."""
    return _threads["lost"]


def _after_fork() -> None:
    global _region
    _region = threading.Lock()  # another thread of the parent may have held the old one
    _threads["lost"] = _threads["lost"] or openmp_loaded()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
if forked():  # before this module was imported
    _after_fork()


class Ranges:
    """A compiled function `f(*before, lo, hi, *after, ...)` over ranges of pieces, on all threads: one parallel region for all of
    them. The last arguments are given at each call; `bounds` are those of the ranges.

    held: whether Python's lock is kept meanwhile.
    """

    def __init__(
        self, function: int, before: tuple[int, ...], bounds: NDArray[np.int64], after: tuple[int, ...], last: int = 0,
        held: bool = False,
    ) -> None:  # fmt: skip
        self.bounds, count = bounds, len(bounds) - 1
        self._pieces = [(*before, lo, hi, *after) for lo, hi in pairwise(bounds.tolist())]
        self._one = numba_cpu.as_python(function, len(before) + 2 + len(after) + last, held)
        self._all: Callable[..., None] | None = None
        if count > 1 and not _threads["lost"]:
            _threads["started"] = True
            self._all = driver(len(before), len(after) + last, held)
            self._fixed = (function, *before, bounds.ctypes.data, count, *after)

    def __call__(self, *last: int) -> None:
        with _region:
            if self._all is not None and not _threads["lost"]:  # this may be older than the fork
                self._all(*self._fixed, *last)
            else:
                for piece in self._pieces:
                    self._one(*piece, *last)


@cache
def driver(before: int, after: int, held: bool) -> Callable[..., None]:
    """The parallel region, compiled once for every function with as many arguments before and behind the range."""
    return numba_cpu.as_python(numba_cpu.driver_address(before, after), 3 + before + after, held)


def even_ranges(count: int, size: int) -> NDArray[np.int64]:
    """Bounds of as many ranges of at least `size` as there are threads."""
    from numba import get_num_threads

    pieces = max(1, min(get_num_threads(), count // size))
    return np.linspace(0, count, pieces + 1).astype(np.int64)


def ranges(plan: Plan, words: NDArray[np.int64], size: int, threads: int) -> NDArray[np.int64]:
    """Bounds of ranges of pieces with equal cost: several for each thread, so that a slow core does not hold the others."""
    if plan.total <= SERIAL or threads == 1:
        return np.array([0, len(words)], np.int64)
    left = plan.table[words >> 32, t.NUMEL] - (words & 0xFFFFFFFF) * size
    # 0: of the last tiles of a tensor whose rows fill no whole groups
    cost = np.cumsum(np.clip(left, 0, size) + TILE_COST)
    count = min(len(words), threads * RANGES_PER_THREAD)
    inner = np.searchsorted(cost, cost[-1] * np.arange(1, count) / count)
    return np.unique(np.concatenate([[0], inner, [len(words)]])).astype(np.int64)


class Backend(HostBackend):
    """See gpuopt.backends."""

    name = "numba"

    def update(self, launch: Launch, multiplier: float) -> None:
        """One call for every tensor of the launch."""
        private = launch.private
        walk = launch.kept("walk", lambda: self.prepared_walk(launch.plan))
        walk(private["rows"].ctypes.data, *(private["passes"].at[-2:] if "passes" in private else (0, 0)))

    def prepared_walk(self, plan: Plan) -> Ranges:
        """The walk of all tensors, to be called with the rows and values: it holds as long as the plan."""
        plan.cut_tiles(TILE)
        function, bounds = numba_cpu.walk_address(plan.program), self.bounds(plan, plan.tiles, TILE)
        return Ranges(function, (plan.table.ctypes.data, plan.tiles.ctypes.data), bounds, (plan.tile_size,), 3)

    def prepared(self, plan: Plan, layout: Layout, step: Step) -> Callable[[Addresses], None]:
        """One pass that sums, or what is done once a tensor or matrix; see HostBackend."""
        head = plan.table.ctypes.data, plan.table.shape[1]
        if isinstance(step, PerTensor):
            bounds = even_ranges(len(plan.table), TENSORS)
            run = Ranges(numba_cpu.per_tensor_address(step), (*head, plan.begins.ctypes.data), bounds, (), 4)
            return lambda at: run(at.wide, at.partials, at.totals, at.values)
        if isinstance(step, PerMatrix):
            bounds = even_ranges(len(plan.matrices), 1)
            run = Ranges(numba_cpu.per_matrix_address(step), (*head, plan.matrices.ctypes.data), bounds, (), 3)
            return lambda at: run(at.rows, at.values, at.slots)
        function = numba_cpu.reduce_address(layout, step)
        if step.along:
            run = Ranges(function, (*head, plan.blocks.ctypes.data), even_ranges(len(plan.blocks), 1), (), 3)
            return lambda at: run(at.rows, at.values, at.slots)
        run = Ranges(function, (*head, plan.chunks.ctypes.data), self.bounds(plan, plan.chunks, t.CHUNK), (), 4)
        return lambda at: run(at.rows, at.values, at.slots, at.partials)

    def bounds(self, plan: Plan, words: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """The ranges for as many threads as Numba uses now."""
        from numba import get_num_threads

        return ranges(plan, words, size, get_num_threads())
