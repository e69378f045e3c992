"""Step counts that live on a device, by parameter: replays of CUDA graphs advance them, whatever engine steps the parameter now.

Called by the optimizer, which makes another engine for every other set of gradients. Knows no engine and no rule.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from gpuopt.launch.launcher import Clock
from gpuopt.torch.shown import usable


class Replayed:
    """clocks: of each parameter the last one whose count was on a device."""

    def __init__(self) -> None:
        self.clocks: dict[torch.Tensor, Clock] = {}

    def remember(self, clocks: Mapping[torch.Tensor, Clock]) -> None:
        self.clocks |= {p: clock for p, clock in clocks.items() if clock.word is not None}

    def word(self, p: torch.Tensor) -> Any:
        """Where its count is, if it is on a device."""
        return self.clocks[p].word if p in self.clocks else None

    def settle(self, states: Mapping[Any, Any], stepped: Collection[torch.Tensor]) -> None:
        """Bring the counts of all parameters but those that an engine steps into the step tensors that nobody has changed."""
        alone = {p: clock for p, clock in self.clocks.items() if p not in stepped}
        before = {p: clock.step for p, clock in alone.items()}
        for backend in {clock.word.counts.backend for clock in alone.values()}:
            backend.synchronize(list(alone.values()), {})
        for p, clock in alone.items():
            step = states[p].get("step") if p in states else None
            if clock.step != before[p] and usable(step) and step == before[p]:
                step.fill_(clock.step)
