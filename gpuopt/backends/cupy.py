"""The CuPy backend: cubins from NVRTC, loaded and launched by CuPy on its current stream. How a step runs is in `device`."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from gpuopt import driver
from gpuopt.backends.device import DeviceBackend
from gpuopt.backends.runtime import DECISION, DeviceArray
from gpuopt.compiler import nvrtc, to_cuda, to_cuda_sums
from gpuopt.compiler.parts import Layout, Pass, PerMatrix, PerTensor
from gpuopt.compiler.program import Program
from gpuopt.launch import table as t
from gpuopt.launch.stream import override
from gpuopt.messages import one_line

HOST_TO_DEVICE, DEVICE_TO_HOST, BY_ADDRESS = 1, 2, 4  # cudaMemcpyKind


def missing() -> str | None:
    """None where CuPy imports, finds a GPU, and NVRTC is there."""
    try:
        import cupy

        found = cupy.cuda.runtime.getDeviceCount() > 0
    except ImportError as error:
        return driver.why_not("CuPy", one_line(error))
    except Exception as error:
        return too_old() or driver.why_not("CuPy", one_line(error))
    return nvrtc.missing() if found else driver.why_not("CuPy", "it finds no GPU")


def too_old() -> str | None:
    """None unless the driver is older than the CUDA that the installed CuPy was built for."""
    for cuda in driver.RELEASES:
        name = f"cupy-cuda{cuda}x"
        with suppress(PackageNotFoundError):
            version(name)
            return driver.too_old_for(cuda, f"CuPy ({name})", name)
    return None


class RawStream:
    """A stream by its address: of a stream CuPy's launches and events read `ptr` only."""

    __slots__ = ("ptr",)

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class CupyRuntime:
    """A `Runtime` on CuPy's streams and kernels."""

    row_limit: int | None = None  # as many rows as the kernel argument holds

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy
        self.runtime = cupy.cuda.runtime

    def on_device(self, index: int) -> Any:
        return self.cupy.cuda.Device(index)

    def stream(self, index: int) -> Any:
        current = override.get()
        return self.cupy.cuda.get_current_stream() if current is None else RawStream(current(index))

    def handle(self, stream: Any) -> int:
        return int(stream.ptr)

    def capturing(self, stream: Any) -> bool:
        return bool(stream.ptr) and bool(self.runtime.streamIsCapturing(stream.ptr))

    def multiprocessors(self) -> int:
        return int(
            self.runtime.deviceGetAttribute(self.runtime.cudaDevAttrMultiProcessorCount, self.runtime.getDevice())
        )

    def allocate(self, nbytes: int) -> Any:
        """Not from CuPy's pool, which hands out again at once what is freed on its current stream: cudaFree waits."""
        return self.cupy.cuda.MemoryPointer(self.cupy.cuda.Memory(nbytes), 0)

    def address(self, buffer: Any) -> int:
        return int(buffer.ptr)

    def pinned(self, nbytes: int) -> Any:
        """Not from CuPy's pool either, which asks for events: that is forbidden while a stream is captured."""
        made = self.cupy.cuda.PinnedMemoryPointer(self.cupy.cuda.PinnedMemory(nbytes), 0)
        return np.frombuffer(made, np.uint8, nbytes)

    def upload(self, buffer: Any, pinned: Any, stream: Any) -> None:
        self.runtime.memcpyAsync(buffer.ptr, pinned.ctypes.data, pinned.nbytes, HOST_TO_DEVICE, stream.ptr)

    def download(self, buffer: Any, nbytes: int, stream: Any) -> Any:
        self.wait()  # a graph may have been replayed on another stream
        result = np.empty(nbytes, np.uint8)
        self.runtime.memcpy(result.ctypes.data, buffer.ptr, nbytes, DEVICE_TO_HOST)
        return result

    def wait(self) -> None:
        self.runtime.deviceSynchronize()

    def event(self) -> Any:
        return self.cupy.cuda.Event(disable_timing=True)

    def side_stream(self) -> Any:
        return self.cupy.cuda.Stream(non_blocking=True)

    def wait_event(self, stream: Any, event: Any) -> None:
        self.runtime.streamWaitEvent(stream.ptr, event.ptr)

    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        self.runtime.memcpyAsync(target, source, nbytes, BY_ADDRESS, stream.ptr)

    def _function(self, source: str, name: str) -> Any:
        arch = f"sm_{self.cupy.cuda.Device().compute_capability}"
        module = self.cupy.cuda.Module()
        module.load(nvrtc.compile_cubin(source, arch))
        return module.get_function(name)

    def update_kernel(self, program: Program) -> Any:
        return self._function(to_cuda.update_source(program), "gpuopt_update")

    def reduce_kernel(self, layout: Layout, cut: Pass) -> Any:
        return self._function(
            to_cuda_sums.reduce_source(layout, cut), "gpuopt_reduce_along" if cut.along else "gpuopt_reduce"
        )

    def per_tensor_kernel(self, made: PerTensor) -> Any:
        return self._function(to_cuda_sums.per_tensor_source(made), "gpuopt_per_tensor")

    def per_matrix_kernel(self, made: PerMatrix) -> Any:
        return self._function(to_cuda_sums.per_matrix_source(made), "gpuopt_per_matrix")

    def all_tensors_kernel(self) -> Any:
        return self._function(to_cuda_sums.all_tensors_source(), "gpuopt_all_tensors")

    def exchange_kernel(self) -> Any:
        return self._function(to_cuda_sums.exchange_source(), "gpuopt_exchange")

    def shared_array(self, buffer: Any, count: int, dtype: str, stream: Any) -> Any:
        return DeviceArray(self.address(buffer), count, dtype)

    def prepare_kernel(self, program: Program, inputs: tuple[str, ...]) -> Any:
        return self._function(to_cuda.prepare_source(program, inputs), "gpuopt_prepare")

    def rows_argument(self, program: Program, rows: Any, last: Any = None) -> Any:
        """The struct Rows by value: CuPy passes a structured array without dimensions as the bytes it holds; a launch copies it."""
        if last is None:
            capacity = to_cuda.rows_capacity(program) * max(1, len(program.row))
            last = np.zeros((), np.dtype([("values", program.compute, capacity)]))
        if rows is not None:
            last["values"][: rows.size] = rows.reshape(-1)
        return last

    def decision_arguments(self, decision: Any) -> tuple[Any, ...]:
        assert decision.dtype == DECISION
        return (decision,)

    def packed(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Whole numbers go as int64, as every kernel declares them."""
        return tuple(np.int64(a) if isinstance(a, int) else a for a in arguments)

    def launch(self, kernel: Any, grid: int, arguments: tuple[Any, ...], stream: Any) -> None:
        kernel((grid,), (t.THREADS,), arguments, 0, stream)


class Backend(DeviceBackend):
    """See gpuopt.backends."""

    name = "cupy"

    def __init__(self, index: int = 0) -> None:
        super().__init__(CupyRuntime(), index)
