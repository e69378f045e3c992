"""Step counts that live on a device, by parameter: replays of CUDA graphs advance them, whatever engine steps the parameter now.

Called by the optimizer, which makes another engine for every other set of gradients. Knows no engine and no rule.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from gpuopt.launch.launcher import StepCounter
from gpuopt.torch.step_tensors import usable


class Replayed:
    """counters: of each parameter the last one whose count was on a device."""

    def __init__(self) -> None:
        self.counters: dict[torch.Tensor, StepCounter] = {}

    def remember(self, counters: Mapping[torch.Tensor, StepCounter]) -> None:
        self.counters |= {p: counter for p, counter in counters.items() if counter.word is not None}

    def word(self, p: torch.Tensor) -> Any:
        """Where its count is, if it is on a device."""
        return self.counters[p].word if p in self.counters else None

    def settle(self, states: Mapping[Any, Any], stepped: Collection[torch.Tensor]) -> None:
        """Bring the counts of all parameters but those that an engine steps into the step tensors that nobody has changed."""
        alone = {p: counter for p, counter in self.counters.items() if p not in stepped}
        before = {p: counter.step for p, counter in alone.items()}
        for backend in {counter.word.counts.backend for counter in alone.values()}:
            backend.synchronize(list(alone.values()), {})
        for p, counter in alone.items():
            step = states[p].get("step") if p in states else None
            if counter.step != before[p] and usable(step) and step == before[p]:
                step.fill_(counter.step)
