"""Numba's CUDA simulator as a runtime: kernels run in Python on host memory that they reach by address. For tests only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.compiler.host import ipow
from gpuopt.compiler.lower import Draw, Program
from gpuopt.formats import philox
from gpuopt.formats.dtypes import STORAGES, numpy_dtype
from gpuopt.formats.stochastic import encode
from gpuopt.launch import table as t
from gpuopt.peek import memory
from gpuopt.rules.language import maximum, minimum, sign, sqrt, where

WHOLE = np.dtype(np.int64)


class Memory:
    """Loads, stores and arithmetic in Python, on NumPy scalars of the compute type."""

    def __init__(self, compute: str) -> None:
        self.compute = compute

    def load(self, storage: str, scope: int = 0, scopes: int = 1, compute: str | None = None) -> Callable[..., Any]:
        if storage == "int64":
            return lambda base, i: int(memory(base + 8 * i, WHOLE)[0])
        dtype = numpy_dtype(storage)
        target = np.dtype(compute or (self.compute if storage == "bool" else STORAGES[storage].compute)).type
        return lambda base, i: target(memory(base + dtype.itemsize * i, dtype)[0])

    def store(
        self, storage: str, scope: int = 0, scopes: int = 1, compute: str | None = None, draw: Draw | None = None
    ) -> Callable[..., Any]:
        dtype = WHOLE if storage == "int64" else numpy_dtype(storage)

        def store(base: int, i: int, value: Any, word: Any = None) -> None:
            memory(base + dtype.itemsize * i, dtype)[:] = encoded(storage, dtype, [value], [word], draw)

        return store

    def load_pack(self, storage: str, count: int) -> Callable[..., Any]:
        dtype, target = numpy_dtype(storage), np.dtype(self.compute).type

        def load(address: int) -> tuple[Any, ...]:
            check_pack(address, dtype.itemsize * count)
            return tuple(target(x) for x in memory(address, dtype, count))

        return load

    def store_pack(self, storage: str, count: int, draw: Draw | None = None) -> Callable[..., Any]:
        dtype = numpy_dtype(storage)

        def store(address: int, values: tuple[Any, ...], words: Sequence[Any] = ()) -> None:
            check_pack(address, dtype.itemsize * count)
            memory(address, dtype, count)[:] = encoded(storage, dtype, np.array(values, self.compute), words, draw)

        return store

    def random(self) -> dict[str, Any]:
        def words(block: int, stream: int, step: int, tensor: int, seed: int) -> tuple[Any, ...]:
            return tuple(philox.words(seed, tensor, step, stream, block * philox.PER_BLOCK, philox.PER_BLOCK))

        return {"philox": words, "chosen": lambda made, index: made[index]}

    def arithmetic(self) -> dict[str, Any]:
        return {
            "mul": lambda a, b: a * b,
            "div": np.divide,
            "sqrt": sqrt,
            "absolute": abs,
            "minimum": minimum,
            "maximum": maximum,
            "sign": lambda x: type(x)(sign(x)),
            "select": lambda c, a, b: type(a)(where(c, a, b)),
            "ipow": lambda base, n: np.float64(ipow(float(base), int(n))),
        }


def encoded(storage: str, dtype: np.dtype[Any], values: Any, words: Any, draw: Draw | None) -> NDArray[Any]:
    """Values as they are stored, rounded with the random words where the role draws."""
    if draw is None:
        return np.asarray(values).astype(dtype)
    return encode(storage, np.asarray(values, np.float32), np.asarray(words, np.uint32) >> np.uint32(draw.shift))


def check_pack(address: int, size: int) -> None:
    """A GPU faults on a misaligned vector access; so does the simulator."""
    if address % size:
        raise ValueError(f"misaligned access of {size} bytes at {address}")


class SimulatorRuntime:
    """A `Runtime` on host memory."""

    row_limit: int | None = 1

    def on_device(self, index: int) -> Any:
        return nullcontext()

    def stream(self, index: int) -> Any:
        return 0

    def handle(self, stream: Any) -> int:
        return 0

    def capturing(self, stream: Any) -> bool:
        return False

    def multiprocessors(self) -> int:
        return 1

    def allocate(self, nbytes: int) -> Any:
        return np.zeros(-(-nbytes // 8), np.int64)

    def address(self, buffer: Any) -> int:
        return int(buffer.ctypes.data)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        return np.zeros(nbytes, np.uint8)

    def upload(self, buffer: Any, pinned: NDArray[np.uint8], stream: Any) -> None:
        buffer.view(np.uint8)[: pinned.size] = pinned

    def download(self, buffer: Any, nbytes: int, stream: Any) -> NDArray[np.uint8]:
        result: NDArray[np.uint8] = buffer.view(np.uint8)[:nbytes].copy()
        return result

    def wait(self) -> None:
        pass

    def event(self) -> Any:
        return _Event()

    def update_kernel(self, program: Program) -> Any:
        from gpuopt.backends.numba_cuda import compiled, walk_function, walk_signature

        return compiled(walk_function(program), 1, walk_signature(program))

    def sums_kernel(self, storage: str, compute: str) -> Any:
        from gpuopt.backends.numba_cuda import SUMS_SIGNATURE, compiled, sums_function

        return compiled(sums_function(storage, compute), 1, SUMS_SIGNATURE)

    def prepare_kernel(self, program: Program, inputs: tuple[str, ...]) -> Any:
        from gpuopt.backends.numba_cuda import PREPARE_SIGNATURE, compiled, prepare_function

        return compiled(prepare_function(program, inputs), 1, PREPARE_SIGNATURE)

    def rows_argument(self, program: Program, rows: NDArray[Any] | None, last: Any = None) -> Any:
        return tuple(rows[0]) if rows is not None and len(rows) else ()

    def decision_arguments(self, decision: Any) -> tuple[Any, ...]:
        return tuple(decision.item())

    def packed(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return plain(arguments)

    def launch(self, kernel: Any, grid: int, arguments: tuple[Any, ...], stream: Any) -> None:
        with np.errstate(all="ignore"):
            kernel[grid, t.THREADS](*arguments)


def plain(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Whole numbers of any width as Python's own: Numba's kernels take int64 everywhere."""
    return tuple(int(a) if isinstance(a, np.integer) else a for a in arguments)


class _Event:
    def record(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass
