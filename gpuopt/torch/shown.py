"""A step count as torch shows it: a tensor in `self.state`. Called by the optimizer; knows no rule."""

from __future__ import annotations

import torch

from gpuopt.launch.launcher import Clock


class StepTensor:
    """A step count as `self.state` shows it, to all parameters that share the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.shown = clock, clock.step
        # As torch makes them: float64 where that is the default, else float32, which counts to 2^24.
        dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
        self.tensor = torch.tensor(float(clock.step), dtype=dtype)

    def show(self) -> None:
        """Bring the count into the tensor."""
        if self.shown != self.clock.step:
            self.shown = self.clock.step
            self.tensor.fill_(self.shown)

    def changed(self) -> bool:
        """Whether someone else wrote another count into the tensor."""
        return bool(self.tensor.item() != self.shown)
