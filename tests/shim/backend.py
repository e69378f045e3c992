"""The backends "shim" and "shim-device": host arrays, updated by the generated CUDA C that g++ compiled. For tests only.

`with installed() as shim:` makes both names good for `backend=`. "shim" takes its decisions on the host and lets a test
choose tile size, unit and blocks; "shim-device" is gpuopt/backends/device.py itself, as a GPU runs it, on host memory.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_int64
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from gpuopt import backends
from gpuopt.backends.cupy import CupyRuntime
from gpuopt.backends.device import DeviceBackend
from gpuopt.backends.host import Addresses, HostBackend
from gpuopt.backends.passes import kernel_of, pieces_of
from gpuopt.compiler import to_cuda, to_cuda_sums
from gpuopt.compiler.parts import Layout, Pass, PerMatrix, PerTensor, Step
from gpuopt.compiler.program import Program
from gpuopt.launch.launcher import Launch
from gpuopt.launch.plan import Plan
from gpuopt.launch.table import THREADS
from shim.build import Kernel, build
from simulator_runtime import SimulatorRuntime

_running = threading.Lock()  # the shim runs one kernel at a time


def address(array: NDArray[Any]) -> int:
    """Where an array's data lie."""
    return int(array.ctypes.data)


class Runtime(SimulatorRuntime):
    """Host memory for device memory, g++ for NVRTC; what is passed to a kernel is packed as for CuPy.

    sanitize: see shim.build. parallel: one thread for each CUDA thread, for kernels that have no barrier too.
    """

    row_limit = None
    rows_argument = CupyRuntime.rows_argument
    decision_arguments = CupyRuntime.decision_arguments

    def __init__(self, sanitize: str | None = None) -> None:
        self.sanitize = sanitize
        self.parallel: bool | None = None

    def update_kernel(self, program: Program) -> Kernel:
        return build(to_cuda.update_source(program), "gpuopt_update", self.sanitize)

    def reduce_kernel(self, layout: Layout, cut: Pass) -> Kernel:
        name = "gpuopt_reduce_along" if cut.along else "gpuopt_reduce"
        return build(to_cuda_sums.reduce_source(layout, cut), name, self.sanitize)

    def per_matrix_kernel(self, made: PerMatrix) -> Kernel:
        return build(to_cuda_sums.per_matrix_source(made), "gpuopt_per_matrix", self.sanitize)

    def per_tensor_kernel(self, made: PerTensor) -> Kernel:
        return build(to_cuda_sums.per_tensor_source(made), "gpuopt_per_tensor", self.sanitize)

    def all_tensors_kernel(self) -> Kernel:
        return build(to_cuda_sums.all_tensors_source(), "gpuopt_all_tensors", self.sanitize)

    def exchange_kernel(self) -> Kernel:
        return build(to_cuda_sums.exchange_source(), "gpuopt_exchange", self.sanitize)

    def prepare_kernel(self, program: Program, inputs: tuple[str, ...]) -> Kernel:
        return build(to_cuda.prepare_source(program, inputs), "gpuopt_prepare", self.sanitize)

    def packed(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return arguments

    def launch(self, kernel: Kernel, grid: int, arguments: tuple[Any, ...], stream: Any = 0) -> None:
        """Whole numbers and addresses go as int64, structs (arrays without dimensions) as the bytes they hold."""
        values = [a if isinstance(a, np.ndarray) else c_int64(a) for a in arguments]
        with _running:
            kernel(grid, THREADS, *values, parallel=self.parallel)


class Backend(HostBackend):
    """tile_size, unit, blocks: shape of a launch. device_rows: rows by pointer even where they fit by value."""

    name = "shim"

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.tile_size, self.unit, self.blocks = 2048, 32, 3
        self.device_rows = False

    def update(self, launch: Launch, multiplier: float) -> None:
        """One launch over every tile; rows by value where they fit, else by pointer, as on a GPU."""
        plan, runtime = launch.plan, self.runtime
        rows: NDArray[Any] = launch.private["rows"]
        if "shim-update" not in launch.private:
            launch.private["shim-update"] = runtime.update_kernel(plan.program)
        if plan.tile_size != self.tile_size or plan.program.in_blocks:
            plan.cut_tiles(self.tile_size)
        found = launch.private["passes"].at[-2:] if "passes" in launch.private else (0, 0)
        by_pointer = self.device_rows or len(rows) > to_cuda.rows_capacity(plan.program)
        shape = (len(plan.tiles), plan.tile_size, self.unit)
        pointers = (address(rows) if by_pointer else 0, 0, *found)
        by_value = runtime.rows_argument(plan.program, None if by_pointer else rows)
        arguments = (address(plan.table), address(plan.tiles), *shape, *pointers, by_value)
        runtime.launch(launch.private["shim-update"], self.blocks, arguments)

    def prepared(self, plan: Plan, layout: Layout, step: Step) -> Callable[[Addresses], None]:
        """One pass that sums, or what is done once a tensor or matrix."""
        name, kernel = pieces_of(step), kernel_of(self, layout, step)
        pieces = {"tensors": plan.begins, "chunks": plan.chunks, "blocks": plan.blocks, "matrices": plan.matrices}[name]
        count = len(plan.table) if name == "tensors" else len(pieces)
        which = (count, address(pieces)) if name == "tensors" else (address(pieces), count)

        def run(at: Addresses) -> None:
            last = {
                "tensors": (at.wide, at.partials, at.totals, at.values),
                "chunks": (at.rows, at.values, at.slots, at.partials, 0),
                "blocks": (at.rows, at.values, at.slots),
                "matrices": (at.rows, at.values, at.slots, 0),
            }[name]
            arguments = (address(plan.table), plan.table.shape[1], *which, *last)
            self.runtime.launch(kernel, min(self.blocks, max(1, count)), arguments)

        return run

    def kernel(self, kind: str, *key: Any) -> Kernel:
        """As DeviceBackend.kernel."""
        made: Kernel = getattr(self.runtime, f"{kind}_kernel")(*key)
        return made


class OnDevice(DeviceBackend):
    """The steps of a GPU backend; `runtime.multiprocessors()` decides tiles and blocks."""

    name = "shim-device"
    device = "cpu"


def missing() -> None:
    """The compiler is needed by the tests themselves."""


@contextmanager
def installed(sanitize: str | None = None) -> Iterator[Backend]:
    """Make both backends known to gpuopt; gives the first, whose `runtime` both use."""
    runtime, get = Runtime(sanitize), backends.get
    made = {"shim": Backend(runtime), "shim-device": OnDevice(runtime, 0)}
    sys.modules["gpuopt.backends.shim"] = sys.modules[__name__]  # patch.dict would forget what is imported meanwhile
    with (
        mock.patch.dict(backends.MODULES, dict.fromkeys(made, "shim")),
        mock.patch.dict(backends.DEVICES, dict.fromkeys(made, "cpu")),
        mock.patch.object(backends, "get", lambda name, *rest: made[name] if name in made else get(name, *rest)),
    ):
        yield made["shim"]
    del sys.modules["gpuopt.backends.shim"]
