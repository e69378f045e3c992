"""What the NumPy and Numba backends share: the decision to clip or skip, taken on the host before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.compiler.host import div
from gpuopt.launch.launcher import Clock, Demand, Launch, advance
from gpuopt.launch.plan import join
from gpuopt.rules.language import minimum


class HostBackend:
    """A backend on host arrays. Subclasses give `sums(launch) -> partials [chunks, 2]` and `update(launch, rows, multiplier)`."""

    name = ""
    device = "cpu"
    counts = False

    def __init__(self, index: int = 0) -> None:
        """There is one host."""

    def sums(self, launch: Launch) -> NDArray[Any]:
        raise NotImplementedError

    def update(self, launch: Launch, multiplier: float) -> None:
        raise NotImplementedError

    def rehearse(self, launch: Launch, multiplier: float) -> None:
        """Whatever `update` could raise, before the first write; nothing where it runs compiled code."""

    def step(self, launches: Sequence[Launch], demand: Demand, clocks: Sequence[Clock]) -> bool:
        """Decide, advance the clocks, update. Everything that can fail comes before the first write."""
        multiplier, skip = self.decide(launches, demand)
        if skip:
            return False
        for launch, rows in zip(launches, advance(clocks, launches, multiplier, self.rehearse), strict=True):
            launch.private["rows"] = rows
        for launch in launches:
            self.update(launch, multiplier)
        return True

    def decide(self, launches: Sequence[Launch], demand: Demand) -> tuple[float, bool]:
        """The factor every gradient is multiplied by, and whether to skip; the twin of kernels/prepare.cuh."""
        inverse = 1.0 if demand.grad_scale is None else div(1.0, first(demand.grad_scale))
        skip = demand.found_inf is not None and first(demand.found_inf) != 0
        if not demand.sums:
            return inverse, skip
        with np.errstate(all="ignore"):
            partials = [self.sums(launch) for launch in launches]
            squares, broken = join(np.concatenate(partials)) if partials else (0.0, 0.0)
            norm = float(np.sqrt(squares)) * inverse
        bound = np.inf if demand.max_norm is None else demand.max_norm
        # Without a bound the norm plays no part: squares may overflow where the gradients themselves are finite.
        multiplier = float(minimum(div(bound, norm + 1e-6), 1.0)) * inverse if np.isfinite(bound) else inverse
        return multiplier, skip or (demand.check_finite and bool(broken != 0))

    def ready(self, launches: Sequence[Launch], demand: Demand) -> None:
        """Nothing to do: a step allocates and compiles before it writes."""

    def check_plan(self) -> None:
        """Nothing stands against new launches."""

    def wait(self) -> None:
        """What was done is done."""

    def recount(self, clocks: Sequence[Clock]) -> None:
        """Step counts are on the host."""

    def synchronize(self, clocks: Sequence[Clock], shared: Mapping[str, Any]) -> int:
        """Nothing to do: step counts are on the host, and skipped steps were counted as they happened."""
        return 0


def first(value: Any) -> float:
    """A number, or the only element of an array."""
    return float(value.reshape(-1)[0]) if hasattr(value, "reshape") else float(value)
