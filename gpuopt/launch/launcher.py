"""What the optimizer hands to a backend: launches (a plan, its arrays and its rows of scalars) and what the step asks for besides.

Made by `optim`, run by `backends`. Knows no backend.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gpuopt import arrays
from gpuopt.compiler.host import prepared_values, row_function, row_inputs
from gpuopt.compiler.names import OPTION
from gpuopt.errors import DtypeError
from gpuopt.launch.plan import Plan
from gpuopt.launch.products import Products
from gpuopt.launch.shards import Communicator

if TYPE_CHECKING:
    from gpuopt.rules.definition import Definition

MULTIPLIER = "grad_multiplier"  # what every gradient is multiplied by: a number of the step, not of a group


@dataclass
class StepCounter:
    """A step count shared by tensors of one group that always got their gradients together; one row of scalars each.

    environment(step) gives the group's hyperparameters, for the step that is about to be the step-th: floats, or arrays of one
    element on the GPU, which are read there.
    """

    group: int
    step: int
    environment: Callable[[int], Mapping[str, Any]]
    # Of the step that is being made: a schedule is asked once, `prepare` is called once.
    memo: Mapping[str, Any] | None = None
    derived: Mapping[str, float] | None = None
    word: Any = None  # where a backend keeps the count on its device

    def advance(self) -> None:
        """A step is made: nothing is known of it yet."""
        self.step, self.memo, self.derived = self.step + 1, None, None

    def values(self) -> Mapping[str, Any]:
        """The hyperparameters of the step that was just counted."""
        if self.memo is None:
            self.memo = self.environment(self.step)
        return self.memo

    def prepared(self, definition: Definition) -> Mapping[str, float]:
        """What `prepare` derives from them."""
        if self.derived is None:
            self.derived = prepared_values(definition, self.step, self.values())
        return self.derived


class StepRequest(NamedTuple):
    """What this step asks for besides the update; all of it is the same for every launch of the step.

    max_norm: bound of the global gradient norm, None for no bound; grad_scale: a number, or a one-element float32 array on
    the device; found_inf: the same, non-zero skips; check_finite: skip where a gradient is not finite;
    on_device: step counts and decisions live on the device, the host may not wait for them.
    """

    max_norm: float | None = None
    grad_scale: Any = None
    found_inf: Any = None
    check_finite: bool = False
    on_device: bool = False
    capturable: bool = False

    @property
    def sums(self) -> bool:
        """Whether the gradients must be read once beforehand."""
        return self.max_norm is not None or self.check_finite


@dataclass
class Launch:
    """One kernel launch: plan, arrays in the plan's order, and the counters whose rows the plan's ROW column names."""

    plan: Plan
    counters: Sequence[StepCounter]
    arrays: list[dict[str, Any]]  # role -> array, one dict a tensor
    flags: Mapping[str, object] = field(default_factory=dict)
    # Places among the addresses of the states that are kept in host memory, and with what others they travel: see `launch.ferry`.
    streamed: tuple[int, ...] = ()
    portion: int = 0
    communicator: Communicator | None = None  # of the processes that have the other parts of its tensors
    private: dict[str, Any] = field(default_factory=dict)  # what a backend keeps with it: device tables, kernels
    shared: dict[str, Any] = field(
        default_factory=dict
    )  # and with all launches of an engine on one device, later ones too

    # Of a rule with products of matrices: what backends that compile run in its place, one after another, and of each of these the
    # products behind it.
    stages: Sequence[Launch] = ()
    multiplied: Sequence[Mapping[str, Any]] = ()  # of each tensor what products take of it, by name
    products: Sequence[Products] = ()
    stage: int = 0

    wide: NDArray[np.float64] = field(
        default_factory=lambda: np.empty((0, 0))
    )  # of the step that is made: [counters, wides]

    def move(self, role: int, addresses: NDArray[np.int64]) -> None:
        """New addresses of one role, parameter or gradient, one for each tensor."""
        for each in (self, *self.stages):
            each.plan.move(role, addresses)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What a backend keeps that depends on tiles and chunks: made anew where the plan was cut since."""
        cuts, made = self.private.get(name, (-1, None))
        if cuts != self.plan.cuts:
            made = make()
            self.private[name] = self.plan.cuts, made
        return made

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The hyperparameters its rows are computed from."""
        return row_inputs(self.plan.program)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The names of the same in an environment; the factor of the gradients, which is not in one, by itself."""
        return tuple(name.removeprefix(OPTION) for name in self.inputs)

    @cached_property
    def row(self) -> Callable[..., tuple[float, ...]]:
        """The function of one row; kept, since looking it up would hash the whole program at every step."""
        return row_function(self.plan.program, self.inputs)

    @cached_property
    def letter(self) -> Literal["f", "d"]:
        """The compute type, as `array` calls it."""
        return "d" if self.plan.program.compute == "float64" else "f"

    @cached_property
    def called(self) -> Definition | None:
        """The definition whose `prepare` only Python can run."""
        definition = self.plan.program.signature.definition
        return definition if definition.on_host else None

    def rows(self, grad_multiplier: float) -> NDArray[Any]:
        """The rows of scalars in the compute type, after the counters have advanced: [counters, scalars]; `wide` with them."""
        made = array(self.letter)  # rounds as NumPy does, faster for a few numbers
        program = self.plan.program
        scalars, wides = len(program.row), list[float]()
        for counter in self.counters:
            values = counter.values()
            if self.called is not None:
                values = {**values, **counter.prepared(self.called)}
            taken = [grad_multiplier if key == MULTIPLIER else float(values[key]) for key in self.keys]
            row = self.row(counter.step, *taken)
            made.extend(row[:scalars])
            wides += row[scalars:]
        if program.wide:
            self.wide = np.array(wides).reshape(len(self.counters), len(program.wide))
        return np.array(made).reshape(len(self.counters), scalars)

    def records(self, on_device: bool) -> tuple[list[StepCounter], list[int]]:
        """Whose hyperparameters `hyper` takes, and for each counter the place of its own. Counters of one group have the same,
        unless a schedule depends on their counts, which it cannot where these are kept on the device.
        """
        if not on_device:
            return list(self.counters), list(range(len(self.counters)))
        first: dict[int, int] = {}
        places = [first.setdefault(counter.group, len(first)) for counter in self.counters]
        return [self.counters[places.index(k)] for k in range(len(first))], places

    def hyper(self, device: str, counters: Sequence[StepCounter]) -> NDArray[np.float64]:
        """The inputs of rows that are computed on that device: [counters, 2, inputs], numbers and then, as integers, where on the
        device those are that are not known here. See Hyper in kernels/prepare.cuh. Raises DtypeError for one that is on another
        device.
        """
        result = np.zeros((len(counters), 2, len(self.inputs)))
        for record, counter in zip(result, counters, strict=True):
            values = counter.environment(counter.step + 1)
            given = [1.0 if key == MULTIPLIER else values[key] for key in self.keys]
            numbers = [value if isinstance(value, float) else 0.0 for value in given]
            record[0] = numbers
            for j, value in enumerate(given):
                if value is not numbers[j]:
                    view = arrays.describe(value, self.keys[j])
                    if view.device != device:
                        raise DtypeError(f"{self.keys[j]} on {view.device}: expected it on {device}, where it is read")
                    record[1].view(np.int64)[j] = view.address | (view.dtype == "float64")
        return result


def parts_of(launches: Sequence[Launch]) -> list[Launch]:
    """The stages of these launches in their order, or what there is without any."""
    found: list[Launch] = []
    for launch in launches:
        found += launch.stages or (launch,)
    return found


def advance(
    counters: Sequence[StepCounter],
    launches: Sequence[Launch],
    grad_multiplier: float,
    rehearse: Callable[[Launch, float], None] = lambda launch, multiplier: None,
) -> list[NDArray[Any]]:
    """Count the step and return the rows of every launch; counts stay as they were if a formula raises."""
    for counter in counters:
        counter.advance()
    try:
        rows = [launch.rows(grad_multiplier) for launch in launches]
        for launch in launches:
            rehearse(launch, grad_multiplier)
        return rows
    except BaseException:
        for counter in counters:
            counter.step -= 1
        raise


class Backend(Protocol):
    """See gpuopt.backends. counts: whether it can keep step counts on its device."""

    name: str
    device: str
    counts: bool

    def step(self, launches: Sequence[Launch], request: StepRequest, counters: Sequence[StepCounter]) -> bool:
        """Run one step; advances the counters unless the step is skipped. Returns False if it was skipped (host only)."""
        ...

    def ready(self, launches: Sequence[Launch], request: StepRequest) -> None:
        """Allocate what a step of them needs, where another backend has launches of the same step."""
        ...

    def check_plan(self) -> None:
        """Raise GpuoptError where new launches cannot be made now: the current stream is captured into a CUDA graph."""
        ...

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        ...

    def recount(self, counters: Sequence[StepCounter]) -> None:
        """The counts of these counters are those of the host: bring them to where CUDA graphs read them."""
        ...

    def synchronize(self, counters: Sequence[StepCounter], shared: Mapping[str, Any]) -> int:
        """Bring step counts that live on the device back into these counters; returns the steps skipped there since.

        shared: `Launch.shared` of the launches that they belong to.
        """
        ...
