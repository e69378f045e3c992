"""The backend "shim": host arrays, updated by the generated CUDA C that g++ compiled. For tests only.

`with installed() as backend:` makes it an ordinary name for `backend=`. It takes every decision a GPU backend may take
(tile size, unit, blocks, where the rows lie, who prepares them), as attributes, so that a test can try them all.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_int, c_int64, c_void_p
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from gpuopt import backends
from gpuopt.backends.host import HostBackend
from gpuopt.compiler import to_cuda
from gpuopt.compiler.lower import Program
from gpuopt.launch.launcher import Clock, Demand, Launch
from gpuopt.launch.table import THREADS
from shim.build import Kernel, build


class Decision(ctypes.Structure):
    """`Decision` of kernels/prepare.cuh."""

    _fields_ = (
        ("chunk_count", c_int64),
        ("max_norm", ctypes.c_double),
        ("grad_scale", c_void_p),
        ("found_inf", c_void_p),
        ("check_finite", c_int),
        ("row_count", c_int),
    )


def pointer(array: NDArray[Any] | None) -> c_void_p:
    """A kernel argument: the address of an array's data, or null."""
    return c_void_p(None if array is None else array.ctypes.data)


def gradient(program: Program) -> tuple[int, str]:
    """Which role the gradient is, and how it is stored."""
    return next((k, r.storage) for k, r in enumerate(program.roles) if r.name == "g")


class Backend(HostBackend):
    """tile_size, unit, blocks: shape of the update's launch. device_rows: rows by pointer even where they fit by value.
    on_device: decisions, step counts and rows are made by gpuopt_prepare, as where a step may be skipped or captured.
    sanitize: see shim.build; parallel: one thread per CUDA thread for the update too.
    """

    name = "shim"

    def __init__(self, sanitize: str | None = None) -> None:
        self.sanitize = sanitize
        self.tile_size, self.unit, self.blocks = 2048, 32, 3
        self.device_rows = self.on_device = self.parallel = False
        self.skipped = np.zeros(1, np.int64)

    def kernel(self, launch: Launch, part: str) -> Kernel:
        """The compiled kernel of a launch: "update", "sums" or "prepare"."""
        if part not in launch.private:
            program = launch.plan.program
            source = {
                "update": lambda: to_cuda.update_source(program),
                "sums": lambda: to_cuda.sums_source(gradient(program)[1], program.compute),
                "prepare": lambda: to_cuda.prepare_source(program, launch.inputs),
            }[part]()
            launch.private[part] = build(source, f"gpuopt_{part}", self.sanitize)
        kernel: Kernel = launch.private[part]
        return kernel

    def update(self, launch: Launch, multiplier: float) -> None:
        """One launch over every tile, with the rows that the host computed."""
        self.launch_update(launch, launch.private["rows"], None, self.device_rows)

    def launch_update(self, launch: Launch, rows: NDArray[Any], skip: NDArray[Any] | None, on_device: bool) -> None:
        """Rows by value where they fit, as a GPU backend passes them, else by pointer."""
        plan = launch.plan
        if plan.tile_size != self.tile_size:
            plan.cut_tiles(self.tile_size)
        capacity = to_cuda.rows_capacity(plan.program)
        by_value = np.zeros(capacity * max(1, len(plan.program.row)), plan.program.compute)
        on_device = on_device or len(rows) > capacity
        if not on_device:
            by_value[: rows.size] = rows.ravel()
        shape = (c_int64(len(plan.tiles)), c_int64(self.tile_size), c_int(self.unit))
        tables = (pointer(plan.table), pointer(plan.tiles))
        device = pointer(rows if on_device else None)
        kernel = self.kernel(launch, "update")
        kernel(self.blocks, THREADS, *tables, *shape, device, pointer(skip), by_value, parallel=self.parallel)

    def sums(self, launch: Launch) -> NDArray[Any]:
        """Partial sums of every chunk: [chunks, 2]."""
        plan = launch.plan
        partials = np.full((len(plan.chunks), 2), np.nan, plan.program.compute)
        count = c_int64(len(plan.chunks))
        columns, role = c_int64(plan.table.shape[1]), c_int(gradient(plan.program)[0])
        tables = (pointer(plan.table), columns, role, pointer(plan.chunks), count)
        self.kernel(launch, "sums")(min(self.blocks, max(1, len(plan.chunks))), THREADS, *tables, pointer(partials))
        return partials

    def prepare(
        self, launch: Launch, demand: Demand, partials: NDArray[Any], steps: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Rows [clocks, scalars] and whether to skip, by gpuopt_prepare, which advances `steps`."""
        program = launch.plan.program
        rows = np.full((len(launch.clocks), len(program.row)), np.nan, program.compute)
        skip = np.full(1, -1, np.int32)
        scale, found = (None if v is None else np.float32([v]).ravel() for v in (demand.grad_scale, demand.found_inf))
        decision = Decision(
            chunk_count=len(partials),
            max_norm=np.inf if demand.max_norm is None else demand.max_norm,
            grad_scale=pointer(scale),
            found_inf=pointer(found),
            check_finite=demand.check_finite,
            row_count=len(launch.clocks),
        )
        partials = np.ascontiguousarray(partials, program.compute)
        written = (pointer(steps), pointer(rows), pointer(skip), pointer(self.skipped))
        self.kernel(launch, "prepare")(1, THREADS, decision, pointer(partials), pointer(launch.hyper()), *written)
        return rows, skip

    def step(self, launches: Sequence[Launch], demand: Demand, clocks: Sequence[Clock]) -> bool:
        """As on the host, or wholly by kernels where `on_device` is set."""
        if not self.on_device:
            return super().step(launches, demand, clocks)
        partials = np.concatenate([self.sums(launch) for launch in launches]) if demand.sums else np.empty((0, 2))
        counts = {id(clock): clock.step for clock in clocks}
        skip = np.zeros(1, np.int32)
        for launch in launches:
            steps = np.array([clock.step for clock in launch.clocks])
            rows, skip = self.prepare(launch, demand, partials, steps)
            self.launch_update(launch, rows, skip, True)
            counts |= {id(clock): int(step) for clock, step in zip(launch.clocks, steps, strict=True)}
        for clock in clocks:
            clock.step = counts[id(clock)]
        return not skip[0]


def missing() -> None:
    """The compiler is needed by the tests themselves."""


@contextmanager
def installed(sanitize: str | None = None) -> Iterator[Backend]:
    """Make `backend="shim"` known to gpuopt."""
    made, get = Backend(sanitize), backends.get
    known = {"gpuopt.backends.shim": sys.modules[__name__]}
    with (
        mock.patch.dict(sys.modules, known),
        mock.patch.dict(backends.MODULES, shim="shim"),
        mock.patch.dict(backends.DEVICES, shim="cpu"),
        mock.patch.object(backends, "get", lambda name: made if name == "shim" else get(name)),
    ):
        yield made
