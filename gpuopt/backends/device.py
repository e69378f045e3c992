"""How a step runs on a GPU, for every CUDA library: tables that stay on the device, one launch, nothing waited for.

The cupy and numba-cuda backends give it a `Runtime`. An ordinary step is one launch with the rows of scalars by value. Where
a norm is needed or a step may be skipped or captured, two small kernels go before: sums of the gradients, and the
decision, which advances step counts and computes the rows on the device.

A step that is captured into a CUDA graph owns the table and the hyperparameters that it reads; step counts, flags and states
are those of the eager steps, which go on as if there were no graph. All that it reads or writes lives as long as the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpuopt import arrays
from gpuopt.backends.captures import Life, Owned, relaxed
from gpuopt.backends.resident import Deciding, Resident, Upload, recount
from gpuopt.backends.runtime import Runtime, Staging
from gpuopt.compiler.host import div
from gpuopt.compiler.names import GIVEN
from gpuopt.errors import GpuoptError
from gpuopt.launch.launcher import Clock, Demand, Launch, advance

FIRST = (
    "the first step of a set of gradients and options compiles and allocates: run one step before capturing it into a CUDA "
    "graph"
)


class DeviceBackend:
    """A backend on device arrays; see gpuopt.backends."""

    name = ""
    device = "cuda"
    counts = True

    def __init__(self, runtime: Runtime, index: int = 0) -> None:
        self.runtime, self.index = runtime, index
        self.place = f"cuda:{index}"  # where what it reads has to lie
        self.staging = Staging(runtime)
        self.kernels: dict[tuple[Any, ...], Any] = {}
        self.buffers: dict[object, list[Any]] = {}  # of each Held, by its key
        self.retired: list[object] = []  # the keys of those that are gone
        self.graphs: list[tuple[Life, Any]] = []  # what captured steps read and write

    def release(self) -> None:
        """Free the buffers of what is gone, graphs among it; not while the current stream is captured."""
        self.graphs = [graph for graph in self.graphs if not graph[0].over]
        with relaxed():  # another thread may capture
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

    def ready(self, launches: Sequence[Launch], demand: Demand) -> None:
        """Allocate and compile what a step of these launches needs."""
        with self.runtime.on_device(self.index):
            stream = self.runtime.stream(self.index)
            if not self.runtime.capturing(stream):
                self._made(launches, demand, stream)
                self.staging.fill()

    def _step(self, launches: Sequence[Launch], demand: Demand, clocks: Sequence[Clock]) -> None:
        stream = self.runtime.stream(self.index)
        if self.runtime.capturing(stream):
            with relaxed():
                self._capture(launches, demand, stream)
            return
        if self.graphs and any(life.over for life, _ in self.graphs):
            self.release()
        residents, deciding = self._made(launches, demand, stream)
        if deciding is not None:
            self._decide(launches, residents, deciding, demand, clocks, stream, self.staging.upload)
            return
        rows = advance(clocks, launches, 1.0 if demand.grad_scale is None else div(1.0, float(demand.grad_scale)))
        try:
            given = [self._by_value(*one, stream) for one in zip(residents, rows, strict=True)]
        except BaseException:
            for clock in clocks:
                clock.step -= 1
            raise
        for launch, resident, by_value in zip(launches, residents, given, strict=True):
            self._update(launch, resident, by_value, resident.rows, 0, stream)

    def _made(self, launches: Sequence[Launch], demand: Demand, stream: Any) -> tuple[list[Resident], Deciding | None]:
        """What the step needs on the device, made at its first one."""
        residents = [self._resident(launch, stream) for launch in launches]
        return residents, self._deciding(launches, demand, stream) if demand.on_device or demand.sums else None

    def _capture(self, launches: Sequence[Launch], demand: Demand, stream: Any) -> None:
        if not demand.capturable:
            raise GpuoptError(
                "the current stream is captured into a CUDA graph, whose replays would repeat the rate and the step count of "
                "this step for ever: make the optimizer with capturable=True"
            )
        residents: list[Resident] = [launch.private["resident"] for launch in launches if "resident" in launch.private]
        usual: Deciding | None = launches[0].private.get("deciding")
        if len(residents) < len(launches) or usual is None or (demand.sums and not usual.chunks):
            raise GpuoptError(FIRST)
        owned, deciding = Owned(self.runtime), usual.captured()
        if demand.sums:
            deciding.measure(launches, stream, owned.upload)
        mine = [r.captured(launch, stream, owned.upload) for r, launch in zip(residents, launches, strict=True)]
        read = [demand, *map(needed, launches)]
        self.graphs.append((Life(self.runtime.handle(stream)), (owned.kept, mine, deciding, read)))
        self._decide(launches, mine, deciding, demand, (), stream, owned.upload)
        deciding.records = []  # the clocks know the optimizer, which may go

    def _decide(
        self,
        launches: Sequence[Launch],
        residents: Sequence[Resident],
        deciding: Deciding,
        demand: Demand,
        clocks: Sequence[Clock],
        stream: Any,
        upload: Upload,
    ) -> None:
        """The step with rows that are computed on the device."""
        arguments = deciding.arguments(launches, demand)
        data, after = deciding.inputs(launches)
        if data.tobytes() != deciding.there:
            deciding.there = b""
            upload(deciding.hyper, data, stream)
        if not demand.on_device:
            for clock in clocks:
                clock.step += 1
        if demand.sums:
            for kernel, blocks, given in deciding.summing(launches, residents):
                self.runtime.launch(kernel, blocks, given, stream)
        for kernel, given in zip(deciding.prepares, arguments, strict=True):
            self.runtime.launch(kernel, 1, given, stream)
        deciding.there = after
        for launch, resident, rows in zip(launches, residents, deciding.rows, strict=True):
            self._update(launch, resident, None, rows, deciding.skip, stream)

    # ------------------------------------------------------------------------------------------- resident data

    def _resident(self, launch: Launch, stream: Any) -> Resident:
        resident: Resident | None = launch.private.get("resident")
        if resident is None:
            resident = launch.private["resident"] = Resident(self, launch, stream)
        if resident.version != launch.plan.version:
            self.staging.upload(resident.table, launch.plan.table, stream)
            resident.version = launch.plan.version
        return resident

    def _deciding(self, launches: Sequence[Launch], demand: Demand, stream: Any) -> Deciding:
        private = launches[0].private
        deciding: Deciding | None = private.get("deciding")
        if deciding is None:
            deciding = private["deciding"] = Deciding(self, launches, demand, stream)
        if demand.sums:
            deciding.measure(launches, stream, self.staging.upload)
        return deciding

    def _by_value(self, resident: Resident, rows: Any, stream: Any) -> Any:
        """The rows if they travel by value; None once they have been uploaded."""
        if resident.rows is None:
            return rows
        self.staging.upload(resident.rows, rows, stream)
        return None

    def _update(self, launch: Launch, resident: Resident, by_value: Any, rows: Any, skip: int, stream: Any) -> None:
        """by_value: the rows, or None where they are in device memory, at `rows`."""
        if resident.blocks:
            resident.argument = self.runtime.rows_argument(launch.plan.program, by_value, resident.argument)
            arguments = (*resident.arguments(launch.plan, rows, skip), resident.argument)
            self.runtime.launch(resident.kernel, resident.blocks, arguments, stream)

    def check_plan(self) -> None:
        """Raise GpuoptError while the current stream is captured: the first step of a plan compiles, allocates and waits."""
        with self.runtime.on_device(self.index):
            if self.runtime.capturing(self.runtime.stream(self.index)):
                raise GpuoptError(FIRST)

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        with self.runtime.on_device(self.index):
            self.runtime.wait()

    def recount(self, clocks: Sequence[Clock]) -> None:
        """The counts of these clocks are those of the host: bring them to where CUDA graphs read them. Waits for the device."""
        with self.runtime.on_device(self.index):
            recount(
                [c for c in clocks if c.word is not None and c.word.counts.backend is self],
                self.runtime.stream(self.index),
            )

    def synchronize(self, clocks: Sequence[Clock], shared: Mapping[str, Any]) -> int:
        """Wait for the device and bring its step counts into the clocks; returns how many steps it skipped since."""
        there = [clock for clock in clocks if clock.word is not None and clock.word.counts.backend is self]
        if not there:
            return 0
        with self.runtime.on_device(self.index):
            stream = self.runtime.stream(self.index)
            for counts in {id(clock.word.counts): clock.word.counts for clock in there}.values():
                counts.read(stream)
            for clock in there:
                clock.step = int(clock.word.counts.known[clock.word.place])
            return shared["flags"].news(stream) if "flags" in shared else 0


def needed(launch: Launch) -> list[Any]:
    """The arrays that a captured step reads or writes, but gradients of a library that keeps what is allocated in a capture as long
    as the graph: from the next capture on it may use their memory again.
    """
    held = [a for of in launch.arrays for role, a in of.items() if a is not None and not lent(role, a)]
    values = [clock.environment(clock.step + 1) for clock in launch.records(True)[0]]
    return held + [v for of in values for name, v in of.items() if name != GIVEN and not isinstance(v, float)]


def lent(role: str, array: Any) -> bool:
    return role in ("g", "@given") and arrays.kind_of(array, role).pooled
