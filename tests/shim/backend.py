"""The backends "shim" and "shim-device": host arrays, updated by the generated CUDA C that g++ compiled. For tests only.

`with installed() as shim:` makes both names good for `backend=`. "shim" takes its decisions on the host and lets a test
choose tile size, unit and blocks; "shim-device" is gpuopt/backends/device.py itself, as a GPU runs it, on host memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_int64
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from gpuopt import backends
from gpuopt.backends.cupy import CupyRuntime
from gpuopt.backends.device import DeviceBackend
from gpuopt.backends.host import HostBackend
from gpuopt.backends.simulator import SimulatorRuntime
from gpuopt.compiler import to_cuda
from gpuopt.compiler.lower import Program
from gpuopt.launch.launcher import Launch
from gpuopt.launch.table import THREADS
from shim.build import Kernel, build


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

    def sums_kernel(self, storage: str, compute: str) -> Kernel:
        return build(to_cuda.sums_source(storage, compute), "gpuopt_sums", self.sanitize)

    def prepare_kernel(self, program: Program, inputs: tuple[str, ...]) -> Kernel:
        return build(to_cuda.prepare_source(program, inputs), "gpuopt_prepare", self.sanitize)

    def packed(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return arguments

    def launch(self, kernel: Kernel, grid: int, arguments: tuple[Any, ...], stream: Any = 0) -> None:
        """Whole numbers and addresses go as int64, structs (arrays without dimensions) as the bytes they hold."""
        values = [a if isinstance(a, np.ndarray) else c_int64(a) for a in arguments]
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
        if plan.tile_size != self.tile_size:
            plan.cut_tiles(self.tile_size)
        by_pointer = self.device_rows or len(rows) > to_cuda.rows_capacity(plan.program)
        shape = (len(plan.tiles), self.tile_size, self.unit)
        pointers = (address(rows) if by_pointer else 0, 0)
        by_value = runtime.rows_argument(plan.program, None if by_pointer else rows)
        arguments = (address(plan.table), address(plan.tiles), *shape, *pointers, by_value)
        runtime.launch(launch.private["shim-update"], self.blocks, arguments)

    def sums(self, launch: Launch) -> NDArray[Any]:
        """Partial sums of every chunk: [chunks, 2]."""
        plan = launch.plan
        role, storage = next((k, r.storage) for k, r in enumerate(plan.program.roles) if r.name == "g")
        if "shim-sums" not in launch.private:
            launch.private["shim-sums"] = self.runtime.sums_kernel(storage, plan.program.compute)
        partials = np.full((len(plan.chunks), 2), np.nan)
        shape = (plan.table.shape[1], role, address(plan.chunks), len(plan.chunks))
        arguments = (address(plan.table), *shape, address(partials))
        self.runtime.launch(launch.private["shim-sums"], min(self.blocks, max(1, len(plan.chunks))), arguments)
        return partials


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
