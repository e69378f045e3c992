"""What the GPU backends need of a CUDA library, and the staging of small uploads. Implemented by cupy and numba_cuda."""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpuopt.compiler.parts import Layout, Pass, PerMatrix, PerTensor
from gpuopt.compiler.program import Program


class Runtime(Protocol):
    """Memory, streams and kernels of one CUDA library. Streams are what its launches and events take.

    allocate: memory that is not given to another before every kernel that may read it is done, whatever its stream.
    packed: arguments as `launch` takes them, any number of times.
    side_stream: one that waits for no other by itself, not for the default one either. copy: bytes between two addresses, in stream
    order. wait_event: what the stream is given from now on waits for the event.
    rows_argument: what passes these rows by value; `last` is what it made for the step before, and may be used again.
    """

    row_limit: int | None  # rows of scalars that can travel by value; None: as many as the kernel argument holds

    def on_device(self, index: int) -> AbstractContextManager[Any]: ...
    def stream(self, index: int) -> Any: ...
    def handle(self, stream: Any) -> int: ...
    def capturing(self, stream: Any) -> bool: ...
    def multiprocessors(self) -> int: ...
    def allocate(self, nbytes: int) -> Any: ...
    def address(self, buffer: Any) -> int: ...
    def pinned(self, nbytes: int) -> NDArray[np.uint8]: ...
    def upload(self, buffer: Any, pinned: NDArray[np.uint8], stream: Any) -> None: ...
    def download(self, buffer: Any, nbytes: int, stream: Any) -> NDArray[np.uint8]: ...
    def event(self) -> Any: ...
    def side_stream(self) -> Any: ...
    def wait_event(self, stream: Any, event: Any) -> None: ...
    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None: ...
    def update_kernel(self, program: Program) -> Any: ...
    def reduce_kernel(self, layout: Layout, cut: Pass) -> Any: ...
    def per_tensor_kernel(self, made: PerTensor) -> Any: ...
    def per_matrix_kernel(self, made: PerMatrix) -> Any: ...
    def all_tensors_kernel(self) -> Any: ...
    def exchange_kernel(self) -> Any: ...
    def shared_array(self, buffer: Any, count: int, dtype: str, stream: Any) -> Any: ...
    def prepare_kernel(self, program: Program, inputs: tuple[str, ...]) -> Any: ...
    def wait(self) -> None: ...
    def rows_argument(self, program: Program, rows: NDArray[Any] | None, last: Any = None) -> Any: ...
    def decision_arguments(self, decision: Decision) -> tuple[Any, ...]: ...
    def packed(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]: ...
    def launch(self, kernel: Any, grid: int, arguments: tuple[Any, ...], stream: Any) -> None: ...


DECISION = np.dtype(
    [
        ("sums", np.int64),
        ("max_norm", np.float64),
        ("grad_scale_value", np.float64),
        ("grad_scale", np.int64),
        ("found_inf", np.int64),
        ("check_finite", np.int32),
        ("row_count", np.int32),
    ]
)
Decision = np.ndarray  # zero-dimensional, dtype DECISION: the struct of kernels/prepare.cuh


class DeviceArray:
    """Numbers in device memory, as communicators take them; they lie there as long as what allocated them."""

    def __init__(self, address: int, count: int, dtype: str) -> None:
        self.__cuda_array_interface__ = {
            "shape": (count,),
            "typestr": np.dtype(dtype).str,
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


SMALLEST = 4096  # bytes of a pinned buffer


class Staging:
    """A ring of pinned buffers for asynchronous uploads: the host goes on at once and only waits when the GPU is a whole
    ring of steps behind.
    """

    SLOTS = 16

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.ring: deque[tuple[NDArray[np.uint8], Any]] = deque()
        self.made = 0

    def upload(self, buffer: Any, array: NDArray[Any], stream: Any) -> None:
        """Copy an array's bytes to a device buffer, in stream order."""
        data = raw(array)
        if not data.size:
            return
        pinned, event = self._take(data.size)
        pinned[: data.size] = data
        self.runtime.upload(buffer, pinned[: data.size], stream)
        event.record(stream)
        self.ring.append((pinned, event))

    def fill(self) -> None:
        """Make the ring complete, so that small uploads allocate nothing from now on."""
        while self.made < self.SLOTS:
            slot = self.runtime.pinned(SMALLEST), self.runtime.event()
            self.made += 1
            self.ring.append(slot)

    def _take(self, size: int) -> tuple[NDArray[np.uint8], Any]:
        """The slot that has waited longest, out of the ring: another thread that uploads meanwhile gets another one."""
        if self.made >= self.SLOTS and self.ring:
            pinned, event = self.ring.popleft()
            event.synchronize()
            if pinned.size >= size:
                return pinned, event
            self.made -= 1
        slot = self.runtime.pinned(max(SMALLEST, 2 * size)), self.runtime.event()
        self.made += 1
        return slot


def raw(array: NDArray[Any]) -> NDArray[np.uint8]:
    """An array's bytes, in order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
