"""The one table of rule x hyperparameters x oracle, and the oracles. A new rule is one more row here.

Read by the tests that compare an optimizer with its author's; knows nothing of backends. An oracle is `torch.optim`'s class
where torch has the optimizer, else the author's formula in NumPy float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cases_matrices import ROWS
from formulas import FORMULAS
from formulas_matrices import OF_MATRICES, matrices
from formulas_products import OF_PRODUCTS
from formulas_sums import OF_SUMS, TOGETHER

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

        from torch_samples import default_dtype

        for tensor, grad in zip(self.tensors, grads, strict=True):
            tensor.grad = None if grad is None else torch.from_numpy(np.array(grad, order="C"))
        with default_dtype(self.tensors[0].dtype):
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
        self.kept: list[dict[str, Any]] = [dict(state_of(k, p) for k in keys if exists(k, p)) for p in params]
        for number, kept in enumerate(self.kept):
            kept["_number"] = number  # on which random numbers depend
        self.steps = [0] * len(self.params)

    @property
    def states(self) -> list[dict[str, Array]]:
        """Those of each parameter, without what a formula keeps for itself, under names with a "_" in front."""
        return [{name: value for name, value in kept.items() if name[0] != "_"} for kept in self.kept]

    def step(self, grads: Gradients) -> None:
        for k, g in enumerate(grads):
            if g is not None:
                self.steps[k] += 1
                self.formula(self.steps[k], self.params[k], -g if self.maximize else g, self.kept[k], **self.options)


class JointOracle(FormulaOracle):
    """An author's formula of all tensors that have a gradient at once: `update(steps, params, grads, states, **options)`."""

    def step(self, grads: Gradients) -> None:
        there = [k for k, g in enumerate(grads) if g is not None]
        for k in there:
            self.steps[k] += 1
        given = [-g if self.maximize else g for g in grads if g is not None]
        steps, params, states = ([known[k] for k in there] for known in (self.steps, self.params, self.kept))
        self.formula(steps, params, given, states, **self.options)


def state_of(key: str, p: Array) -> tuple[str, Array]:
    """A state before the first step, by its name; one that ends with " start" is what the parameter is then."""
    name, *given = key.replace("()", " number").split()
    shape = "".join(given)
    if shape == "start":
        return name, p.copy()
    rows, columns = matrices(p)[1:] if p.ndim > 1 else (1, 1)
    batch = p.shape[:-2] if p.ndim < 4 else ()
    shapes = {
        "left": (*batch, rows, rows),
        "right": (*batch, columns, columns),
        "number": (),
        "row": (*p.shape[:-1], 1),
        "column": (*p.shape[:-2], 1, *p.shape[-1:]),
    }
    return name, np.zeros(shapes.get(shape, p.shape), p.dtype)


def exists(key: str, p: Array) -> bool:
    """Whether a tensor has this state: one a row or column if it has two axes, "flat" if it has fewer."""
    shape = key.partition(" ")[2]
    return shape in ("", "start") or (shape == "flat") == (p.ndim < 2)


@dataclass(frozen=True)
class Case:
    """An optimizer's class name with hyperparameters; `oracle(params)` makes what it must agree with."""

    optimizer: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.optimizer, *(f"{k}={v}" for k, v in self.options.items())]).replace(" ", "")

    def oracle(self, params: Sequence[Array], **more: Any) -> Any:
        for table, made in ((FORMULAS | OF_SUMS | OF_MATRICES | OF_PRODUCTS, FormulaOracle), (TOGETHER, JointOracle)):
            if self.optimizer in table:
                return made(*table[self.optimizer], params, **self.options, **more)
        return TorchOracle(self.optimizer, params, **self.options, **more)


def _rows(optimizer: str, *options: dict[str, Any]) -> list[Case]:
    return [Case(optimizer, o) for o in options]


MOMENTUM = {"lr": 0.02, "momentum": 0.9}
NESTEROV = MOMENTUM | {"nesterov": True}
CENTERED = {"lr": 3e-3, "centered": True}
AMSGRAD = {"lr": 2e-3, "amsgrad": True}
# An optimizer's defaults, others, and ascent with decay.
ADAMS = (
    {},
    {"lr": 0.1, "betas": (0.5, 0.75), "weight_decay": 0.1},
    {"lr": 0.01, "betas": (0.8, 0.6), "maximize": True},
)
SIGNS = ({}, {"lr": 0.01, "weight_decay": 0.1}, {"lr": 0.01, "weight_decay": 0.1, "maximize": True})

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
    *_rows(
        "Adadelta",
        {},
        {"lr": 0.5, "rho": 0.5, "eps": 1e-3, "weight_decay": 0.1},
        {"rho": 0.0, "eps": 1e-2, "maximize": True, "weight_decay": 0.1},
    ),
    *_rows("Adamax", *ADAMS, {"lr": 0.01, "weight_decay": 0.3, "eps": 1e-3}),
    *_rows(
        "RAdam",
        *ADAMS,
        {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.3, "decoupled_weight_decay": True},
        {"lr": 0.01, "betas": (0.9, 0.9), "weight_decay": 0.3, "eps": 1e-3},
    ),
    *_rows("SignSGD", *SIGNS),
    *_rows("Signum", *SIGNS, {"lr": 0.01, "momentum": 0.5}),
    *_rows("Tiger", *SIGNS, {"lr": 0.01, "beta": 0.5}),
    *_rows(
        "AdEMAMix",
        {},
        {"lr": 0.1, "betas": (0.5, 0.75, 0.99), "alpha": 5.0, "eps": 1e-3, "weight_decay": 0.1},
        {"lr": 0.01, "alpha_warmup": 30, "beta3_warmup": 40, "weight_decay": 0.1, "maximize": True},
        {"lr": 0.01, "betas": (0.0, 0.99, 0.999)},
    ),
    *_rows(
        "Adan",
        {},
        {"lr": 0.1, "betas": (0.5, 0.75, 0.9), "weight_decay": 0.1},
        {"lr": 0.01, "weight_decay": 0.1, "no_prox": True, "maximize": True},
    ),
    *_rows("AdaBelief", {}, {"lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-8, "weight_decay": 0.1}, {"maximize": True}),
    *_rows(
        "ADOPT",
        {},
        {"lr": 0.1, "betas": (0.5, 0.75), "weight_decay": 0.1},
        {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.1, "decouple": True, "maximize": True},
    ),
    *_rows("LaProp", *ADAMS),
    *_rows("Grams", *ADAMS),
    *_rows(
        "LAMB",
        {},
        {"lr": 0.01, "betas": (0.5, 0.75), "eps": 1e-3, "max_grad_norm": 100.0, "trust_clip": True},
        {"lr": 0.01, "weight_decay": 0.0, "max_grad_norm": None, "maximize": True},
        {"lr": 0.01, "weight_decay": 0.0, "always_adapt": True, "grad_averaging": False, "bias_correction": False},
    ),
    *_rows(
        "LARS",
        {"lr": 0.1},
        {"lr": 0.1, "weight_decay": 0.1, "trust_coeff": 0.1},
        {"lr": 0.01, "weight_decay": 0.1, "trust_clip": True, "momentum": 0.9, "nesterov": True, "maximize": True},
        {"lr": 0.1, "always_adapt": True, "momentum": 0.9, "dampening": 0.3},
    ),
    *_rows(
        "NovoGrad",
        {},
        {"lr": 0.01, "betas": (0.5, 0.75), "weight_decay": 0.1, "grad_averaging": True, "maximize": True},
        {"lr": 0.01, "eps": 1e-3, "amsgrad": True},
    ),
    *_rows(
        "StableAdamW",
        {"lr": 0.01},
        {"lr": 0.1, "betas": (0.5, 0.75), "weight_decay": 0.1},
        {"lr": 0.01, "eps": 1e-2, "weight_decay": 0.1, "maximize": True},
    ),
    *_rows("AdamMini", *ADAMS),
    *_rows(
        "AdamP",
        *ADAMS,
        {"delta": 1.0, "weight_decay": 0.1},
        {"lr": 0.01, "delta": 3.0, "nesterov": True, "weight_decay": 0.1, "wd_ratio": 0.5, "maximize": True},
    ),
    *_rows(
        "MARS",
        *ADAMS,
        AMSGRAD | {"gamma": 0.1, "weight_decay": 0.1},
        {"lr": 0.01, "mars_type": "mars-lion", "weight_decay": 0.1},
    ),
    *_rows(
        "Prodigy",
        {},
        {"betas": (0.5, 0.75), "weight_decay": 0.1, "d0": 1e-3, "d_coef": 0.5},
        {"lr": 0.1, "weight_decay": 0.1, "decouple": False, "use_bias_correction": True, "maximize": True},
        {"growth_rate": 1.02, "safeguard_warmup": True, "lr": 0.5, "d0": 1e-2},
    ),
    *_rows(
        "Adafactor",
        {},
        {"lr": 0.1, "weight_decay": 0.1, "beta2_decay": -1.0, "d": 1.5},
        {"eps": (1e-3, 0.1), "weight_decay": 0.1, "maximize": True},
        {"eps": (1e-30, 1e-3), "beta2_decay": -0.5},
    ),
    *_rows(
        "AdafactorT5",
        {},
        {"lr": 0.01, "relative_step": False, "scale_parameter": False, "weight_decay": 0.1},
        {"warmup_init": True, "lr": 100.0, "clip_threshold": 0.5, "maximize": True},
        {"momentum": 0.9, "eps": (1e-6, 0.1), "decay_rate": -0.5, "weight_decay": 0.1},
    ),
    *_rows(
        "CAME",
        {},
        {"lr": 0.01, "betas": (0.5, 0.75, 0.9), "eps": (1e-6, 1e-3), "weight_decay": 0.1},
        {"lr": 0.01, "clip_threshold": 0.5, "weight_decay": 0.1, "maximize": True},
    ),
    *_rows("Yogi", *ADAMS, {"lr": 0.01, "initial_accumulator_value": 0.1, "eps": 1e-8, "weight_decay": 0.1}),
    *_rows(
        "NAdam",
        *ADAMS,
        {"lr": 0.01, "momentum_decay": 0.1, "weight_decay": 0.3, "decoupled_weight_decay": True},
        {"lr": 0.01, "betas": (0.0, 0.9), "momentum_decay": 0.0, "eps": 1e-3},
    ),
    *_rows(
        "ASGD",
        {},
        {"lr": 0.1, "t0": 10, "weight_decay": 0.1},
        {"lr": 0.1, "lambd": 0.1, "alpha": 1.5, "t0": 20, "weight_decay": 0.1, "maximize": True},
        {"lr": 0.1, "lambd": 0.5, "alpha": 0.0, "t0": 0},
    ),
    *_rows(
        "Rprop",
        {},
        {"lr": 0.1, "etas": (0.3, 2.0), "step_sizes": (0.01, 0.5)},
        {"lr": 1e-3, "step_sizes": (1e-4, 0.1), "maximize": True},
    ),
    *_rows(
        "QHAdam",
        *ADAMS,
        {"nus": (0.7, 1.0), "betas": (0.995, 0.999)},
        {"lr": 0.01, "nus": (0.5, 0.9), "weight_decay": 0.3, "decouple_weight_decay": True, "maximize": True},
    ),
    *_rows(
        "FOCUS",
        {},
        {"lr": 0.01, "betas": (0.8, 0.95), "gamma": 0.4, "weight_decay": 0.1},
        {"lr": 0.01, "betas": (0.5, 0.9), "weight_decay": 0.1, "maximize": True},
        {"gamma": 0.0},
    ),
    *_rows(
        "MADGRAD",
        {},
        {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.1},
        {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1, "eps": 1e-3, "decouple_decay": True, "maximize": True},
        {"lr": 0.1, "eps": 0.0},
    ),
    *_rows(
        "ScheduleFreeSGD",
        {},
        {"lr": 0.1, "warmup_steps": 10, "r": 0.5, "weight_decay": 0.1},
        {"lr": 0.1, "momentum": 0.5, "weight_lr_power": 0.0, "maximize": True},
    ),
    *_rows("ScheduleFreeAdamW", *ADAMS, {"lr": 0.01, "warmup_steps": 10, "r": 1.0, "weight_decay": 0.1}),
    *_rows("ScheduleFreeRAdam", {"lr": 0.01, "r": 0.5, "weight_decay": 0.1, "silent_sgd_phase": False}, *ADAMS),
    *_rows(
        "SophiaG", {}, {"lr": 0.01, "betas": (0.5, 0.9), "rho": 0.1, "bs": 8}, {"weight_decay": 0.3, "maximize": True}
    ),
    *_rows(
        "AdamAtan2",
        {},
        {"lr": 0.01, "betas": (0.5, 0.75), "weight_decay": 0.1, "b": 0.1},
        {"lr": 0.01, "a": 1.0, "b": 10.0, "weight_decay": 0.1, "maximize": True},
    ),
    *(case for name, rows in ROWS.items() for case in _rows(name, *rows)),
]
