"""The one table of rule x hyperparameters x oracle, and the oracles. A new rule is one more row here.

Read by the tests that compare an optimizer with its author's; knows nothing of backends. An oracle is `torch.optim`'s class
where torch has the optimizer, else the author's formula in NumPy float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Gradients = Sequence[Array | None]


class TorchOracle:
    """`torch.optim`'s optimizer, one tensor at a time (`foreach=False`), on copies of the arrays."""

    def __init__(self, name: str, params: Sequence[Array], **options: Any) -> None:
        import torch

        self.tensors = [torch.from_numpy(p.copy()) for p in params]
        self.optimizer = getattr(torch.optim, name)(self.tensors, foreach=False, **options)

    def step(self, grads: Gradients) -> None:
        import torch

        for tensor, grad in zip(self.tensors, grads, strict=True):
            tensor.grad = None if grad is None else torch.from_numpy(np.array(grad, order="C"))
        self.optimizer.step()

    @property
    def params(self) -> list[Array]:
        return [t.numpy() for t in self.tensors]

    @property
    def states(self) -> list[dict[str, Array]]:
        """Tensors of each parameter under torch's names; the step count is a number beside them."""
        states = [self.optimizer.state[t] for t in self.tensors]
        return [{k: v.numpy() for k, v in state.items() if v is not None} for state in states]


class FormulaOracle:
    """An author's formula in NumPy: `update(step, p, g, states, **options)` changes `p` and `states` in place."""

    def __init__(
        self, formula: Callable[..., None], keys: Sequence[str], params: Sequence[Array], **options: Any
    ) -> None:
        self.formula, self.options = formula, options
        self.maximize = self.options.pop("maximize", False)
        self.params = [p.copy() for p in params]
        self.states: list[dict[str, Array]] = [{k: np.zeros_like(p) for k in keys} for p in params]
        self.steps = [0] * len(self.params)

    def step(self, grads: Gradients) -> None:
        for k, g in enumerate(grads):
            if g is not None:
                self.steps[k] += 1
                self.formula(self.steps[k], self.params[k], -g if self.maximize else g, self.states[k], **self.options)


def gd(t: int, p: Array, g: Array, s: Mapping[str, Array], *, lr: float, weight_decay: float = 0.0) -> None:
    """Gradient descent: p <- p - lr g, the decay in the gradient as in torch's SGD."""
    p -= lr * decayed(p, g, weight_decay)


def decayed(p: Array, g: Array, weight_decay: float) -> Array:
    """The gradient with the decay that is coupled to it."""
    return np.asarray(g + weight_decay * p if weight_decay else g)


def dgd(
    t: int, p: Array, g: Array, s: Mapping[str, Array], *, lr: float, lr_decay: float = 0.9, weight_decay: float = 0.0
) -> None:
    """v <- v + g;  p <- p - a v;  a <- a lr_decay, a = lr at the first step; the decay in the gradient."""
    s["velocity"][...] += decayed(p, g, weight_decay)
    p -= lr * lr_decay ** (t - 1) * s["velocity"]


def lion(
    t: int, p: Array, g: Array, s: Mapping[str, Array], *, lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0,
) -> None:  # fmt: skip
    """Chen et al. 2023, algorithm 2, with the decay before the step."""
    m = s["exp_avg"]
    update = np.sign(betas[0] * m + (1 - betas[0]) * g)
    p *= 1 - lr * weight_decay
    p -= lr * update
    m[...] = betas[1] * m + (1 - betas[1]) * g


FORMULAS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "GD": (gd, ()),
    "DGD": (dgd, ("velocity",)),
    "Lion": (lion, ("exp_avg",)),
}


@dataclass(frozen=True)
class Case:
    """An optimizer's class name with hyperparameters; `oracle(params)` makes what it must agree with."""

    optimizer: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.optimizer, *(f"{k}={v}" for k, v in self.options.items())]).replace(" ", "")

    def oracle(self, params: Sequence[Array], **more: Any) -> Any:
        if self.optimizer in FORMULAS:
            return FormulaOracle(*FORMULAS[self.optimizer], params, **self.options, **more)
        return TorchOracle(self.optimizer, params, **self.options, **more)


def _rows(optimizer: str, *options: dict[str, Any]) -> list[Case]:
    return [Case(optimizer, o) for o in options]


MOMENTUM = {"lr": 0.02, "momentum": 0.9}
NESTEROV = MOMENTUM | {"nesterov": True}
CENTERED = {"lr": 3e-3, "centered": True}
AMSGRAD = {"lr": 2e-3, "amsgrad": True}

CASES = [
    *_rows(
        "GD",
        {"lr": 0.1},
        {"lr": 0.1, "maximize": True},
        {"lr": 0.0},
        {"lr": 0.1, "weight_decay": 0.1},
        {"lr": 0.1, "weight_decay": 0.1, "maximize": True},
    ),
    *_rows(
        "SGD",
        {},
        {"lr": 0.1, "weight_decay": 0.1},
        {"lr": 0.1, "maximize": True, "weight_decay": 0.1},
        MOMENTUM,
        MOMENTUM | {"dampening": 0.3},
        MOMENTUM | {"dampening": 1.0, "weight_decay": 0.05},
        MOMENTUM | {"maximize": True, "dampening": -0.5},
        NESTEROV,
        NESTEROV | {"weight_decay": 0.05},
        NESTEROV | {"weight_decay": 0.05, "maximize": True},
    ),
    *_rows(
        "DGD",
        {"lr": 0.01},
        {"lr": 0.01, "lr_decay": 0.5},
        {"lr": 0.01, "lr_decay": 1.0, "maximize": True},
        {"lr": 0.01, "weight_decay": 0.1},
        {"lr": 0.01, "weight_decay": 0.1, "maximize": True},
    ),
    *_rows(
        "Adagrad",
        {},
        {"lr": 0.1, "lr_decay": 0.1},
        {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-3},
        {"lr": 0.1, "initial_accumulator_value": 0.5},
        {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.1, "initial_accumulator_value": 0.1, "maximize": True},
    ),
    *_rows(
        "RMSprop",
        {},
        {"alpha": 0.5, "eps": 1e-2, "weight_decay": 0.1},
        {"alpha": 0.0},
        {"alpha": 1.0, "eps": 1.0},
        {"momentum": 0.9, "lr": 1e-3},
        {"momentum": 0.9, "lr": 1e-3, "weight_decay": 0.1, "maximize": True},
        CENTERED | {"alpha": 0.9, "eps": 1e-4},
        CENTERED | {"eps": 1e-4, "momentum": 0.8, "weight_decay": 0.1},
        CENTERED | {"eps": 1e-4, "maximize": True},
    ),
    *(
        case
        for optimizer in ("Adam", "AdamW")
        for case in _rows(
            optimizer,
            {},
            {"lr": 0.1, "betas": (0.5, 0.75), "eps": 1e-2},
            {"lr": 0.01, "betas": (0.0, 0.999)},
            {"lr": 0.01, "betas": (0.9, 0.0), "eps": 1e-3},
            {"lr": 0.01, "weight_decay": 0.3},
            {"lr": 0.01, "weight_decay": 0.0, "maximize": True},
            AMSGRAD,
            AMSGRAD | {"betas": (0.8, 0.6), "weight_decay": 0.1, "maximize": True},
        )
    ),
    *_rows(
        "Adam",
        {"lr": 0.01, "weight_decay": 0.3, "decoupled_weight_decay": True},
        AMSGRAD | {"weight_decay": 0.1, "maximize": True, "decoupled_weight_decay": True},
    ),
    *_rows(
        "Lion",
        {},
        {"lr": 0.01, "weight_decay": 0.1},
        {"lr": 0.01, "betas": (0.5, 0.75), "weight_decay": 0.1, "maximize": True},
        {"lr": 0.01, "betas": (0.0, 0.0)},
    ),
]
