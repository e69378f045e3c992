"""The Numba CPU backend: each rule compiled once, all tensors in one parallel region, arrays reached by address.

A kernel is a C function over a range of tiles; one small parallel driver, compiled once for every rule, calls it by address
with ranges of equal cost. Numba's `parallel=True` on each rule would cost seconds of compile time a rule.
"""

from __future__ import annotations

import linecache
import os
import re
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuopt.backends.host import HostBackend
from gpuopt.compiler import to_numba
from gpuopt.compiler.lower import Program
from gpuopt.launch import table as t
from gpuopt.launch.launcher import Launch
from gpuopt.launch.plan import Plan
from gpuopt.messages import one_line

TILE = 16384
SERIAL = 16384  # elements below which waking a second thread costs more than it saves
TILE_COST = 64  # elements that the overhead of one tile is worth
RANGES_PER_THREAD = 8


def missing() -> str | None:
    """None where Numba imports."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        return f"Numba does not import ({one_line(error)}); python -m pip install numba"
    return None


@cache
def namespace(compute: str) -> dict[str, Any]:
    """The names that generated text calls, for one compute type, compiled for the CPU."""
    from numba.extending import intrinsic

    from gpuopt.compiler import numba_ir

    return numba_ir.arithmetic(intrinsic, "cpu") | {
        "prefetch": numba_ir.prefetch(intrinsic),
        "C": np.dtype(compute).type,
        "np": np,
        "int64": np.int64,
        "dtype": np.dtype(compute).type,
        "load_word": numba_ir.load(intrinsic, "int64", compute, 0, 1),
        "load_scalar": numba_ir.load(intrinsic, compute, compute, 0, 1),
        "store_sum": numba_ir.store(intrinsic, "float64", "float64", 0, 1),
    }


def compile_text(source: str, name: str, values: dict[str, Any], arguments: int) -> int:
    """The address of the compiled C function `name(int64 x arguments)`; the text stays visible in tracebacks."""
    from numba import njit

    filename = f"<gpuopt {name} {hash(source):x}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    scope = dict(values)
    exec(compile(source, filename, "exec"), scope)
    if "update" in scope:
        scope["update"] = njit(error_model="numpy")(scope["update"])
    return c_function(scope[name], arguments)


def c_function(function: Callable[..., None], arguments: int) -> int:
    """The address of the compiled C function `function(int64 x arguments)`."""
    from numba import cfunc, types

    compiled = cfunc(types.void(*[types.int64] * arguments), error_model="numpy", nogil=True)(function)
    _alive.append(compiled)
    address: int = compiled.address or 0
    return address


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
_alive: list[Any] = []  # compiled functions, whose addresses are in use


@cache
def walk_address(program: Program) -> int:
    """The compiled walk of a program."""
    from numba.extending import intrinsic

    from gpuopt.compiler import numba_ir, numba_random

    values = dict(namespace(program.compute))
    roles = program.roles
    scopes = len(roles) + bool(program.draws)  # of memory that is apart: one for each role, one for random bits
    for k, role in enumerate(roles):
        access = (intrinsic, role.storage, program.compute, k, scopes)
        values[f"load_{k}"] = numba_ir.load(*access)
        if role.written:
            values[f"store_{k}"] = numba_ir.store(*access, draw=program.draws.get(k))
    if program.draws:
        bits = (intrinsic, "uint32", program.compute, len(roles), scopes)
        values |= {"load_bits": numba_ir.load(*bits), "store_bits": numba_ir.store(*bits)}
        values["philox"] = numba_random.philox(intrinsic)
    return compile_text(to_numba.cpu_source(program), "walk", values, 6)


@cache
def sums_address(storage: str, compute: str) -> int:
    """The compiled sums of a gradient of this dtype."""
    from numba.extending import intrinsic

    from gpuopt.compiler import numba_ir

    values = namespace(compute) | {"load_0": numba_ir.load(intrinsic, storage, compute, 0, 1)}
    return compile_text(to_numba.sums_source(storage, compute), "sums", values, 7)


class Drivers(NamedTuple):
    """`walk` and `sums` over ranges: one parallel region for all tensors of a launch. `held`: `walk` with Python's lock held."""

    walk: Callable[..., None]
    sums: Callable[..., None]
    held: Callable[..., None]


def drivers(parallel: bool) -> Drivers:
    """Compiled once for every rule; serial ones in a process that was forked from one that may have had threads."""
    parallel = parallel and not _threads["lost"]
    _threads["started"] |= parallel
    return _drivers(parallel)


@cache
def _drivers(parallel: bool) -> Drivers:
    from numba import njit, prange
    from numba.extending import intrinsic

    from gpuopt.compiler import numba_ir

    call_walk = numba_ir.caller(intrinsic, 6)
    call_sums = numba_ir.caller(intrinsic, 7)
    compiler: Any = njit(parallel=parallel)

    @compiler
    def walk(function, table, tiles, bounds, tile_size, rows):  # type: ignore[no-untyped-def]
        for k in prange(len(bounds) - 1):
            call_walk(function, table, tiles, bounds[k], bounds[k + 1], tile_size, rows)

    @compiler
    def sums(function, table, columns, role, chunks, bounds, partials):  # type: ignore[no-untyped-def]
        for k in prange(len(bounds) - 1):
            call_sums(function, table, columns, role, chunks, bounds[k], bounds[k + 1], partials)

    def released(driver: Any) -> Any:
        @njit(nogil=True)
        def run(*arguments):  # type: ignore[no-untyped-def]
            driver(*arguments)

        return run

    return Drivers(released(walk), released(sums), walk)


def in_ranges(function: int, bounds: NDArray[np.int64], a: int, b: int, c: int, d: int) -> None:
    """Call the compiled `function(a, b, lo, hi, c, d)` for each range, on all threads, with Python's lock held."""
    with _region:
        drivers(len(bounds) > 2).held(function, a, b, bounds, c, d)


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
    cost = np.cumsum(np.minimum(left, size) + TILE_COST)
    count = min(len(words), threads * RANGES_PER_THREAD)
    inner = np.searchsorted(cost, cost[-1] * np.arange(1, count) / count)
    return np.unique(np.concatenate([[0], inner, [len(words)]])).astype(np.int64)


class Backend(HostBackend):
    """See gpuopt.backends."""

    name = "numba"

    def update(self, launch: Launch, multiplier: float) -> None:
        """One call of the driver for every tensor of the launch."""
        private = launch.private
        if "walk" not in private:
            private["walk"] = self.prepared_walk(launch.plan)
        driver, arguments = private["walk"]
        if _threads["lost"]:  # the driver may be older than the fork
            driver = drivers(False).walk
        with _region:
            driver(*arguments, private["rows"].ctypes.data)

    def prepared_walk(self, plan: Plan) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """The driver and all its arguments but the rows: they hold as long as the plan."""
        plan.cut_tiles(TILE)
        bounds = self.bounds(plan, plan.tiles, TILE)
        addresses = plan.table.ctypes.data, plan.tiles.ctypes.data
        return drivers(len(bounds) > 2).walk, (walk_address(plan.program), *addresses, bounds, TILE)

    def sums(self, launch: Launch) -> NDArray[Any]:
        """Partial sums of every chunk: [chunks, 2]."""
        plan, private = launch.plan, launch.private
        roles = [r.name for r in plan.program.roles]
        role = roles.index("g")
        if "sums" not in private:
            private["sums"] = sums_address(plan.program.roles[role].storage, plan.program.compute)
            private["sums_bounds"] = self.bounds(plan, plan.chunks, t.CHUNK)
            private["partials"] = np.empty((len(plan.chunks), 2))
        bounds, partials = private["sums_bounds"], private["partials"]
        table, chunks = plan.table.ctypes.data, plan.chunks.ctypes.data
        with _region:
            driver = drivers(len(bounds) > 2).sums
            driver(private["sums"], table, plan.table.shape[1], role, chunks, bounds, partials.ctypes.data)
        result: NDArray[Any] = partials
        return result

    def bounds(self, plan: Plan, words: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """The ranges for as many threads as Numba uses now."""
        from numba import get_num_threads

        return ranges(plan, words, size, get_num_threads())
