"""A stand-in for Hugging Face's package, with what the README's snippet touches and no more.

It hands the class and its arguments to the parameters as their Trainer does: two groups, without decay for biases and norms,
the rates of decay from TrainingArguments. That their real Trainer accepts the class is not shown by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class TrainingArguments:
    output_dir: str
    num_train_epochs: int = 3
    weight_decay: float = 0.0


@dataclass
class Trainer:
    model: torch.nn.Module
    args: TrainingArguments
    train_dataset: Sequence[dict[str, torch.Tensor]]
    optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]]

    def train(self) -> None:
        cls, options = self.optimizer_cls_and_kwargs
        decayed = [p for name, p in self.model.named_parameters() if not name.endswith("bias")]
        others = [p for name, p in self.model.named_parameters() if name.endswith("bias")]
        groups = [{"params": decayed, "weight_decay": self.args.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = cls(groups, **options)
        schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        for _ in range(self.args.num_train_epochs):
            for example in self.train_dataset:
                self.model.zero_grad()
                self.model(**{key: value[None] for key, value in example.items()})["loss"].backward()
                self.optimizer.step()
                schedule.step()
