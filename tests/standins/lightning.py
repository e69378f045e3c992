"""A stand-in for Lightning, with what the README's snippet touches and no more.

Its Trainer steps with a closure that does forward and backward, as theirs does. That the real one accepts the optimizer is
not shown by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class LightningModule(torch.nn.Module):
    pass


class Trainer:
    def __init__(self, max_epochs: int) -> None:
        self.max_epochs = max_epochs

    def fit(self, model: Any, batches: Iterable[Any]) -> None:
        configured = model.configure_optimizers()
        opt, schedule = configured["optimizer"], configured["lr_scheduler"]
        assert isinstance(opt, torch.optim.Optimizer)
        for _ in range(self.max_epochs):
            for index, batch in enumerate(batches):

                def closure(batch: Any = batch, index: int = index) -> torch.Tensor:
                    loss: torch.Tensor = model.training_step(batch, index)
                    opt.zero_grad()
                    loss.backward()
                    return loss

                opt.step(closure)
            schedule.step()
