"""What the NumPy and Numba backends share: the decision to clip or skip, taken on the host before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuopt.backends.host_ferry import HostFerry
from gpuopt.compiler.lower import gradient_sums
from gpuopt.compiler.parts import Layout, Pass, PerTensor, Step
from gpuopt.launch.ferry import Portion
from gpuopt.launch.launcher import Launch, StepCounter, StepRequest, advance
from gpuopt.launch.plan import Plan
from gpuopt.launch.sums import Doubles, Joined, complete
from gpuopt.rules.primitives import divided, minimum


class Addresses(NamedTuple):
    """Of what the passes of one launch read and write, as kernels take them: rows of scalars in the compute type and in float64,
    sums of chunks and of tensors, numbers of the tensors that are known by now, and the addresses of the slots, which hold those of
    rows, columns and matrices.
    """

    rows: int
    wide: int
    partials: int
    totals: int
    values: int
    slots: int


class Passes:
    """Passes that sum, and what is done once a tensor between them. backend: prepares each of them."""

    def __init__(
        self, backend: HostBackend, launch: Launch, layout: Layout, schedule: Sequence[Step], slots: bool = False
    ) -> None:
        """slots: whether the passes are those of a program, which may have some."""
        self.plan = plan = launch.plan
        self.communicator = launch.communicator
        self.schedule, self.sharded = schedule, plan.program.sharded if slots else launch.communicator is not None
        layouts = [plan.program.layout_of(step) if slots and isinstance(step, Pass) else layout for step in schedule]
        self.runs = [backend.prepared(plan, *each) for each in zip(layouts, schedule, strict=True)]
        tensors, totals = (
            len(plan.table),
            max((step.totals for step in schedule if isinstance(step, PerTensor)), default=0),
        )
        values = max(len(step.values) for step in (*schedule, plan.program.update))
        self.totals: Doubles = np.empty((tensors, totals))
        self.values = np.empty((tensors, values), layout.compute)
        self.partials = np.empty((len(plan.chunks), max(len(step.sums) for step in schedule)))
        self.slots = [np.empty(size, dtype) for size, dtype in (plan.slot_sizes() if slots else ())]
        self.places = np.array([slot.ctypes.data for slot in self.slots], np.int64)
        there = (self.partials, self.totals, self.values, self.places)
        self.at = Addresses(0, 0, *(array.ctypes.data for array in there))

    def run(self, rows: NDArray[Any] | None = None, wide: NDArray[Any] | None = None) -> Iterator[Joined]:
        """Yields totals that have to be completed over all processes, or tensors of all launches."""
        if rows is not None and wide is not None:
            self.at = self.at._replace(rows=rows.ctypes.data, wide=wide.ctypes.data)
        for step, run in zip(self.schedule, self.runs, strict=True):
            run(self.at)
            if isinstance(step, PerTensor) and (kinds := step.open(self.sharded)):
                yield Joined(self.totals, kinds, self.plan, self.communicator)


class HostBackend:
    """A backend on host arrays. Subclasses give `update(launch, multiplier)`, and `prepared(plan, layout, step)`: a pass that sums,
    or what is done once a tensor, as a function of Addresses.
    """

    name = ""
    device = "cpu"
    counts = False

    def __init__(self, index: int = 0) -> None:
        """There is one host."""

    def prepared(self, plan: Plan, layout: Layout, step: Step) -> Callable[[Addresses], None]:
        raise NotImplementedError

    def gradients(self, launch: Launch) -> Joined:
        """Squares and counts of what is not finite, of the gradient of every tensor: [tensors, 2]."""
        plan = launch.plan
        layout, cut = gradient_sums(plan.program.roles[1].storage, plan.program.compute)
        joins = PerTensor(cut, None, layout.compute, len(cut.sums))
        passes: Passes = launch.kept("gradients", lambda: Passes(self, launch, layout, (cut, joins)))
        return next(passes.run())

    def passes(self, launch: Launch, multiplier: float) -> Iterator[Joined]:
        """Everything before the update; see Passes.run."""
        private, plan = launch.private, launch.plan
        if "passes" not in private:
            private["passes"] = Passes(self, launch, plan.program.layout, plan.program.schedule, slots=True)
        found: Iterator[Joined] = private["passes"].run(private["rows"], launch.wide)
        return found

    def update(self, launch: Launch, multiplier: float) -> None:
        raise NotImplementedError

    def rehearse(self, launch: Launch, multiplier: float) -> None:
        """Whatever `update` could raise, before the first write; nothing where it runs compiled code."""

    def step(self, launches: Sequence[Launch], request: StepRequest, counters: Sequence[StepCounter]) -> bool:
        """Decide, advance the counters, update. Everything that can fail comes before the first write, but for what travels between
        processes or portions.
        """
        parts = [self.parts(launch) for launch in launches]
        stages = [[part for part in stage if part is not None] for stage in zip_longest(*parts)]
        for stage in stages:
            if "ferry" not in stage[0].private:
                stage[0].private["ferry"] = HostFerry(stage)
        multiplier, skip = self.decide(launches, request)
        if skip:
            return False
        every = [part for each in parts for part in each]
        for part, rows in zip(every, advance(counters, every, multiplier, self.rehearse), strict=True):
            part.private["rows"] = rows
        written: list[Launch] = []
        try:
            for stage in stages:
                self.stage(stage, multiplier, written)
        except BaseException:  # another process is gone, or has other gradients
            for counter in counters if not written else ():
                counter.step -= 1
            raise
        return True

    def parts(self, launch: Launch) -> Sequence[Launch]:
        """What is run of a launch, one after another."""
        return launch.stages or (launch,)

    def stage(self, launches: Sequence[Launch], multiplier: float, written: list[Launch]) -> None:
        """The passes of these launches, their updates, and the products of matrices behind them, portion by portion: all portions
        as often as something is summed over all tensors or processes, and once more. written: what was updated so far.
        """
        summing = [self.passes(launch, multiplier) if self.sums(launch) else None for launch in launches]
        ferry: HostFerry = launches[0].private["ferry"]
        left, again, waiting = ferry.portions, list[Portion](), list[Joined]()

        def run(portion: Portion) -> bool:
            found = [next(each, None) for k in portion.launches if (each := summing[k]) is not None]
            asked = [totals for totals in found if totals is not None]
            waiting.extend(asked)
            again.extend([portion] if asked else [])
            for launch in () if asked else [launches[k] for k in portion.launches]:
                written.append(launch)
                self.update(launch, multiplier)
                for products in launch.products:
                    products.run()
            return not asked

        while left:
            ferry.go(left, run)
            complete(waiting)
            left = again[:]
            again.clear()
            waiting.clear()

    def sums(self, launch: Launch) -> bool:
        """Whether there are passes before the update."""
        return not launch.plan.program.local

    def decide(self, launches: Sequence[Launch], request: StepRequest) -> tuple[float, bool]:
        """The factor every gradient is multiplied by, and whether to skip; the twin of kernels/prepare.cuh."""
        inverse = 1.0 if request.grad_scale is None else divided(1.0, first(request.grad_scale))
        skip = request.found_inf is not None and anywhere(first(request.found_inf), launches) != 0
        if not request.sums:
            return inverse, skip
        with np.errstate(all="ignore"):
            totals = [self.gradients(launch) for launch in launches]
            complete(totals)
            squares, broken = next((each.totals[0] for each in totals if len(each.totals)), (0.0, 0.0))
            norm = float(np.sqrt(squares)) * inverse
        bound = np.inf if request.max_norm is None else request.max_norm
        # Without a bound the norm plays no part: squares may overflow where the gradients themselves are finite.
        multiplier = float(minimum(divided(bound, norm + 1e-6), 1.0)) * inverse if np.isfinite(bound) else inverse
        return multiplier, skip or (request.check_finite and bool(broken != 0))

    def ready(self, launches: Sequence[Launch], request: StepRequest) -> None:
        """Nothing to do: a step allocates and compiles before it writes."""

    def check_plan(self) -> None:
        """Nothing stands against new launches."""

    def wait(self) -> None:
        """What was done is done."""

    def recount(self, counters: Sequence[StepCounter]) -> None:
        """Step counts are on the host."""

    def synchronize(self, counters: Sequence[StepCounter], shared: Mapping[str, Any]) -> int:
        """Nothing to do: step counts are on the host, and skipped steps were counted as they happened."""
        return 0


def anywhere(value: float, launches: Sequence[Launch]) -> float:
    """The largest of this number on all processes that have parts of the tensors."""
    for communicator in dict.fromkeys(launch.communicator for launch in launches if launch.communicator is not None):
        found = np.array([value])
        communicator.all_reduce(found, "max")
        value = float(found[0])
    return value


def first(value: Any) -> float:
    """A number, or the only element of an array."""
    return float(value.reshape(-1)[0]) if hasattr(value, "reshape") else float(value)
