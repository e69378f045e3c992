"""How a step runs on a GPU, for every CUDA library: tables that stay on the device, one launch, nothing waited for.

The cupy and numba-cuda backends give it a `Runtime`. An ordinary step is one launch with the rows of scalars by value. Where
a norm is needed or a step may be skipped or captured, two small kernels go before: sums of the gradients, and the
decision, which advances step counts and computes the rows on the device.

A step that is captured into a CUDA graph owns the table and the hyperparameters that it reads; step counts, flags and states
are those of the eager steps, which go on as if there were no graph. All that it reads or writes lives as long as the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpuopt import arrays, pinned
from gpuopt.backends.buffers import Upload
from gpuopt.backends.captures import Life, Owned, relaxed
from gpuopt.backends.device_ferry import DeviceFerry, Harbour
from gpuopt.backends.device_launch import DeviceDecision, DeviceLaunch, recount
from gpuopt.backends.passes import StepPasses
from gpuopt.backends.runtime import Runtime, Staging
from gpuopt.compiler.names import GIVEN
from gpuopt.errors import GpuoptError
from gpuopt.launch.ferry import Ferry, Portion
from gpuopt.launch.launcher import Launch, StepCounter, StepRequest, advance, parts_of
from gpuopt.rules.primitives import divided

FIRST = (
    "the first step of a set of gradients and options compiles and allocates: run one step before capturing it into a CUDA "
    "graph"
)


NOTHING: Iterator[None] = iter(())


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
        self.buffers: dict[object, list[Any]] = {}  # of each DeviceBuffers, by its key
        self.retired: list[object] = []  # the keys of those that are gone
        self.graphs: list[tuple[Life, Any]] = []  # what captured steps read and write
        self._harbour: Harbour | None = None  # of states in host memory

    def harbour(self) -> Harbour:
        """Where states that are kept in host memory arrive, made once."""
        if self._harbour is None:
            self._harbour = Harbour(self.runtime)
        return self._harbour

    def release(self) -> None:
        """Free the buffers of what is gone, graphs among it; not while the current stream is captured."""
        self.graphs = [graph for graph in self.graphs if not graph[0].over]
        with relaxed():  # another thread may capture
            if self.retired and self._harbour is not None:
                self._harbour.taken.synchronize()
            while self.retired:
                self.buffers.pop(self.retired.pop(), None)
            if self._harbour is not None:
                self._harbour.settle(self.buffers)
            pinned.free()

    def tidy(self) -> None:
        """The same where it can be done now; else it is, with the next plan."""
        with self.runtime.on_device(self.index):
            if not self.runtime.capturing(self.runtime.stream(self.index)):
                self.release()

    def kernel(self, kind: str, *key: Any) -> Any:
        """A compiled kernel of the current device, made once."""
        found = self.kernels.get((kind, *key))
        if found is None:
            found = self.kernels[(kind, *key)] = getattr(self.runtime, f"{kind}_kernel")(*key)
        return found

    def step(self, launches: Sequence[Launch], request: StepRequest, counters: Sequence[StepCounter]) -> bool:
        """Enqueue one step on the current stream; everything that can fail comes before the first launch."""
        with self.runtime.on_device(self.index):
            self._step(launches, request, counters)
        return True

    def ready(self, launches: Sequence[Launch], request: StepRequest) -> None:
        """Allocate and compile what a step of these launches needs."""
        with self.runtime.on_device(self.index):
            stream = self.runtime.stream(self.index)
            if not self.runtime.capturing(stream):
                self._made(parts_of(launches), request, stream)
                self.staging.fill()

    def _step(self, launches: Sequence[Launch], request: StepRequest, counters: Sequence[StepCounter]) -> None:
        stream = self.runtime.stream(self.index)
        if self.runtime.capturing(stream):
            with relaxed():
                self._capture(launches, request, stream)
            return
        if self.graphs and any(life.over for life, _ in self.graphs):
            self.release()
        launches = parts_of(launches)
        device_launches, decision = self._made(launches, request, stream)
        if decision is not None:
            self._decide(launches, device_launches, decision, request, counters, stream, self.staging.upload)
            return
        rows = advance(
            counters, launches, 1.0 if request.grad_scale is None else divided(1.0, float(request.grad_scale))
        )
        try:
            given = [self._by_value(*one, stream) for one in zip(launches, device_launches, rows, strict=True)]
            rows_there = [(d.rows, d.wide) for d in device_launches]
            passes = launches[0].private["passes"] if launches else ()
            self._stages(launches, device_launches, given, rows_there, 0, stream, passes)
        except BaseException:  # as where processes find that they step other tensors
            for counter in counters:
                counter.step -= 1
            raise

    def _made(
        self, launches: Sequence[Launch], request: StepRequest, stream: Any
    ) -> tuple[list[DeviceLaunch], DeviceDecision | None]:
        """What the step needs on the device, made at its first one."""
        new = bool(launches) and "passes" not in launches[0].private
        if new:
            self._place(launches)
        device_launches = [self._device_launch(launch, stream) for launch in launches]
        if new:
            launches[0].private["passes"] = self._step_passes(launches, device_launches, stream, self.staging.upload)
        return device_launches, self._decision(launches, request, stream) if request.on_device or request.sums else None

    def _place(self, launches: Sequence[Launch]) -> None:
        """Give the launches of every stage the places of their states, where these are in host memory."""
        for stage in range(1 + max(launch.stage for launch in launches)):
            here = [launch for launch in launches if launch.stage == stage]
            if here and "ferry" not in here[0].private:
                streamed = any(launch.streamed for launch in here)
                here[0].private["ferry"] = DeviceFerry(self, here) if streamed else Ferry(here)

    def _capture(self, launches: Sequence[Launch], request: StepRequest, stream: Any) -> None:
        if any(launch.streamed for launch in launches):
            raise GpuoptError(
                "the current stream is captured into a CUDA graph, and states in host memory travel on other streams: "
                "make the optimizer with state_device='device'"
            )
        asks = request.sums or request.found_inf is not None
        if any(p.communicator is not None and (asks or p.plan.program.whole) for p in launches):
            raise GpuoptError(
                "the current stream is captured into a CUDA graph, and this step exchanges sums with other processes: step "
                "outside of the graph"
            )
        if not request.capturable:
            raise GpuoptError(
                "the current stream is captured into a CUDA graph, whose replays would repeat the rate and the step count of "
                "this step for ever: make the optimizer with capturable=True"
            )
        launches = parts_of(launches)
        device_launches: list[DeviceLaunch] = [
            launch.private["device_launch"] for launch in launches if "device_launch" in launch.private
        ]
        usual: DeviceDecision | None = launches[0].private.get("decision")
        if len(device_launches) < len(launches) or usual is None or (request.sums and usual.gradients is None):
            raise GpuoptError(FIRST)
        owned, decision = Owned(self.runtime), usual.captured()
        if request.sums:
            decision.measure(launches, stream, owned.upload)
        mine = [r.captured(launch, stream, owned.upload) for r, launch in zip(device_launches, launches, strict=True)]
        passes = self._step_passes(launches, mine, stream, owned.upload)
        read = [request, *map(needed, launches)]
        self.graphs.append((Life(self.runtime.handle(stream)), (owned.kept, mine, decision, passes, read)))
        self._decide(launches, mine, decision, request, (), stream, owned.upload, passes)
        decision.records = []  # the counters know the optimizer, which may go

    def _decide(
        self,
        launches: Sequence[Launch],
        device_launches: Sequence[DeviceLaunch],
        decision: DeviceDecision,
        request: StepRequest,
        counters: Sequence[StepCounter],
        stream: Any,
        upload: Upload,
        passes: Sequence[StepPasses] = (),
    ) -> None:
        """The step with rows that are computed on the device. passes: those of a captured step."""
        arguments = decision.arguments(launches, request)
        data, after = decision.inputs(launches)
        if data.tobytes() != decision.there:
            decision.there = b""
            upload(decision.hyper, data, stream)
        if not request.on_device:
            for counter in counters:
                counter.advance()
        if request.sums:
            assert decision.gradients is not None
            first = [d for launch, d in zip(launches, device_launches, strict=True) if launch.stage == 0]
            decision.gradients.run([(d.address(d.table), 0, 0, 0) for d in first], stream)
        if decision.communicators:
            decision.ask(request, stream)
        for kernel, given in zip(decision.prepares, arguments, strict=True):
            self.runtime.launch(kernel, 1, given, stream)
        decision.there = after
        passes = passes or (launches[0].private["passes"] if launches else ())
        rows = list(zip(decision.rows, decision.wides, strict=True))
        self._stages(launches, device_launches, [None] * len(launches), rows, decision.skip, stream, passes)

    def _step_passes(
        self, launches: Sequence[Launch], device_launches: Sequence[DeviceLaunch], stream: Any, upload: Upload
    ) -> list[StepPasses]:
        """Those of every stage."""
        made = []
        for stage in range(1 + max((launch.stage for launch in launches), default=0)):
            both = zip(launches, device_launches, strict=True)
            there = [d.passes for launch, d in both if launch.stage == stage and d.passes is not None]
            made.append(StepPasses(self, there, stream, upload))
        return made

    def _stages(
        self, launches: Sequence[Launch], device_launches: Sequence[DeviceLaunch], by_value: Sequence[Any],
        rows: Sequence[tuple[Any, Any]], skip: int, stream: Any, passes: Sequence[StepPasses],
    ) -> None:  # fmt: skip
        """The passes, updates and products of matrices of every stage. by_value: the rows of each launch, or None where they are in
        device memory; rows: of each those there and the wide ones; passes: of every stage.
        """
        if len(passes) == 1:
            self._stage(launches, device_launches, by_value, rows, skip, stream, passes[0])
            return
        for stage, own in enumerate(passes):
            here = [k for k, launch in enumerate(launches) if launch.stage == stage]
            if here:
                own_rows, values = [rows[k] for k in here], [by_value[k] for k in here]
                mine = [launches[k] for k in here], [device_launches[k] for k in here]
                self._stage(*mine, values, own_rows, skip, stream, own)

    def _stage(
        self, launches: Sequence[Launch], device_launches: Sequence[DeviceLaunch], by_value: Sequence[Any],
        rows: Sequence[tuple[Any, Any]], skip: int, stream: Any, passes: StepPasses,
    ) -> None:  # fmt: skip
        """Those of one, portion by portion: all portions as often as a sum goes over all tensors, and once more."""
        address, ferry = self.runtime.address, launches[0].private["ferry"]
        running = dict[int, Iterator[None]]()
        if passes.passes:
            summing = [k for k, d in enumerate(device_launches) if d.passes is not None]
            given = [
                (address(device_launches[k].table), address(rows[k][0]), address(rows[k][1]), skip) for k in summing
            ]
            running |= zip(summing, passes.begun(given, stream), strict=True)
        for join in (*passes.joins, None):

            def run(portion: Portion, last: bool = join is None) -> bool:
                for k in portion.launches if running else ():
                    next(running.get(k, NOTHING), None)
                for k in portion.launches if last else ():
                    self._update(launches[k], device_launches[k], by_value[k], rows[k][0], skip, stream)
                for k in portion.launches if last else ():
                    for products in launches[k].products:
                        products.run(self.runtime.handle(stream))
                return last

            if ferry.moving:
                ferry.go(ferry.portions, run, stream)
            else:
                run(ferry.portions[0])
            if join is not None:
                join.run(stream)

    # ------------------------------------------------------------------------------------------- what lives there

    def _device_launch(self, launch: Launch, stream: Any) -> DeviceLaunch:
        device_launch: DeviceLaunch | None = launch.private.get("device_launch")
        if device_launch is None:
            device_launch = launch.private["device_launch"] = DeviceLaunch(self, launch, stream)
        if device_launch.version != launch.plan.version:
            self.staging.upload(device_launch.table, launch.plan.table, stream)
            device_launch.version = launch.plan.version
        if device_launch.cuts != launch.plan.cuts:
            device_launch.cut(launch.plan, stream)
        return device_launch

    def _decision(self, launches: Sequence[Launch], request: StepRequest, stream: Any) -> DeviceDecision:
        private = launches[0].private
        decision: DeviceDecision | None = private.get("decision")
        if decision is None:
            decision = private["decision"] = DeviceDecision(self, launches, request, stream)
        if request.sums:
            decision.measure(launches, stream, self.staging.upload)
        return decision

    def _by_value(self, launch: Launch, device_launch: DeviceLaunch, rows: Any, stream: Any) -> Any:
        """The rows if they travel by value; None once they have been uploaded."""
        if device_launch.rows is None:
            return rows
        self.staging.upload(device_launch.rows, rows, stream)
        if device_launch.wide is not None:
            self.staging.upload(device_launch.wide, launch.wide, stream)
        return None

    def _update(
        self, launch: Launch, device_launch: DeviceLaunch, by_value: Any, rows: Any, skip: int, stream: Any
    ) -> None:
        """by_value: the rows, or None where they are in device memory, at `rows`."""
        if device_launch.blocks:
            device_launch.argument = self.runtime.rows_argument(launch.plan.program, by_value, device_launch.argument)
            arguments = (*device_launch.arguments(launch.plan, rows, skip), device_launch.argument)
            self.runtime.launch(device_launch.kernel, device_launch.blocks, arguments, stream)

    def check_plan(self) -> None:
        """Raise GpuoptError while the current stream is captured: the first step of a plan compiles, allocates and waits."""
        with self.runtime.on_device(self.index):
            if self.runtime.capturing(self.runtime.stream(self.index)):
                raise GpuoptError(FIRST)

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        with self.runtime.on_device(self.index):
            self.runtime.wait()

    def recount(self, counters: Sequence[StepCounter]) -> None:
        """The counts of these counters are those of the host: bring them to where CUDA graphs read them. Waits for the device."""
        with self.runtime.on_device(self.index):
            recount(
                [c for c in counters if c.word is not None and c.word.counts.backend is self],
                self.runtime.stream(self.index),
            )

    def synchronize(self, counters: Sequence[StepCounter], shared: Mapping[str, Any]) -> int:
        """Wait for the device and bring its step counts into the counters; returns how many steps it skipped since."""
        there = [counter for counter in counters if counter.word is not None and counter.word.counts.backend is self]
        if not there:
            return 0
        with self.runtime.on_device(self.index):
            stream = self.runtime.stream(self.index)
            for counts in {id(counter.word.counts): counter.word.counts for counter in there}.values():
                counts.read(stream)
            for counter in there:
                counter.step = int(counter.word.counts.known[counter.word.place])
            return shared["flags"].news(stream) if "flags" in shared else 0


def needed(launch: Launch) -> list[Any]:
    """The arrays that a captured step reads or writes, but gradients of a library that keeps what is allocated in a capture as long
    as the graph: from the next capture on it may use their memory again.
    """
    held = [a for of in launch.arrays for role, a in of.items() if a is not None and not lent(role, a)]
    values = [counter.environment(counter.step + 1) for counter in launch.records(True)[0]]
    return held + [v for of in values for name, v in of.items() if name != GIVEN and not isinstance(v, float)]


def lent(role: str, array: Any) -> bool:
    return role in ("g", "@given") and arrays.kind_of(array, role).pooled
