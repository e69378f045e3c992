"""Numba's CUDA simulator as a runtime: kernels run in Python on host memory that they reach by address.

`SimulatedBackend` is the backend numba-cuda on it, for processes under NUMBA_ENABLE_CUDASIM=1. Used by simulate.py and, for its
host memory, by shim.backend and test_gpu_graphs.
"""

from __future__ import annotations

import ctypes
import operator
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.backends import numba_cuda
from gpuopt.compiler.numba_gpu import Text
from gpuopt.compiler.parts import Layout, Pass, PerMatrix, PerTensor
from gpuopt.compiler.program import Program
from gpuopt.compiler.scalars import ipow
from gpuopt.formats import philox
from gpuopt.formats.dtypes import STORAGES, numpy_dtype
from gpuopt.launch import table as t
from gpuopt.launch.sums import power_of_two
from gpuopt.native.memory import memory
from gpuopt.rules.language import maximum, minimum, sign, sqrt, where
from gpuopt.rules.primitives import bits, from_bits

WHOLE, BITS = np.dtype(np.int64), np.dtype(np.uint32)


class Memory:
    """Loads, stores and arithmetic in Python, on NumPy scalars of the compute type."""

    def __init__(self, compute: str) -> None:
        self.compute = compute

    def load(self, storage: str, scope: int = 0, scopes: int = 1, compute: str | None = None) -> Callable[..., Any]:
        if storage == "int64":
            return lambda base, i: int(memory(base + 8 * i, WHOLE)[0])
        if storage == "uint32":
            return lambda base, i: memory(base + 4 * i, BITS)[0]
        dtype = element_dtype(storage)
        target = np.dtype(compute or (self.compute if storage == "bool" else STORAGES[storage].compute)).type
        target = np.uint32 if STORAGES[storage].code else target
        return lambda base, i: target(memory(base + dtype.itemsize * i, dtype)[0])

    def store(self, storage: str, scope: int = 0, scopes: int = 1, compute: str | None = None) -> Callable[..., Any]:
        dtype = {"int64": WHOLE, "uint32": BITS}.get(storage) or element_dtype(storage)

        def store(base: int, i: int, value: Any) -> None:
            memory(base + dtype.itemsize * i, dtype)[:] = np.asarray([value]).astype(dtype)

        return store

    def load_pack(self, storage: str, count: int) -> Callable[..., Any]:
        dtype, target = element_dtype(storage), np.uint32 if STORAGES[storage].code else np.dtype(self.compute).type

        def load(address: int) -> tuple[Any, ...]:
            check_pack(address, dtype.itemsize * count)
            return tuple(target(x) for x in memory(address, dtype, count))

        return load

    def store_pack(self, storage: str, count: int) -> Callable[..., Any]:
        dtype = element_dtype(storage)

        def store(address: int, values: tuple[Any, ...]) -> None:
            check_pack(address, dtype.itemsize * count)
            memory(address, dtype, count)[:] = np.array(values).astype(dtype)

        return store

    def random(self, bits: int) -> dict[str, Any]:
        each = philox.per_call(bits)

        def words(block: int, stream: int, step: int, tensor: int, seed: int) -> tuple[Any, ...]:
            return tuple(philox.words(seed, tensor, step, stream, block * each, each, bits))

        return {"philox": words, "chosen": lambda made, index: made[index]}

    def meet(self) -> Callable[..., Any]:
        return lambda: None  # where numbers are exchanged, all threads of a block meet

    def exchange(self) -> Callable[..., Any]:
        there = np.zeros(t.THREADS, np.float32)  # of all threads of a block, which exchange together

        def exchange(x: Any, mask: int) -> Any:
            thread: Any = threading.current_thread()  # one of the simulator's
            there[thread.threadIdx.x] = x
            thread.syncthreads()
            found = there[thread.threadIdx.x ^ mask]
            thread.syncthreads()
            return found

        return exchange

    def device(self) -> Callable[..., Any]:
        return lambda function: function

    def quotient(self) -> Callable[..., Any]:
        return lambda a, b: a // b

    def double_bits(self) -> Callable[..., Any]:
        return lambda x: int(np.float64(x).view(np.int64))

    def power_of_two(self) -> Callable[..., Any]:
        return lambda exponent: np.float64(power_of_two(exponent))

    def arithmetic(self) -> dict[str, Any]:
        return {
            "mul": lambda a, b: a * b,
            "div": np.divide,
            "sqrt": sqrt,
            "absolute": abs,
            "minimum": lambda a, b: number(minimum(a, b)),
            "maximum": lambda a, b: number(maximum(a, b)),
            "sign": lambda x: np.asarray(x).dtype.type(sign(x)),
            "select": lambda c, a, b: type(a)(where(c, a, b)),
            "U": np.uint32,
            "float_bits": lambda x: bits(x)[()],
            "bits_float": lambda n: from_bits(n)[()],
            **{"i" + op: getattr(operator, word) for op, word in WORDS.items()},
            "ipow": lambda base, n: np.float64(ipow(float(base), int(n))),
        }


def number(x: Any) -> Any:
    """The scalar that an array without dimensions holds: NumPy's `where` gives one, kernels know only scalars."""
    return x[()] if isinstance(x, np.ndarray) else x


WORDS = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "and": "and_",
    "or": "or_",
    "xor": "xor",
    "shl": "lshift",
    "shr": "rshift",
}


def element_dtype(storage: str) -> np.dtype[Any]:
    """What an element is in memory; a code is a whole number from 0 on."""
    found = numpy_dtype(storage)
    return np.dtype(f"u{found.itemsize}") if STORAGES[storage].code else found


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

    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        ctypes.memmove(target, source, nbytes)

    def update_kernel(self, program: Program) -> Any:
        return simulated(numba_cuda.walk_text(program, Memory))

    def reduce_kernel(self, layout: Layout, cut: Pass) -> Any:
        return simulated(numba_cuda.reduce_text(layout, cut, Memory))

    def per_tensor_kernel(self, made: PerTensor) -> Any:
        return simulated(numba_cuda.per_tensor_text(made, Memory))

    def per_matrix_kernel(self, made: PerMatrix) -> Any:
        return simulated(numba_cuda.per_matrix_text(made, Memory))

    def all_tensors_kernel(self) -> Any:
        return simulated(numba_cuda.all_tensors_text(Memory))

    def exchange_kernel(self) -> Any:
        return simulated(numba_cuda.exchange_text(Memory))

    def shared_array(self, buffer: Any, count: int, dtype: str, stream: Any) -> Any:
        return memory(self.address(buffer), np.dtype(dtype), count)

    def prepare_kernel(self, program: Program, inputs: tuple[str, ...]) -> Any:
        return simulated(numba_cuda.prepare_text(program, inputs, Memory))

    def rows_argument(self, program: Program, rows: NDArray[Any] | None, last: Any = None) -> Any:
        return tuple(rows[0]) if rows is not None and len(rows) else ()

    def decision_arguments(self, decision: Any) -> tuple[Any, ...]:
        return tuple(decision.item())

    def packed(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return plain(arguments)

    def launch(self, kernel: Any, grid: int, arguments: tuple[Any, ...], stream: Any) -> None:
        with np.errstate(all="ignore"):
            kernel[grid, t.THREADS](*arguments)


def simulated(text: Text) -> Any:
    """A kernel of the simulator, which takes arguments of any type."""
    from numba import cuda

    return cuda.jit(text.function)


def plain(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Whole numbers of any width as Python's own: Numba's kernels take int64 everywhere."""
    return tuple(int(a) if isinstance(a, np.integer) else a for a in arguments)


class _Event:
    def record(self, stream: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


class SimulatedBackend(numba_cuda.Backend):
    """The backend numba-cuda in the simulator."""

    runtime_class = SimulatorRuntime
