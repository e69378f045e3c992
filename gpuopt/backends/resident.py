"""What lives on a GPU between steps: tables of a launch, what the launches of a deciding step share, step counts.

Made by `device`, which says how long each is used. Knows no library of arrays; memory is a `Runtime`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from itertools import pairwise
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuopt import arrays
from gpuopt.backends.runtime import DECISION, raw
from gpuopt.compiler.to_cuda import rows_capacity
from gpuopt.errors import DtypeError, GpuoptError
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch import table as t
from gpuopt.launch.launcher import Clock, Demand, Launch
from gpuopt.launch.plan import Plan

if TYPE_CHECKING:
    from gpuopt.backends.device import DeviceBackend

TILE_MIN, TILE_MAX = 2048, 16384
BLOCKS = 8  # a multiprocessor: 2048 threads, all that can be resident; what is not waits and takes its tiles later
WARP = 32  # threads; where a tile has so many packs, or where there are so many tiles a multiprocessor, a warp takes a tile
SMALL = 1024  # mean elements of a tile below which it may
Upload = Callable[[Any, Any, Any], None]  # of a Staging or an Owned


class Held:
    """Device memory that lives as long as this, or a copy of it, and until it may be freed: Python may collect this at any time, in
    a capture too, where memory may not be freed. The backend does it later.
    """

    def __init__(self, backend: DeviceBackend) -> None:
        self.backend, self.key = backend, object()
        backend.buffers[self.key] = []

    def __copy__(self) -> Any:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, key=object())
        self.backend.buffers[made.key] = list(self.backend.buffers[self.key])
        return made

    def __del__(self) -> None:
        self.backend.retired.append(self.key)

    def allocate(self, nbytes: int) -> Any:
        buffer = self.backend.runtime.allocate(max(8, nbytes))
        self.backend.buffers[self.key].append(buffer)
        return buffer

    def filled(self, array: Any, stream: Any, upload: Upload | None = None) -> Any:
        buffer = self.allocate(array.nbytes)
        (upload or self.backend.staging.upload)(buffer, array, stream)
        return buffer

    def address(self, buffer: Any) -> int:
        return self.backend.runtime.address(buffer)


class Resident(Held):
    """What one launch needs of its own."""

    def __init__(self, backend: DeviceBackend, launch: Launch, stream: Any) -> None:
        super().__init__(backend)
        backend.release()
        plan = launch.plan
        self.kernel = backend.kernel("update", plan.program)
        self.multiprocessors = backend.runtime.multiprocessors()
        self.unit, size = tiling(plan, self.multiprocessors * BLOCKS)
        plan.cut_tiles(size)
        self.table = self.filled(plan.table, stream)
        self.tiles = self.filled(plan.tiles, stream)
        self.version = plan.version
        self.blocks = min(-(-len(plan.tiles) * self.unit // t.THREADS), self.multiprocessors * BLOCKS)
        limit, count = backend.runtime.row_limit, len(launch.clocks)
        by_value = count <= (rows_capacity(plan.program) if limit is None else limit)
        size = count * len(plan.program.row) * STORAGES[plan.program.compute].itemsize
        self.rows = None if by_value else self.allocate(size)  # of a plain step, where they do not travel by value
        self.argument: Any = None  # what passes them, or that there are none, by value
        self.launched: tuple[
            Any, ...
        ] = ()  # the arguments of the last launch but that one, and what they were made for
        self.launched_for: tuple[Any, ...] = ()

    def captured(self, launch: Launch, stream: Any, upload: Upload) -> Resident:
        """The same with a table of its own, as a graph reads it."""
        own = copy(self)
        own.table, own.launched_for = own.filled(launch.plan.table, stream, upload), ()
        return own

    def arguments(self, plan: Plan, rows: Any, skip: int) -> tuple[Any, ...]:
        """Of the update: all but the rows by value. rows: where they are in device memory, or None."""
        if self.launched_for != (rows is None, skip):
            at = 0 if rows is None else self.address(rows)
            shape = (len(plan.tiles), plan.tile_size, np.int32(self.unit))
            given = (self.address(self.table), self.address(self.tiles), *shape, at, skip)
            self.launched, self.launched_for = self.backend.runtime.packed(given), (rows is None, skip)
        return self.launched


class Counts(Held):
    """Step counts that live on the device. known: what the host knows of them."""

    def __init__(self, backend: DeviceBackend, clocks: Sequence[Clock], stream: Any) -> None:
        super().__init__(backend)
        self.known = np.array([clock.step for clock in clocks], np.int64)
        self.buffer = self.filled(self.known, stream)
        for place, clock in enumerate(clocks):
            clock.word = Word(self, place)

    def read(self, stream: Any) -> None:
        """Waits for the device."""
        self.known = self.backend.runtime.download(self.buffer, self.known.nbytes, stream).view(np.int64).copy()

    def write(self, steps: dict[int, int], stream: Any) -> None:
        """Other counts at some places; waits for the device, for the others go on as they are there."""
        self.read(stream)
        known = self.known.copy()
        for place, step in steps.items():
            known[place] = step
        self.backend.runtime.upload(self.buffer, raw(known), stream)  # not pinned, so read at once: nothing to allocate
        self.known = known


class Word(NamedTuple):
    """Where one clock's count is: it stays there as long as there is the clock, since CUDA graphs advance it too."""

    counts: Counts
    place: int

    @property
    def address(self) -> int:
        return self.counts.address(self.counts.buffer) + 8 * self.place


def counts_of(backend: DeviceBackend, launches: Sequence[Launch], stream: Any) -> list[Counts]:
    """Where the counts of these launches' clocks live; what the host has set since it read them is written."""
    clocks = [clock for launch in launches for clock in launch.clocks]
    for clock in clocks:
        if clock.word is not None and clock.word.counts.backend is not backend:
            clock.word = None  # the tensor has moved to another device
    recount([c for c in clocks if c.word is not None and c.word.counts.known[c.word.place] != c.step], stream)
    new = {id(clock): clock for clock in clocks if clock.word is None}
    if new:
        Counts(backend, list(new.values()), stream)
    return list({id(clock.word.counts): clock.word.counts for clock in clocks}.values())


def recount(clocks: Sequence[Clock], stream: Any) -> None:
    """Write the host's counts to where these clocks have theirs."""
    changes: dict[int, tuple[Counts, dict[int, int]]] = {}
    for clock in clocks:
        counts, place = clock.word
        changes.setdefault(id(counts), (counts, {}))[1][place] = clock.step
    for counts, steps in changes.values():
        counts.write(steps, stream)


class Flags(Held):
    """Two counts: whether this step is skipped, and the steps skipped so far, of which `counted` have been told."""

    def __init__(self, backend: DeviceBackend, stream: Any) -> None:
        super().__init__(backend)
        self.buffer = self.filled(np.zeros(2, np.int64), stream)
        self.counted = 0

    def news(self, stream: Any) -> int:
        """The steps skipped since the last time; waits for the device."""
        total = int(self.backend.runtime.download(self.buffer, 16, stream).view(np.int64)[1])
        before, self.counted = self.counted, total
        return total - before


class Deciding(Held):
    """What the launches of one step share whose rows are computed on the device. Hyperparameters, and step counts unless these
    live there, go up together, and only where they are not those that are there.
    """

    def __init__(self, backend: DeviceBackend, launches: Sequence[Launch], demand: Demand, stream: Any) -> None:
        super().__init__(backend)
        self.on_device = demand.on_device
        self.prepares = [backend.kernel("prepare", launch.plan.program, launch.inputs) for launch in launches]
        self.records = [launch.records(self.on_device) for launch in launches]
        sizes = [
            2 * len(clocks) * len(launch.inputs) for (clocks, _), launch in zip(self.records, launches, strict=True)
        ]
        self.begins = np.cumsum([0, *sizes]).tolist()  # of each launch's hyperparameters, then of the counts
        own = 0 if self.on_device else sum(len(launch.clocks) for launch in launches)
        self.hyper = self.allocate(8 * (self.begins[-1] + own))
        self.counts = counts_of(backend, launches, stream) if self.on_device else []
        where = zip(self._counted(launches, stream), self.records, strict=True)
        self.clocks = [self.filled(np.array([at, places], np.int64).T, stream) for at, (_, places) in where]
        sized = [(len(x.clocks) * len(x.plan.program.row), STORAGES[x.plan.program.compute]) for x in launches]
        self.rows = [self.allocate(count * storage.itemsize) for count, storage in sized]
        if "flags" not in launches[0].shared:
            launches[0].shared["flags"] = Flags(backend, stream)
        self.flags: Flags = launches[0].shared["flags"]
        self.chunk_count = sum(len(launch.plan.chunks) for launch in launches)
        self.there = b""  # hyperparameters and counts on the device
        self.chunks: list[Any] = []
        self.partials: Any = None
        self._made: list[tuple[Any, ...]] = []
        self._demand: Demand | None = None
        self._summed: list[tuple[Any, int, tuple[Any, ...]]] = []
        self.skip = self.address(self.flags.buffer)

    def _counted(self, launches: Sequence[Launch], stream: Any) -> list[list[int]]:
        """The address of each clock's count, for each launch. A clock of several launches is counted in each of them, by itself."""
        if not self.on_device:
            first = self.address(self.hyper) + 8 * self.begins[-1]
            begins = np.cumsum([0, *(len(launch.clocks) for launch in launches)]).tolist()
            return [list(range(first + 8 * a, first + 8 * b, 8)) for a, b in pairwise(begins)]
        seen: set[int] = set()
        found = []
        for launch in launches:
            again = [clock for clock in launch.clocks if id(clock) in seen]
            twins = self.address(self.filled(np.array([c.step for c in again], np.int64), stream)) if again else 0
            places = {id(clock): twins + 8 * k for k, clock in enumerate(again)}
            found.append([places.get(id(c)) or c.word.address for c in launch.clocks])
            seen |= {id(clock) for clock in launch.clocks}
        return found

    def captured(self) -> Deciding:
        """The same with hyperparameters and sums of its own, as a graph reads them."""
        own = copy(self)
        own.hyper, own.partials, own.there, own._demand = own.allocate(8 * self.begins[-1]), None, b"", None
        own._summed = []
        return own

    def measure(self, launches: Sequence[Launch], stream: Any, upload: Upload) -> None:
        """Allocate what the sums of gradients need, once."""
        if not self.chunks:
            programs = [launch.plan.program for launch in launches]
            self.sums = [self.backend.kernel("sums", p.roles[1].storage, p.compute) for p in programs]
            self.chunks = [self.filled(launch.plan.chunks, stream, upload) for launch in launches]
        if self.partials is None:
            self.partials = self.allocate(16 * self.chunk_count)

    def summing(
        self, launches: Sequence[Launch], residents: Sequence[Resident]
    ) -> list[tuple[Any, int, tuple[Any, ...]]]:
        """Kernel, blocks and arguments of the sums of each launch that has gradients: two float64 for every chunk, the launches one
        behind the other.
        """
        if not self._summed:
            offset = self.address(self.partials)
            each = zip(launches, residents, self.sums, self.chunks, strict=True)
            for launch, resident, kernel, chunks in each:
                plan, count = launch.plan, len(launch.plan.chunks)
                given = (
                    self.address(resident.table),
                    plan.table.shape[1],
                    np.int32(1),
                    self.address(chunks),
                    count,
                    offset,
                )
                if count:
                    blocks = min(count, 4 * resident.multiprocessors)
                    self._summed.append((kernel, blocks, self.backend.runtime.packed(given)))
                offset += 16 * count
        return self._summed

    def inputs(self, launches: Sequence[Launch]) -> tuple[NDArray[np.float64], bytes]:
        """What is to be there, and what will be there after the step, which counts."""
        each = zip(launches, self.records, strict=True)
        data = [launch.hyper(self.backend.place, clocks).reshape(-1) for launch, (clocks, _) in each]
        if not self.on_device:
            counts = np.array([clock.step for launch in launches for clock in launch.clocks], np.int64)
            data.append(counts.view(np.float64))
        made = np.concatenate(data)
        if self.on_device:
            return made, made.tobytes()
        after = made.copy()
        after.view(np.int64)[self.begins[-1] :] += 1
        return made, after.tobytes()

    def arguments(self, launches: Sequence[Launch], demand: Demand) -> list[tuple[Any, ...]]:
        """Of every `prepare` launch; the first one counts the skipped steps. Made anew where something asks for it."""
        plain = demand.grad_scale is None and demand.found_inf is None
        if not (plain and self._demand is not None and all(map(is_, demand, self._demand))):
            self._made = [self._arguments_of(k, launch, demand) for k, launch in enumerate(launches)]
            self._demand = demand if plain else None
        return self._made

    def _arguments_of(self, k: int, launch: Launch, demand: Demand) -> tuple[Any, ...]:
        decision, place = np.zeros((), DECISION), self.backend.place
        decision["chunk_count"] = chunk_count = self.chunk_count if demand.sums else 0
        decision["max_norm"] = np.inf if demand.max_norm is None else demand.max_norm
        value, decision["grad_scale"] = scalar_or_address(demand.grad_scale, "grad_scale", 1.0, place)
        decision["grad_scale_value"] = value
        value, decision["found_inf"] = scalar_or_address(demand.found_inf, "found_inf", 0.0, place)
        if value:
            raise GpuoptError("found_inf on a GPU must be a one-element float32 array on it")
        decision["check_finite"] = demand.check_finite
        decision["row_count"] = len(launch.clocks)
        given = (
            *self.backend.runtime.decision_arguments(decision),
            self.address(self.partials) if chunk_count else 0,
            self.address(self.hyper) + 8 * self.begins[k],
            self.address(self.clocks[k]),
            self.address(self.rows[k]),
            self.skip,
            self.skip + 8 if k == 0 else 0,
        )
        return self.backend.runtime.packed(given)


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


def scalar_or_address(value: Any, name: str, default: float, device: str) -> tuple[float, int]:
    """(number, 0) or (default, address of one float32 on `device`). Raises DtypeError for another array."""
    if value is None or not arrays.is_array(value):
        return (default if value is None else float(value)), 0
    view = arrays.describe(value, name)
    if view.numel != 1 or view.dtype != "float32" or view.device != device:
        raise DtypeError(f"{name}: {view.dtype} {view.shape} on {view.device}: expected one float32 on {device}")
    return default, view.address
