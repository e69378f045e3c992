"""What the passes of a step that sum need on a GPU, and what is done once a tensor and over all tensors between them.

Made by `device_launch` and `device`. Knows no library of arrays; memory is a `Runtime`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpuopt.backends.buffers import DeviceBuffers, Upload
from gpuopt.compiler.parts import Layout, Pass, PerTensor, Step
from gpuopt.errors import InputError
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch import sums
from gpuopt.launch.launcher import Launch
from gpuopt.launch.plan import Plan
from gpuopt.launch.shards import Communicator

if TYPE_CHECKING:
    from gpuopt.backends.device import DeviceBackend

# Of a sum in a launch: the address of the first tensor's total, their count, the bytes between them.
Part = tuple[int, int, int]
Addresses = tuple[int, int, int, int]  # of DevicePasses.run
Run = Callable[[Any], None]  # enqueues something on a stream


class Open(NamedTuple):
    """Sums of a launch that are not complete yet, each with its kind, its plan, and who has the other parts of its tensors."""

    parts: Sequence[tuple[Part, str]]
    plan: Plan
    communicator: Communicator | None

    def of(self, *kinds: str) -> list[Part]:
        """Those of these kinds."""
        return [part for part, kind in self.parts if kind in kinds]


class DevicePasses(DeviceBuffers):
    """Those of one launch. layouts: of each step; schedule: passes that sum, and what is done once a tensor or matrix, in their
    order; slots: numbers and dtype of each slot of the program; sharded: whether every sum is of parts of tensors.
    """

    def __init__(
        self, backend: DeviceBackend, launch: Launch, layouts: Sequence[Layout], schedule: Sequence[Step],
        slots: Sequence[tuple[int, str]], stream: Any, upload: Upload, sharded: bool,
    ) -> None:  # fmt: skip
        super().__init__(backend)
        self.plan, self.schedule = plan, schedule = launch.plan, schedule
        self.kernels = [kernel_of(backend, *each) for each in zip(layouts, schedule, strict=True)]
        # The pieces that each kind of step goes through, and, of those once a tensor, where their chunks begin.
        pieces = {"tensors": plan.begins, "chunks": plan.chunks, "blocks": plan.blocks, "matrices": plan.matrices}
        wanted = {pieces_of(step) for step in schedule}
        most = {name: array.nbytes for name, array in pieces.items()} | {"chunks": 8 * plan.most_chunks}
        self.pieces = {name: self.allocate(most[name]) for name in pieces if name in wanted}
        self.multiprocessors = backend.runtime.multiprocessors()
        alone = [step for step in schedule if isinstance(step, PerTensor)]
        tensors, stride = len(plan.table), 8 * max((step.totals for step in alone), default=0)
        self.partials = self.allocate(8 * plan.most_chunks * max(len(step.sums) for step in schedule))
        self.totals = self.allocate(tensors * stride)
        values = max(len(step.values) for step in (*schedule, plan.program.update))
        self.values = self.allocate(STORAGES[plan.program.compute].itemsize * tensors * values)
        there = [self.address(self.allocate(STORAGES[dtype].itemsize * size)) for size, dtype in slots]
        self.slots = self.filled(np.array(there, np.int64), stream, upload)
        self.waits = [isinstance(step, PerTensor) and bool(step.open(sharded)) for step in schedule]
        first = self.address(self.totals)
        opened = [kinds for step in alone if (kinds := step.open(sharded))]
        self.open = [
            Open([((first + 8 * k, tensors, stride), kind) for k, kind in kinds.items()], plan, launch.communicator)
            for kinds in opened
        ]
        self._made: list[tuple[Any, ...]] = []
        self._made_for: tuple[int, int, int, int] = (-1, -1, -1, -1)
        self.cuts = -1
        self.cut(stream, upload)

    def cut(self, stream: Any, upload: Upload) -> None:
        """The pieces that the plan has now go up, where they are others than those that are there."""
        if self.cuts == self.plan.cuts:
            return
        plan, self.cuts, self._made_for = self.plan, self.plan.cuts, (-1, -1, -1, -1)
        pieces = {"tensors": plan.begins, "chunks": plan.chunks, "blocks": plan.blocks, "matrices": plan.matrices}
        self.counts = {name: len(array) for name, array in pieces.items()} | {"tensors": len(plan.table)}
        for name, buffer in self.pieces.items():
            upload(buffer, pieces[name], stream)
        self.grids = [min(self.counts[pieces_of(step)], 4 * self.multiprocessors) for step in self.schedule]

    def run(self, table: int, rows: int, wide: int, skip: int, stream: Any) -> Iterator[None]:
        """Enqueue them; yields where totals have to be completed, see `Joins`. Addresses of the table, of the rows of scalars, and
        of the word that says whether this step is skipped, or 0.
        """
        if self._made_for != (table, rows, wide, skip):
            self._made_for = table, rows, wide, skip
            self._made = [self.backend.runtime.packed(self._arguments(step, *self._made_for)) for step in self.schedule]
        for kernel, grid, given, waits in zip(self.kernels, self.grids, self._made, self.waits, strict=True):
            if grid:
                self.backend.runtime.launch(kernel, grid, given, stream)
            if waits:
                yield

    def _arguments(self, step: Step, table: int, rows: int, wide: int, skip: int) -> tuple[int, ...]:
        partials, totals, values, slots = map(self.address, (self.partials, self.totals, self.values, self.slots))
        name = pieces_of(step)
        pieces, count = self.address(self.pieces[name]), self.counts[name]
        head = table, self.plan.table.shape[1]
        return {
            "tensors": (*head, count, pieces, wide, partials, totals, values),
            "chunks": (*head, pieces, count, rows, values, slots, partials, skip),
            "blocks": (*head, pieces, count, rows, values, slots),
            "matrices": (*head, pieces, count, rows, values, slots, skip),
        }[name]


def pieces_of(step: Step) -> str:
    """What a step goes through."""
    if isinstance(step, Pass):
        return "blocks" if step.along else "chunks"
    return "tensors" if isinstance(step, PerTensor) else "matrices"


def kernel_of(backend: DeviceBackend, layout: Layout, step: Step) -> Any:
    """The compiled kernel of a step."""
    if isinstance(step, Pass):
        return backend.kernel("reduce", layout, step)
    return backend.kernel("per_tensor" if isinstance(step, PerTensor) else "per_matrix", step)


class OverAll(DeviceBuffers):
    """Sums over all tensors of several launches, of each of which `parts` has those sums."""

    def __init__(self, backend: DeviceBackend, parts: Sequence[Sequence[Part]], stream: Any, upload: Upload) -> None:
        super().__init__(backend)
        self.kernel = backend.kernel("all_tensors")
        there = self.filled(np.array(parts, np.int64), stream, upload)
        self.result = self.allocate(8 * len(parts[0]))
        given = self.address(there), len(parts), len(parts[0]), self.address(self.result)
        self.arguments = backend.runtime.packed(given)
        self.run: Run = partial(backend.runtime.launch, self.kernel, 1, self.arguments)  # enqueues it


class Exchange(DeviceBuffers):
    """Sums, or maxima, of parts of tensors, which processes complete together: twin of `launch.sums.complete`. What came of the
    head is looked at behind the first step of a plan, and not waited for behind others.
    """

    def __init__(
        self, backend: DeviceBackend, communicator: Communicator, found: Sequence[Open], op: str, kinds: Sequence[str], stream: Any,
        upload: Upload,
    ) -> None:  # fmt: skip
        super().__init__(backend)
        self.kernel, self.communicator, self.op = backend.kernel("exchange"), communicator, op
        parts = [part for each in found for part in each.of(*kinds)]
        numbers, largest = 2 + sum(count for _, count, _ in parts), int(op == "max")
        own = sums.head([each.plan for each in found])
        self.agreed, self.looked = sums.agreed(own, communicator, op), False
        self.count = sums.filled(numbers * (1 + largest))
        self.buffer = self.filled(np.zeros(self.count), stream, upload)
        self.head = self.filled(np.zeros(2), stream, upload)  # what came of it
        self.arguments = []
        for back, at in enumerate((self.filled(own, stream, upload), self.head)):
            there = self.filled(np.array([(self.address(at), 2, 8), *parts], np.int64), stream, upload)
            given = self.address(there), 1 + len(parts), numbers, self.address(self.buffer), back, largest
            self.arguments.append(backend.runtime.packed(given))

    def run(self, stream: Any) -> None:
        """Enqueue it. Raises InputError where the processes have not the same tensors, the first time."""
        runtime, (out, back) = self.backend.runtime, self.arguments
        runtime.launch(self.kernel, 1, out, stream)
        array = runtime.shared_array(self.buffer, self.count, "float64", stream)
        self.communicator.all_reduce(array, self.op, runtime.handle(stream))
        runtime.launch(self.kernel, 1, back, stream)
        if not self.looked:
            if (runtime.download(self.head, 16, stream).view(np.float64) != self.agreed).any():
                raise InputError(
                    f"rank {self.communicator.rank} of {self.communicator.size} and another one step other tensors: expected "
                    "gradients of the same parameters on all of them, where sums over tensors are taken"
                )
            self.looked = True


class Joins:
    """What completes the sums that launches have open at the same time. result: of those over all tensors."""

    def __init__(self, backend: DeviceBackend, found: Sequence[Open], stream: Any, upload: Upload) -> None:
        self.runs: list[Run] = []
        for communicator in dict.fromkeys(each.communicator for each in found if each.communicator is not None):
            mine = [each for each in found if each.communicator == communicator]
            for op, kinds in (("sum", ("tensor_sum", "global_sum")), ("max", ("tensor_max",))):
                if any(count for each in mine for _, count, _ in each.of(*kinds)):
                    self.runs.append(Exchange(backend, communicator, mine, op, kinds, stream, upload).run)
        over_all = [parts for each in found if (parts := each.of("global_sum"))]
        if over_all:
            last = OverAll(backend, over_all, stream, upload)
            self.runs.append(last.run)
            self.last, self.result = last, last.result
        self.run = self.runs[0] if len(self.runs) == 1 else self._each  # enqueues all of it

    def _each(self, stream: Any) -> None:
        for run in self.runs:
            run(stream)


class StepPasses:
    """Those of all launches of a step, which wait for each other where something is summed over all tensors or processes."""

    def __init__(self, backend: DeviceBackend, passes: Sequence[DevicePasses], stream: Any, upload: Upload) -> None:
        self.passes = list(passes)
        longest = max((len(each.open) for each in passes), default=0)
        self.joins = [
            Joins(backend, [each.open[k] for each in passes if k < len(each.open)], stream, upload)
            for k in range(longest)
        ]

    def begun(self, given: Sequence[Addresses], stream: Any) -> list[Iterator[None]]:
        """Each of them up to where it begins; what is joined between is `joins`, in this order."""
        return [each.run(*addresses, stream) for each, addresses in zip(self.passes, given, strict=True)]

    def run(self, given: Sequence[Addresses], stream: Any) -> None:
        """Enqueue all of them. given: of each the addresses of DevicePasses.run."""
        running = [each.run(*addresses, stream) for each, addresses in zip(self.passes, given, strict=True)]
        for join in (*self.joins, None):
            for each in running:
                next(each, None)
            if join is not None:
                join.run(stream)
