"""How a step runs on a GPU, for every CUDA library: tables that stay on the device, one launch, nothing waited for.

The cupy and numba-cuda backends give it a `Runtime`. An ordinary step is one launch with the rows of scalars by value. Where
a norm is needed or a step may be skipped or captured, two small kernels go before: sums of the gradients, and the
decision, which advances step counts and computes the rows on the device.

A step that is captured into a CUDA graph owns the table and the hyperparameters that it reads; step counts, flags and states
are those of the eager steps, which go on as if there were no graph.
"""

from __future__ import annotations

import math
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
BLOCKS = 8  # a multiprocessor: 2048 threads, all that can be resident; what is not waits and takes its tiles later
WARP = 32  # threads; where a tile has so many packs, or where there are so many tiles a multiprocessor, a warp takes a tile
SMALL = 1024  # mean elements of a tile below which it may

FIRST = (
    "the first step of a set of gradients and options compiles and allocates: run one step before capturing it into a CUDA "
    "graph"
)
Upload = Callable[[Any, Any, Any], None]  # of a Staging or an Owned


class Resident:
    """What one launch keeps on the device."""

    def __init__(self, backend: DeviceBackend, launch: Launch, stream: Any) -> None:
        self.backend, self.key = backend, object()
        backend.release()
        backend.buffers[self.key] = []
        runtime, plan = backend.runtime, launch.plan
        self.kernel = backend.kernel("update", plan.program)
        self.multiprocessors = runtime.multiprocessors()
        self.unit, size = tiling(plan, self.multiprocessors * BLOCKS)
        plan.cut_tiles(size)
        self.table = self._buffer(plan.table, stream)
        self.partials: Any = None  # of all launches of a step, with the first one
        self.tiles = self._buffer(plan.tiles, stream)
        self.version = plan.version
        self.rows: Any = None  # device rows: several rows by numba-cuda, too many for an argument, or computed there
        self.hyper: Any = None
        self.steps: Any = None
        self.flags: Any = None  # int64: skip, skipped
        self.chunks: Any = None
        self.counted = 0
        self.known: list[int] = []  # the step counts there, unless steps may be skipped there

    def __del__(self) -> None:
        """Python may collect this at any time, in a capture too, where memory may not be freed: the backend does it later."""
        self.backend.retired.append(self.key)

    def allocate(self, nbytes: int) -> Any:
        """Device memory that lives as long as this, and until it may be freed."""
        buffer = self.backend.runtime.allocate(max(8, nbytes))
        self.backend.buffers[self.key].append(buffer)
        return buffer

    def _buffer(self, array: Any, stream: Any, upload: Upload | None = None) -> Any:
        buffer = self.allocate(array.nbytes)
        (upload or self.backend.staging.upload)(buffer, array, stream)
        return buffer

    def captured(self, backend: DeviceBackend, launch: Launch, stream: Any, upload: Upload) -> Resident:
        """The same with a table and hyperparameters of its own, as a graph reads them."""
        own = copy(self)
        own.table = self._buffer(launch.plan.table, stream, upload)
        own.hyper = own.allocate(hyper_bytes(launch))
        return own

    def decide(self, backend: DeviceBackend, launch: Launch, stream: Any) -> None:
        """Allocate what decisions on the device need, once."""
        if self.hyper is not None:
            return
        program = launch.plan.program
        count = len(launch.clocks)
        self.prepare = backend.kernel("prepare", program, launch.inputs)
        role = program.roles[1]
        self.sums = backend.kernel("sums", role.storage, program.compute)
        self.chunks = self._buffer(launch.plan.chunks, stream)
        self.rows = self.allocate(count * len(program.row) * STORAGES[program.compute].itemsize)
        self.steps = self._buffer(np.array([c.step for c in launch.clocks], np.int64), stream)
        self.flags = self._buffer(np.zeros(2, np.int64), stream)
        self.hyper = self.allocate(hyper_bytes(launch))


class DeviceBackend:
    """A backend on device arrays; see gpuopt.backends."""

    name = ""
    device = "cuda"

    def __init__(self, runtime: Runtime, index: int = 0) -> None:
        self.runtime, self.index = runtime, index
        self.place = f"cuda:{index}"  # where what it reads has to lie
        self.staging = Staging(runtime)
        self.kernels: dict[tuple[Any, ...], Any] = {}
        self.buffers: dict[object, list[Any]] = {}  # of each Resident, by its key
        self.retired: list[object] = []  # the keys of those that are gone
        # What captured steps read and write: a graph may be replayed as long as the process lives.
        self.graphs: list[Any] = []

    def release(self) -> None:
        """Free the buffers of what is gone; not while a stream is captured."""
        while self.retired:
            self.buffers.pop(self.retired.pop(), None)

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
        inputs = [launch.hyper(self.place) for launch in launches]
        for launch, resident, hyper in zip(launches, residents, inputs, strict=True):
            upload(resident.hyper, hyper, stream)
            counts = [c.step for c in launch.clocks]
            if not demand.on_device and counts != resident.known:  # steps by value have gone before
                upload(resident.steps, np.array(counts, np.int64), stream)
            resident.known = [count + 1 for count in counts]
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
            resident.rows = resident.allocate(rows.nbytes)
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
        first, device, made = residents[0], self.place, []
        if demand.sums and first.partials is None:
            first.partials = first.allocate(16 * chunk_count)
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
    """(threads a tile, elements a tile): small enough to give every block a tile, big enough to be worth one.

    Threads are a power of two, so that each has about two packs of a tile to wait for at once, not one behind the other.
    """
    size = TILE_MAX
    while size > TILE_MIN and plan.total < 2 * blocks * size:
        size //= 2
    tiles = max(1, int((-(-plan.table[:, t.NUMEL] // size)).sum()))
    packs = plan.total / tiles / plan.program.lanes
    if packs <= WARP or (plan.total / tiles < SMALL and tiles >= WARP * blocks // BLOCKS):
        return WARP, size
    return min(max(2 * WARP, 2 ** round(math.log2(packs / 2))), t.THREADS), size


def rows_capacity(launch: Launch) -> int:
    """Rows that fit into a kernel argument."""
    from gpuopt.compiler.to_cuda import rows_capacity as capacity

    return capacity(launch.plan.program)


def hyper_bytes(launch: Launch) -> int:
    """Of Launch.hyper: numbers and sources."""
    return 2 * 8 * len(launch.clocks) * len(launch.inputs)


def scalar_or_address(value: Any, name: str, default: float, device: str) -> tuple[float, int]:
    """(number, 0) or (default, address of one float32 on `device`). Raises DtypeError for another array."""
    if value is None or not arrays.is_array(value):
        return (default if value is None else float(value)), 0
    view = arrays.describe(value, name)
    if view.numel != 1 or view.dtype != "float32" or view.device != device:
        raise DtypeError(f"{name}: {view.dtype} {view.shape} on {view.device}: expected one float32 on {device}")
    return default, view.address
