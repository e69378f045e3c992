"""The Numba CUDA backend: the same rules compiled by `numba.cuda`, arrays reached by address, 16 bytes an access.

Kernels only; how a step runs on a GPU is in `device`. Tests run the same text in Numba's simulator: a runtime of theirs takes the
place of `Backend.runtime_class`, and its own loads and stores that of `IntrinsicMemory`.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache, partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from gpuopt import driver
from gpuopt.backends.device import DeviceBackend
from gpuopt.backends.runtime import DeviceArray, Runtime
from gpuopt.compiler import numba_gpu, nvrtc, to_numba_cuda, walks
from gpuopt.compiler.numba_gpu import Text
from gpuopt.compiler.numba_memory import IntrinsicMemory
from gpuopt.compiler.parts import Layout, Pass, PerMatrix, PerTensor
from gpuopt.compiler.program import Program
from gpuopt.compiler.to_cuda import blocks_per_sm
from gpuopt.compiler.to_cuda_sums import reduce_blocks
from gpuopt.launch import table as t
from gpuopt.launch.stream import override
from gpuopt.messages import one_line

NON_BLOCKING = 1  # CUstream_flags, cuda.h
C_VALUES: dict[str, Any] = {"float32": ctypes.c_float, "float64": ctypes.c_double}


def simulated() -> bool:
    """Whether Numba's CUDA simulator stands in for a GPU."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") == "1"


def missing() -> str | None:
    """None where Numba CUDA imports, finds a GPU and can compile for its driver."""
    try:
        found = numba_gpu.numba_cuda().is_available()
    except Exception as error:
        return driver.why_not("Numba CUDA", one_line(error))
    if not found:
        return driver.why_not("Numba CUDA", "numba-cuda or the CUDA libraries that it needs are missing")
    return None if simulated() else numpy_too_new() or nvrtc.too_new("Numba CUDA")


def numpy_too_new() -> str | None:
    """None unless numba-cuda, at the first kernel that it compiles, asks NumPy for a function that NumPy 2.5 removed."""
    if hasattr(np, "row_stack") or tuple(map(int, version("numba-cuda").split(".")[:2])) > (0, 30):
        return None
    return f"Numba CUDA {version('numba-cuda')} cannot compile with NumPy {np.__version__}; pip install 'numpy<2.5'"


Memory = Callable[[str], Any]  # makes, for a compute type, what has the methods of IntrinsicMemory


@cache
def namespace(compute: str, memory: Memory = IntrinsicMemory) -> dict[str, Any]:
    """The names that every generated text calls, for one compute type."""
    import math

    found = memory(compute)
    names: dict[str, Any] = found.arithmetic()
    return names | {
        "cuda": numba_gpu.numba_cuda(),
        "device": found.device(),
        "C": np.dtype(compute).type,
        "D": np.float64,
        "int64": np.int64,
        **{n: getattr(math, n) for n in ("exp", "log", "pow")},
        "np": np,
        "quotient": found.quotient(),
        "load_word": found.load("int64"),
        "store_word": found.store("int64"),
        "load_flag": found.load("int64"),
        "load_scalar": found.load(compute),
        "store_scalar": found.store(compute),
        "store_sum": found.store("float64", compute="float64"),
        "store_row": found.store(compute),
        "load_double": found.load("float64", compute="float64"),
        "store_double": found.store("float64", compute="float64"),
        "double_bits": found.double_bits(),
        "power_of_two": found.power_of_two(),
        "load_float": found.load("float32", compute="float32"),
    }


def walk_text(program: Program, memory: Memory = IntrinsicMemory) -> Text:
    """`walk` of a program."""
    found = memory(program.compute)
    values = namespace(program.compute, memory) | found.random(program.bits)
    for k, role in enumerate(program.roles):
        width = to_numba_cuda.per_access(role, program.lanes)
        values[f"load_{k}"] = found.load(role.storage, k, len(program.roles))
        values[f"load_pack_{k}"] = found.load_pack(role.storage, width)
        if role.written:
            values[f"store_{k}"] = found.store(role.storage, k, len(program.roles))
            values[f"store_pack_{k}"] = found.store_pack(role.storage, width)
    for k, role in enumerate(program.blocked):
        values |= {f"load_block_{k}": found.load(role.storage), f"store_block_{k}": found.store(role.storage)}
    values |= {"meet": found.meet()}
    values |= {"load_bits": found.load("uint32"), "store_bits": found.store("uint32"), "exchange": found.exchange()}
    meaning = (
        program.compute,
        [(r.storage, r.written) for r in (*program.roles, *program.blocked)],
        len(program.roles),
    )
    return Text(walks.on_gpu(program), "walk", values, repr(meaning))


def reduce_text(layout: Layout, cut: Pass, memory: Memory = IntrinsicMemory) -> Text:
    """A pass that sums."""
    found = memory(layout.compute)
    values = dict(namespace(layout.compute, memory))
    for k in cut.reads:
        role = layout.roles[k]
        values[f"load_{k}"] = found.load(role.storage)
        width = to_numba_cuda.per_access(role, layout.lanes)
        values[f"load_pack_{k}"] = found.load_pack(role.storage, width)
        if k in cut.writes:
            values |= {
                f"store_{k}": found.store(role.storage),
                f"store_pack_{k}": found.store_pack(role.storage, width),
            }
    for k, (_, role) in enumerate(layout.blocked):
        values[f"load_block_{k}"] = found.load(role.storage)
    meaning = repr(
        (layout.compute, [layout.roles[k].storage for k in cut.reads], [r.storage for _, r in layout.blocked])
    )
    if cut.along:
        return Text(to_numba_cuda.reduce_along_source(layout, cut), "reduce_along", values, meaning)
    return Text(to_numba_cuda.reduce_source(layout, cut), "reduce", values, meaning)


def per_matrix_text(made: PerMatrix, memory: Memory = IntrinsicMemory) -> Text:
    """What is done once a matrix."""
    return Text(to_numba_cuda.per_matrix_source(made), "per_matrix", namespace(made.compute, memory), made.compute)


def per_tensor_text(made: PerTensor, memory: Memory = IntrinsicMemory) -> Text:
    """What is done once a tensor: its arithmetic is float64, its values are of the compute type."""
    return Text(to_numba_cuda.per_tensor_source(made), "per_tensor", doubles(made.compute, memory), made.compute)


def all_tensors_text(memory: Memory = IntrinsicMemory) -> Text:
    """Sums over all tensors."""
    return Text(to_numba_cuda.all_tensors_source(), "all_tensors", namespace("float64", memory), "float64")


def exchange_text(memory: Memory = IntrinsicMemory) -> Text:
    """Sums of parts of tensors into one buffer and back."""
    return Text(to_numba_cuda.exchange_source(), "exchange", namespace("float64", memory), "float64")


def doubles(compute: str, memory: Memory) -> dict[str, Any]:
    """The names that float64 text calls, which rounds to a compute type at its end."""
    rounded = {name: namespace(compute, memory)[name] for name in ("C", "load_scalar", "store_scalar", "store_row")}
    return namespace("float64", memory) | rounded


def prepare_text(program: Program, inputs: tuple[str, ...], memory: Memory = IntrinsicMemory) -> Text:
    """`prepare` of a program; its arithmetic is float64, its rows are of the compute type."""
    values = doubles(program.compute, memory)
    return Text(to_numba_cuda.prepare_source(program, inputs), "prepare", values, program.compute)


def compiled(text: Text, blocks: int, signature: str) -> Kernel:
    """The kernel; see numba_gpu.kernel."""
    letters, _, row = signature.partition(" ")
    return Kernel(numba_gpu.kernel(text, blocks, signature), len(letters), bool(row))


class Kernel(NamedTuple):
    """A compiled kernel, cuda.core's or Numba's, the count of its arguments, and whether a tuple of scalars comes behind them."""

    made: Any
    leading: int
    row: bool

    def configured(self, grid: int, stream: Any) -> Callable[..., None]:
        """What launches it, given all arguments and scalars one by one as C values. Numba's own way takes ten times as long: it
        asks each argument at every launch what it is. It is the way where Numba does not say what it has compiled.
        """
        if hasattr(self.made, "overloads"):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Grid size")  # a small step has small grids: nothing to mend
                usual = self.made[grid, t.THREADS, stream]
            return lambda *given: usual(*self.joined([value.value for value in given]))
        from cuda.core import LaunchConfig, Stream, launch

        where, shape = Stream.from_handle(int(stream.handle)), LaunchConfig(grid=grid, block=t.THREADS)
        return partial(launch, where, shape, self.made)

    def joined(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """As the function takes them."""
        return (*values[: self.leading], *([tuple(values[self.leading :])] if self.row else []))


def walk_signature(program: Program) -> str:
    return f"iiiiiiiii {program.compute} x {len(program.row)}"


REDUCE_SIGNATURE = "iiiiiiiii"
REDUCE_ALONG_SIGNATURE = "iiiiiii"
PER_MATRIX_SIGNATURE = "iiiiiiii"
PER_TENSOR_SIGNATURE = "iiiiiiii"
ALL_TENSORS_SIGNATURE = "iiii"
EXCHANGE_SIGNATURE = "iiiiii"
PREPARE_SIGNATURE = "iddiiiiiiiiii"


class NumbaRuntime:
    """A `Runtime` on Numba CUDA's memory and streams."""

    row_limit: int | None = 1  # Numba unpacks a tuple argument scalar by scalar: more rows go up in one copy

    def __init__(self) -> None:
        from numba.cuda.cudadrv.driver import driver

        self.cuda, self.driver = numba_gpu.numba_cuda(), driver
        self.streams: dict[int, Any] = {}  # by address: Numba configures a launch anew for every new object
        self.configured: dict[tuple[Any, int, Any], Any] = {}
        self.thread = threading.local()

    def on_device(self, index: int) -> Any:
        """Numba takes as long to enter and leave a device as to launch a kernel: not where this thread works on it already."""
        if not hasattr(self.thread, "entered"):
            self.cuda.current_context()  # the thread's first one
            self.thread.entered = True
        return nullcontext() if int(self.driver.cuCtxGetDevice()) == index else self.cuda.gpus[index]

    def stream(self, index: int) -> Any:
        """Numba has no current stream; arrays of CuPy are written on CuPy's."""
        current, cupy = override.get(), sys.modules.get("cupy")
        if current is not None:
            address = current(index)
        else:
            address = 0 if cupy is None else cupy.cuda.get_current_stream().ptr
        if address not in self.streams:
            self.streams[address] = self.cuda.external_stream(address) if address else self.cuda.default_stream()
        return self.streams[address]

    def handle(self, stream: Any) -> int:
        return int(stream.handle)

    def capturing(self, stream: Any) -> bool:
        handle = int(stream.handle)
        return bool(handle) and int(self.driver.cuStreamIsCapturing(handle)) != 0

    def multiprocessors(self) -> int:
        return int(self.cuda.get_current_device().MULTIPROCESSOR_COUNT)

    def allocate(self, nbytes: int) -> Any:
        return self.cuda.device_array(nbytes, np.uint8)

    def address(self, buffer: Any) -> int:
        return int(buffer.device_ctypes_pointer.value)

    def pinned(self, nbytes: int) -> Any:
        return self.cuda.pinned_array(nbytes, np.uint8)

    def upload(self, buffer: Any, pinned: Any, stream: Any) -> None:
        self.driver.cuMemcpyHtoDAsync(self.address(buffer), pinned.ctypes.data, pinned.nbytes, int(stream.handle))

    def download(self, buffer: Any, nbytes: int, stream: Any) -> Any:
        self.wait()  # a graph may have been replayed on another stream
        return buffer[:nbytes].copy_to_host()

    def wait(self) -> None:
        self.cuda.synchronize()

    def event(self) -> Any:
        return self.cuda.event(timing=False)

    def side_stream(self) -> Any:
        return self.cuda.external_stream(int(self.driver.cuStreamCreate(NON_BLOCKING)))

    def wait_event(self, stream: Any, event: Any) -> None:
        event.wait(stream)

    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        self.driver.cuMemcpyAsync(target, source, nbytes, int(stream.handle))

    def update_kernel(self, program: Program) -> Any:
        return compiled(walk_text(program), blocks_per_sm(program), walk_signature(program))

    def reduce_kernel(self, layout: Layout, cut: Pass) -> Any:
        signature = REDUCE_ALONG_SIGNATURE if cut.along else REDUCE_SIGNATURE
        return compiled(reduce_text(layout, cut), reduce_blocks(layout, cut), signature)

    def per_matrix_kernel(self, made: PerMatrix) -> Any:
        return compiled(per_matrix_text(made), 1, PER_MATRIX_SIGNATURE)

    def per_tensor_kernel(self, made: PerTensor) -> Any:
        return compiled(per_tensor_text(made), 1, PER_TENSOR_SIGNATURE)

    def all_tensors_kernel(self) -> Any:
        return compiled(all_tensors_text(), 1, ALL_TENSORS_SIGNATURE)

    def exchange_kernel(self) -> Any:
        return compiled(exchange_text(), 1, EXCHANGE_SIGNATURE)

    def shared_array(self, buffer: Any, count: int, dtype: str, stream: Any) -> Any:
        return DeviceArray(self.address(buffer), count, dtype)

    def prepare_kernel(self, program: Program, inputs: tuple[str, ...]) -> Any:
        return compiled(prepare_text(program, inputs), 1, PREPARE_SIGNATURE)

    def rows_argument(self, program: Program, rows: Any, last: Any = None) -> Any:
        if last is None:
            last = [C_VALUES[program.compute](0.0) for _ in program.row]
        if rows is not None and len(rows):
            for there, value in zip(last, rows[0].tolist(), strict=True):
                there.value = value
        return last

    def decision_arguments(self, decision: Any) -> tuple[Any, ...]:
        return tuple(decision.item())

    def packed(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(ctypes.c_double(a) if isinstance(a, float) else ctypes.c_int64(int(a)) for a in arguments)

    def launch(self, kernel: Kernel, grid: int, arguments: tuple[Any, ...], stream: Any) -> None:
        key = (kernel, grid, stream)
        if key not in self.configured:
            self.configured[key] = kernel.configured(grid, stream)
        if kernel.row:
            self.configured[key](*arguments[:-1], *arguments[-1])
        else:
            self.configured[key](*arguments)


class Backend(DeviceBackend):
    """See gpuopt.backends. runtime_class: what its steps run on; a subclass may name another, as tests do."""

    name = "numba-cuda"
    runtime_class: Callable[[], Runtime] = NumbaRuntime

    def __init__(self, index: int = 0) -> None:
        super().__init__(type(self).runtime_class(), index)
