"""How a step runs on a GPU, for every CUDA library: tables that stay on the device, one launch, nothing waited for.

The cupy and numba-cuda backends give it a `Runtime`. An ordinary step is one launch with the rows of scalars by value. Where
a norm is needed or a step may be skipped or captured, two small kernels go before: sums of the gradients, and the
decision, which advances step counts and computes the rows on the device.

A step that is captured into a CUDA graph owns the table and the hyperparameters that it reads; step counts, flags and states
are those of the eager steps, which go on as if there were no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import numpy as np

from gpuopt import arrays
from gpuopt.backends.runtime import DECISION, Owned, Runtime, Staging, relaxed
from gpuopt.compiler.host import div
from gpuopt.errors import DtypeError, GpuoptError
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch import table as t
from gpuopt.launch.launcher import Clock, Demand, Launch, advance
from gpuopt.launch.plan import Plan

TILE_MIN, TILE_MAX = 2048, 16384
BLOCKS = (
    8  # a multiprocessor: 2048 threads, all that can be resident; what is not resident waits and takes its tiles later
)
SMALL = 1024  # mean elements of a tile below which a warp takes a tile, not a block


FIRST = (
    "the first step of a set of gradients and options compiles and allocates: run one step before capturing it into a CUDA "
    "graph"
)
Upload = Callable[[Any, Any, Any], None]  # of a Staging or an Owned


class Resident:
    """What one launch keeps on the device."""

    def __init__(self, backend: DeviceBackend, launch: Launch, stream: Any) -> None:
        runtime, plan = backend.runtime, launch.plan
        self.kernel = backend.kernel("update", plan.program)
        self.multiprocessors = runtime.multiprocessors()
        self.unit, size = tiling(plan, self.multiprocessors * BLOCKS)
        plan.cut_tiles(size)
        self.table = self._buffer(backend, plan.table, stream)
        self.partials: Any = None  # of all launches of a step, with the first one
        self.tiles = self._buffer(backend, plan.tiles, stream)
        self.version = plan.version
        self.rows: Any = None  # device rows: several rows by numba-cuda, too many for an argument, or computed there
        self.hyper: Any = None
        self.steps: Any = None
        self.flags: Any = None  # int64: skip, skipped
        self.chunks: Any = None
        self.counted = 0

    @staticmethod
    def _buffer(backend: DeviceBackend, array: Any, stream: Any, upload: Upload | None = None) -> Any:
        buffer = backend.runtime.allocate(max(8, array.nbytes))
        (upload or backend.staging.upload)(buffer, array, stream)
        return buffer

    def captured(self, backend: DeviceBackend, launch: Launch, stream: Any, upload: Upload) -> Resident:
        """The same with a table and hyperparameters of its own, as a graph reads them."""
        own = copy(self)
        own.table = self._buffer(backend, launch.plan.table, stream, upload)
        own.hyper = backend.runtime.allocate(hyper_bytes(launch))
        return own

    def decide(self, backend: DeviceBackend, launch: Launch, stream: Any) -> None:
        """Allocate what decisions on the device need, once."""
        if self.hyper is not None:
            return
        runtime, program = backend.runtime, launch.plan.program
        count = len(launch.clocks)
        self.prepare = backend.kernel("prepare", program, launch.inputs)
        role = program.roles[1]
        self.sums = backend.kernel("sums", role.storage, program.compute)
        self.chunks = self._buffer(backend, launch.plan.chunks, stream)
        self.rows = runtime.allocate(max(8, count * len(program.row) * STORAGES[program.compute].itemsize))
        self.steps = self._buffer(backend, np.array([c.step for c in launch.clocks], np.int64), stream)
        self.flags = self._buffer(backend, np.zeros(2, np.int64), stream)
        self.hyper = runtime.allocate(hyper_bytes(launch))


class DeviceBackend:
    """A backend on device arrays; see gpuopt.backends."""

    name = ""
    device = "cuda"

    def __init__(self, runtime: Runtime, index: int = 0) -> None:
        self.runtime, self.index = runtime, index
        self.staging = Staging(runtime)
        self.kernels: dict[tuple[Any, ...], Any] = {}
        self.graphs: list[
            Any
        ] = []  # what captured steps read and write: a graph may be replayed as long as the process lives

    def kernel(self, kind: str, *key: Any) -> Any:
        """A compiled kernel of the current device, made once."""
        found = self.kernels.get((kind, *key))
        if found is None:
            found = self.kernels[(kind, *key)] = getattr(self.runtime, f"{kind}_kernel")(*key)
        return found

    def step(self, launches: Sequence[Launch], demand: Demand, clocks: Sequence[Clock]) -> bool:
        """Enqueue one step on the current stream; everything that can fail comes before the first launch."""
        with self.runtime.on_device(self.index):
            self._step(launches, demand, clocks)
        return True

    def _step(self, launches: Sequence[Launch], demand: Demand, clocks: Sequence[Clock]) -> None:
        stream = self.runtime.stream()
        if self.runtime.capturing(stream):
            with relaxed():
                self._capture(launches, demand, stream)
            return
        deciding = demand.on_device or demand.sums
        residents = [self._resident(launch, deciding, stream) for launch in launches]
        if not deciding:
            rows = advance(clocks, launches, 1.0 if demand.grad_scale is None else div(1.0, float(demand.grad_scale)))
            for launch, resident, row in zip(launches, residents, rows, strict=True):
                self._update(launch, resident, self._by_value(launch, resident, row, stream), 0, stream)
            return
        self._decide(launches, residents, demand, clocks, stream, self.staging.upload)

    def _capture(self, launches: Sequence[Launch], demand: Demand, stream: Any) -> None:
        if not demand.on_device:
            raise GpuoptError(
                "the current stream is captured into a CUDA graph, whose replays would repeat the rate and the step count of "
                "this step for ever: make the optimizer with capturable=True"
            )
        residents: list[Resident] = [launch.private["resident"] for launch in launches if "resident" in launch.private]
        if len(residents) < len(launches) or any(resident.hyper is None for resident in residents):
            raise GpuoptError(FIRST)
        owned = Owned(self.runtime)
        mine = [r.captured(self, launch, stream, owned.upload) for r, launch in zip(residents, launches, strict=True)]
        values = [clock.environment(clock.step + 1) for launch in launches for clock in launch.clocks]
        self.graphs.append((owned.kept, mine, demand, values))
        self._decide(launches, mine, demand, (), stream, owned.upload)

    def _decide(
        self,
        launches: Sequence[Launch],
        residents: Sequence[Resident],
        demand: Demand,
        clocks: Sequence[Clock],
        stream: Any,
        upload: Upload,
    ) -> None:
        """The step with rows that are computed on the device."""
        decisions = self._decisions(launches, residents, demand)
        inputs = [launch.hyper(f"{self.device}:{self.index}") for launch in launches]
        for launch, resident, hyper in zip(launches, residents, inputs, strict=True):
            upload(resident.hyper, hyper, stream)
            if not demand.on_device:
                upload(resident.steps, np.array([c.step for c in launch.clocks], np.int64), stream)
        if not demand.on_device:
            for clock in clocks:
                clock.step += 1
        self._sums(launches, residents, demand, stream)
        for resident, arguments in zip(residents, decisions, strict=True):
            self.runtime.launch(resident.prepare, 1, arguments, stream)
        for launch, resident in zip(launches, residents, strict=True):
            self._update(launch, resident, None, self.runtime.address(resident.flags), stream)

    # ------------------------------------------------------------------------------------------- resident data

    def _resident(self, launch: Launch, deciding: bool, stream: Any) -> Resident:
        resident: Resident | None = launch.private.get("resident")
        if resident is None:
            resident = launch.private["resident"] = Resident(self, launch, stream)
        if deciding:
            resident.decide(self, launch, stream)
        if resident.version != launch.plan.version:
            self.staging.upload(resident.table, launch.plan.table, stream)
            resident.version = launch.plan.version
        return resident

    def _by_value(self, launch: Launch, resident: Resident, rows: Any, stream: Any) -> Any:
        """The rows if they travel by value; None once they have been uploaded."""
        limit = self.runtime.row_limit
        if len(rows) <= (rows_capacity(launch) if limit is None else limit):
            return rows
        if resident.rows is None:
            resident.rows = self.runtime.allocate(max(8, rows.nbytes))
        self.staging.upload(resident.rows, rows, stream)
        return None

    # ------------------------------------------------------------------------------------------- launches

    def _update(self, launch: Launch, resident: Resident, rows: Any, skip: int, stream: Any) -> None:
        plan, runtime = launch.plan, self.runtime
        if not len(plan.tiles):
            return
        per_block = t.THREADS // resident.unit
        grid = min(-(-len(plan.tiles) // per_block), resident.multiprocessors * BLOCKS)
        device_rows = 0 if rows is not None else runtime.address(resident.rows)
        arguments = (
            runtime.address(resident.table),
            runtime.address(resident.tiles),
            len(plan.tiles),
            plan.tile_size,
            np.int32(resident.unit),
            device_rows,
            skip,
            runtime.rows_argument(plan.program, rows),
        )
        runtime.launch(resident.kernel, grid, arguments, stream)

    def _sums(self, launches: Sequence[Launch], residents: Sequence[Resident], demand: Demand, stream: Any) -> None:
        """Two float64 partial sums of every chunk, the launches one behind the other."""
        if not demand.sums:
            return
        offset = self.runtime.address(residents[0].partials)
        for launch, resident in zip(launches, residents, strict=True):
            plan = launch.plan
            count = len(plan.chunks)
            if count:
                arguments = (
                    self.runtime.address(resident.table),
                    plan.table.shape[1],
                    np.int32(1),
                    self.runtime.address(resident.chunks),
                    count,
                    offset,
                )
                self.runtime.launch(resident.sums, min(count, 4 * resident.multiprocessors), arguments, stream)
            offset += 16 * count

    def _decisions(
        self, launches: Sequence[Launch], residents: Sequence[Resident], demand: Demand
    ) -> list[tuple[Any, ...]]:
        """The arguments of every `prepare` launch; the first one counts the skipped steps."""
        chunk_count = sum(len(launch.plan.chunks) for launch in launches) if demand.sums else 0
        first, device, made = residents[0], f"{self.device}:{self.index}", []
        if demand.sums and first.partials is None:
            first.partials = self.runtime.allocate(max(8, 16 * chunk_count))
        for k, (launch, resident) in enumerate(zip(launches, residents, strict=True)):
            decision = np.zeros((), DECISION)
            decision["chunk_count"] = chunk_count
            decision["max_norm"] = np.inf if demand.max_norm is None else demand.max_norm
            decision["grad_scale_value"], decision["grad_scale"] = scalar_or_address(
                demand.grad_scale, "grad_scale", 1.0, device
            )
            value, decision["found_inf"] = scalar_or_address(demand.found_inf, "found_inf", 0.0, device)
            decision["check_finite"] = demand.check_finite
            decision["row_count"] = len(launch.clocks)
            if value:
                raise GpuoptError("found_inf on a GPU must be a one-element float32 array on it")
            flags = self.runtime.address(resident.flags)
            partials = self.runtime.address(first.partials) if chunk_count else 0
            pointers = (resident.hyper, resident.steps, resident.rows)
            addresses = [self.runtime.address(b) for b in pointers]
            made.append(
                (*self.runtime.decision_arguments(decision), partials, *addresses, flags, flags + 8 if k == 0 else 0)
            )
        return made

    def check_plan(self) -> None:
        """Raise GpuoptError while the current stream is captured: the first step of a plan compiles, allocates and waits."""
        with self.runtime.on_device(self.index):
            if self.runtime.capturing(self.runtime.stream()):
                raise GpuoptError(FIRST)

    def synchronize(self, launches: Sequence[Launch]) -> int:
        """Wait for the device and bring its step counts into the clocks; returns how many steps it skipped since."""
        with self.runtime.on_device(self.index):
            return self._synchronize(launches)

    def _synchronize(self, launches: Sequence[Launch]) -> int:
        skipped, stream = 0, self.runtime.stream()
        for launch in launches:
            resident: Resident | None = launch.private.get("resident")
            if resident is None or resident.steps is None:
                continue
            steps = self.runtime.download(resident.steps, 8 * len(launch.clocks), stream).view(np.int64)
            for clock, step in zip(launch.clocks, steps, strict=True):
                clock.step = int(step)
            total = int(self.runtime.download(resident.flags, 16, stream).view(np.int64)[1])
            skipped += total - resident.counted
            resident.counted = total
        return skipped


def tiling(plan: Plan, blocks: int) -> tuple[int, int]:
    """(threads a tile, elements a tile): small enough to give every block a tile, big enough to be worth one."""
    size = TILE_MAX
    while size > TILE_MIN and plan.total < 2 * blocks * size:
        size //= 2
    tiles = max(1, int((-(-plan.table[:, t.NUMEL] // size)).sum()))
    return (32 if plan.total / tiles < SMALL else t.THREADS), size


def rows_capacity(launch: Launch) -> int:
    """Rows that fit into a kernel argument."""
    from gpuopt.compiler.to_cuda import rows_capacity as capacity

    return capacity(launch.plan.program)


def hyper_bytes(launch: Launch) -> int:
    """Of Launch.hyper: numbers and sources."""
    return max(8, 2 * 8 * len(launch.clocks) * len(launch.inputs))


def scalar_or_address(value: Any, name: str, default: float, device: str) -> tuple[float, int]:
    """(number, 0) or (default, address of one float32 on `device`). Raises DtypeError for another array."""
    if value is None or not arrays.is_array(value):
        return (default if value is None else float(value)), 0
    view = arrays.describe(value, name)
    if view.numel != 1 or view.dtype != "float32" or view.device != device:
        raise DtypeError(f"{name}: {view.dtype} {view.shape} on {view.device}: expected one float32 on {device}")
    return default, view.address
