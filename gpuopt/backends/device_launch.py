"""What lives on a GPU between steps: tables of a launch, what the launches of a step share that decides on the device, step counts.

Made by `device`, which says how long each is used. Knows no library of arrays; memory is a `Runtime`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from itertools import pairwise
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuopt import arrays
from gpuopt.backends.buffers import DeviceBuffers, Upload
from gpuopt.backends.passes import DevicePasses, StepPasses
from gpuopt.backends.runtime import DECISION, raw
from gpuopt.compiler.lower import gradient_sums
from gpuopt.compiler.parts import Pass, PerTensor
from gpuopt.compiler.to_cuda import rows_capacity
from gpuopt.errors import DtypeError, GpuoptError
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch import table as t
from gpuopt.launch.launcher import Launch, StepCounter, StepRequest
from gpuopt.launch.plan import Plan

if TYPE_CHECKING:
    from gpuopt.backends.device import DeviceBackend

TILE_MIN, TILE_MAX = 2048, 16384
BLOCKS = (
    8  # a multiprocessor: 2048 threads, all that can be resident; a block that is not waits and takes its tiles later
)
WARP = 32  # threads; where a tile has so many packs, or where there are so many tiles a multiprocessor, a warp takes a tile
SMALL = 1024  # mean elements of a tile below which it may


class DeviceLaunch(DeviceBuffers):
    """What one launch needs of its own."""

    def __init__(self, backend: DeviceBackend, launch: Launch, stream: Any) -> None:
        super().__init__(backend)
        backend.release()
        plan = launch.plan
        self.kernel = backend.kernel("update", plan.program)
        self.multiprocessors = backend.runtime.multiprocessors()
        self.table = self.filled(plan.table, stream)
        self.version = plan.version
        self.tiles: Any = None
        self.room = -1  # for tiles, in bytes
        self.launched: tuple[Any, ...] = ()  # the arguments of the last launch but that one
        self.launched_for: tuple[Any, ...] = ()  # what they were made for
        self.cut(plan, stream)
        limit, count = backend.runtime.row_limit, len(launch.counters)
        by_value = plan.program.local and count <= (rows_capacity(plan.program) if limit is None else limit)
        size = count * len(plan.program.row) * STORAGES[plan.program.compute].itemsize
        self.rows = None if by_value else self.allocate(size)  # of a plain step, where they do not travel by value
        self.wide = None if plan.program.local else self.allocate(8 * count * len(plan.program.wide))
        self.passes = None if plan.program.local else passes_of(backend, launch, stream, backend.staging.upload)
        self.argument: Any = None  # what passes them, or that there are none, by value

    def cut(self, plan: Plan, stream: Any) -> None:
        """Tiles of what the plan covers now. Memory for them grows by a half at least, so that it seldom does."""
        self.unit, size = tiling(plan, self.multiprocessors * BLOCKS)
        plan.cut_tiles(size)
        if plan.tiles.nbytes > self.room:
            self.room = plan.tiles.nbytes + plan.tiles.nbytes // 2 * plan.program.picked
            self.tiles = self.allocate(self.room)
        self.backend.staging.upload(self.tiles, plan.tiles, stream)
        self.blocks = min(-(-len(plan.tiles) * self.unit // t.THREADS), self.multiprocessors * BLOCKS)
        self.cuts, self.launched_for = plan.cuts, ()

    def captured(self, launch: Launch, stream: Any, upload: Upload) -> DeviceLaunch:
        """The same with a table of its own, as a graph reads it."""
        own = copy(self)
        own.table, own.launched_for = own.filled(launch.plan.table, stream, upload), ()
        own.passes = None if own.passes is None else passes_of(self.backend, launch, stream, upload)
        return own

    def arguments(self, plan: Plan, rows: Any, skip: int) -> tuple[Any, ...]:
        """Of the update: all but the rows by value. rows: where they are in device memory, or None."""
        if self.launched_for != (rows is None, skip):
            at = 0 if rows is None else self.address(rows)
            shape = (len(plan.tiles), plan.tile_size, np.int32(self.unit))
            found = (
                (0, 0) if self.passes is None else (self.address(self.passes.values), self.address(self.passes.slots))
            )
            given = (self.address(self.table), self.address(self.tiles), *shape, at, skip, *found)
            self.launched, self.launched_for = self.backend.runtime.packed(given), (rows is None, skip)
        return self.launched


def passes_of(backend: DeviceBackend, launch: Launch, stream: Any, upload: Upload) -> DevicePasses:
    """What comes before the update of a program."""
    program, slots = launch.plan.program, launch.plan.slot_sizes()
    layouts = [program.layout_of(step) if isinstance(step, Pass) else program.layout for step in program.schedule]
    return DevicePasses(backend, launch, layouts, program.schedule, slots, stream, upload, program.sharded)


def gradient_passes(backend: DeviceBackend, launch: Launch, stream: Any, upload: Upload) -> DevicePasses:
    """What measures the gradients."""
    program, sharded = launch.plan.program, launch.communicator is not None
    layout, cut = gradient_sums(program.roles[1].storage, program.compute)
    schedule = cut, PerTensor(cut, None, layout.compute, len(cut.sums))
    return DevicePasses(backend, launch, [layout, layout], schedule, (), stream, upload, sharded)


class Counts(DeviceBuffers):
    """Step counts that live on the device. known: what the host knows of them."""

    def __init__(self, backend: DeviceBackend, counters: Sequence[StepCounter], stream: Any) -> None:
        super().__init__(backend)
        self.known = np.array([counter.step for counter in counters], np.int64)
        self.buffer = self.filled(self.known, stream)
        for place, counter in enumerate(counters):
            counter.word = Word(self, place)

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
    """Where one counter's count is: it stays there as long as there is the counter, since CUDA graphs advance it too."""

    counts: Counts
    place: int

    @property
    def address(self) -> int:
        return self.counts.address(self.counts.buffer) + 8 * self.place


def counts_of(backend: DeviceBackend, launches: Sequence[Launch], stream: Any) -> list[Counts]:
    """Where the counts of these launches' counters live; what the host has set since it read them is written."""
    counters = [counter for launch in launches for counter in launch.counters]
    for counter in counters:
        if counter.word is not None and counter.word.counts.backend is not backend:
            counter.word = None  # the tensor has moved to another device
    recount([c for c in counters if c.word is not None and c.word.counts.known[c.word.place] != c.step], stream)
    new = {id(counter): counter for counter in counters if counter.word is None}
    if new:
        Counts(backend, list(new.values()), stream)
    return list({id(counter.word.counts): counter.word.counts for counter in counters}.values())


def recount(counters: Sequence[StepCounter], stream: Any) -> None:
    """Write the host's counts to where these counters have theirs."""
    changes: dict[int, tuple[Counts, dict[int, int]]] = {}
    for counter in counters:
        counts, place = counter.word
        changes.setdefault(id(counts), (counts, {}))[1][place] = counter.step
    for counts, steps in changes.values():
        counts.write(steps, stream)


class Flags(DeviceBuffers):
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


class DeviceDecision(DeviceBuffers):
    """What the launches of one step share whose rows are computed on the device. Hyperparameters, and step counts unless these
    live there, go up together, and only where they are not those that are there.
    """

    def __init__(self, backend: DeviceBackend, launches: Sequence[Launch], request: StepRequest, stream: Any) -> None:
        super().__init__(backend)
        self.on_device = request.on_device
        self.prepares = [backend.kernel("prepare", launch.plan.program, launch.inputs) for launch in launches]
        self.records = [launch.records(self.on_device) for launch in launches]
        sizes = [
            2 * len(counters) * len(launch.inputs) for (counters, _), launch in zip(self.records, launches, strict=True)
        ]
        self.begins = np.cumsum([0, *sizes]).tolist()  # of each launch's hyperparameters, then of the counts
        own = 0 if self.on_device else sum(len(launch.counters) for launch in launches)
        self.hyper = self.allocate(8 * (self.begins[-1] + own))
        self.counts = counts_of(backend, launches, stream) if self.on_device else []
        where = zip(self._counted(launches, stream), self.records, strict=True)
        self.counters = [self.filled(np.array([at, places], np.int64).T, stream) for at, (_, places) in where]
        sized = [(len(x.counters) * len(x.plan.program.row), STORAGES[x.plan.program.compute]) for x in launches]
        self.rows = [self.allocate(count * storage.itemsize) for count, storage in sized]
        self.wides = [self.allocate(8 * len(x.counters) * len(x.plan.program.wide)) for x in launches]
        if "flags" not in launches[0].shared:
            launches[0].shared["flags"] = Flags(backend, stream)
        self.flags: Flags = launches[0].shared["flags"]
        self.communicators = [*dict.fromkeys(x.communicator for x in launches if x.communicator is not None)]
        self.found = self.allocate(4) if self.communicators else None  # `found_inf` of all processes
        self.there = b""  # hyperparameters and counts on the device
        self.gradients: StepPasses | None = None
        self._made: list[tuple[Any, ...]] = []
        self._request: StepRequest | None = None
        self.skip = self.address(self.flags.buffer)

    def _counted(self, launches: Sequence[Launch], stream: Any) -> list[list[int]]:
        """The address of each counter's count, for each launch. One of several launches is counted in each by itself."""
        if not self.on_device:
            first = self.address(self.hyper) + 8 * self.begins[-1]
            begins = np.cumsum([0, *(len(launch.counters) for launch in launches)]).tolist()
            return [list(range(first + 8 * a, first + 8 * b, 8)) for a, b in pairwise(begins)]
        seen: set[int] = set()
        found = []
        for launch in launches:
            again = [counter for counter in launch.counters if id(counter) in seen]
            twins = self.address(self.filled(np.array([c.step for c in again], np.int64), stream)) if again else 0
            places = {id(counter): twins + 8 * k for k, counter in enumerate(again)}
            found.append([places.get(id(c)) or c.word.address for c in launch.counters])
            seen |= {id(counter) for counter in launch.counters}
        return found

    def captured(self) -> DeviceDecision:
        """The same with hyperparameters and sums of its own, as a graph reads them."""
        own = copy(self)
        own.hyper, own.gradients, own.there, own._request = own.allocate(8 * self.begins[-1]), None, b"", None
        return own

    def measure(self, launches: Sequence[Launch], stream: Any, upload: Upload) -> None:
        """Allocate what the sums of gradients need, once; which chunks there are may change."""
        if self.gradients is None:
            first = [launch for launch in launches if launch.stage == 0]
            passes = [gradient_passes(self.backend, launch, stream, upload) for launch in first]
            self.gradients = StepPasses(self.backend, passes, stream, upload)
        for each in self.gradients.passes:
            if each.cuts != each.plan.cuts:
                each.cut(stream, upload)

    def ask(self, request: StepRequest, stream: Any) -> None:
        """Let every process that has parts of the tensors skip where one would."""
        if request.found_inf is None:
            return
        runtime, there = self.backend.runtime, arrays.describe(request.found_inf, "found_inf")
        runtime.copy(self.address(self.found), there.address, 4, stream)
        for communicator in self.communicators:
            array = runtime.shared_array(self.found, 1, "float32", stream)
            communicator.all_reduce(array, "max", runtime.handle(stream))

    def inputs(self, launches: Sequence[Launch]) -> tuple[NDArray[np.float64], bytes]:
        """What is to be there, and what will be there after the step, which counts."""
        each = zip(launches, self.records, strict=True)
        data = [launch.hyper(self.backend.place, counters).reshape(-1) for launch, (counters, _) in each]
        if not self.on_device:
            counts = np.array([counter.step for launch in launches for counter in launch.counters], np.int64)
            data.append(counts.view(np.float64))
        made = np.concatenate(data)
        if self.on_device:
            return made, made.tobytes()
        after = made.copy()
        after.view(np.int64)[self.begins[-1] :] += 1
        return made, after.tobytes()

    def arguments(self, launches: Sequence[Launch], request: StepRequest) -> list[tuple[Any, ...]]:
        """Of every `prepare` launch; the first one counts the skipped steps. Made anew where something asks for it."""
        plain = request.grad_scale is None and request.found_inf is None
        if not (plain and self._request is not None and all(map(is_, request, self._request))):
            self._made = [self._arguments_of(k, launch, request) for k, launch in enumerate(launches)]
            self._request = request if plain else None
        return self._made

    def _arguments_of(self, k: int, launch: Launch, request: StepRequest) -> tuple[Any, ...]:
        decision, place = np.zeros((), DECISION), self.backend.place
        if request.sums and self.gradients is not None:
            decision["sums"] = self.address(self.gradients.joins[0].result)
        decision["max_norm"] = np.inf if request.max_norm is None else request.max_norm
        value, decision["grad_scale"] = scalar_or_address(request.grad_scale, "grad_scale", 1.0, place)
        decision["grad_scale_value"] = value
        value, found = scalar_or_address(request.found_inf, "found_inf", 0.0, place)
        decision["found_inf"] = self.address(self.found) if found and self.communicators else found
        if value:
            raise GpuoptError("found_inf on a GPU must be a one-element float32 array on it")
        decision["check_finite"] = request.check_finite
        decision["row_count"] = len(launch.counters)
        given = (
            *self.backend.runtime.decision_arguments(decision),
            self.address(self.hyper) + 8 * self.begins[k],
            self.address(self.counters[k]),
            self.address(self.rows[k]),
            self.address(self.wides[k]),
            self.skip,
            self.skip + 8 if k == 0 else 0,
        )
        return self.backend.runtime.packed(given)


def tiling(plan: Plan, blocks: int) -> tuple[int, int]:
    """(threads a tile, elements a tile): small enough to give every block a tile, big enough to be worth one.

    Threads are a power of two, so that each has about two packs of a tile to wait for at once, not one behind the other.
    """
    size = TILE_MAX
    if plan.program.in_blocks:  # a warp takes a tile
        while size > t.GROUP and plan.total < 2 * blocks * t.THREADS // WARP * size:
            size //= 2
        return WARP, size
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
