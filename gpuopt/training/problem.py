"""What is trained: arrays with a function of loss and gradients, or a torch model with a loss closure, behind one interface.

Called by the searches of this package (`rates`, `batches`, `comparison`). Knows no search. `trained(params, loss)` chooses; torch
is imported only where a model of torch was given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gpuopt
from gpuopt import arrays
from gpuopt.errors import InputError
from gpuopt.messages import abbreviated
from gpuopt.optim import trees


def is_model(params: Any) -> bool:
    """Whether this is a torch.nn.Module, without importing torch."""
    return any(
        f"{base.__module__}.{base.__qualname__}" == "torch.nn.modules.module.Module" for base in type(params).__mro__
    )


def trained(params: Any, loss: Any) -> ArrayProblem | ModelProblem:
    """The problem of these parameters (arrays, or a model of torch) and this loss. Raises InputError where they are none."""
    if not callable(loss):
        raise InputError(f"loss = {abbreviated(loss)}: expected a function of the parameters and a step or batch")
    return ModelProblem(params, loss) if is_model(params) else ArrayProblem(params, loss)


def leaves_of(params: Any, name: str = "params") -> tuple[Any, list[tuple[str, Any]]]:
    """The structure of a (nested) container and its (label, array) pairs. Raises InputError where there is none in it, DtypeError
    for what is no array.
    """
    if isinstance(params, (str, bytes)) or params is None:
        raise InputError(f"{name} = {abbreviated(params)}: expected arrays or a torch.nn.Module")
    structure = trees.settled(params, name)
    found = list(trees.flatten(structure, name))
    if not found:
        raise InputError(f"{name}: expected at least one array, found none")
    for label, array in found:
        arrays.describe(array, label)
    return structure, found


class ArrayProblem:
    """Arrays in any container that the optimizers take, and `loss(params, at) -> (loss, gradients)`."""

    make = staticmethod(gpuopt.create)

    def __init__(self, params: Any, loss: Callable[[Any, Any], Any]) -> None:
        self.structure, self.leaves = leaves_of(params)
        self.params, self.loss = params, loss

    def evaluate(self, at: Any) -> tuple[float, Any]:
        """(loss as a float, gradients that mirror the parameters) for a step's number or the rows of a batch."""
        found = self.loss(self.params, at)
        if not isinstance(found, tuple) or len(found) != 2:
            raise InputError(f"loss returned {abbreviated(found)}: expected (loss, gradients)")
        return number(found[0]), found[1]

    def squared_norm(self, gradients: Any) -> float:
        """Sum of squares of all gradients."""
        found = trees.mirror(self.structure, gradients, "gradients", "params")
        return math.fsum(number((abs(g) ** 2).sum()) for g in found if g is not None)

    def step(self, opt: Any, gradients: Any) -> None:
        """One step of an optimizer."""
        opt.step(gradients)

    def optimizer(self, optimizer: Any, lr: float, options: dict[str, Any]) -> Any:
        """An optimizer of these parameters, by name or by class. Raises InputError for one without a rate."""
        return made(self.make, optimizer, self.params, lr, options)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Puts the parameters back, bit for bit, whatever happens inside."""
        kept = [arrays.kind_of(array, label).clone(array) for label, array in self.leaves]
        try:
            yield
        finally:
            for (label, array), before in zip(self.leaves, kept, strict=True):
                arrays.kind_of(array, label).assign(array, before)


class ModelProblem:
    """A torch.nn.Module and `loss(model, at) -> scalar tensor`, whose backward() is called here."""

    def __init__(self, model: Any, loss: Callable[[Any, Any], Any]) -> None:
        self.model, self.loss = model, loss
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise InputError("params: a model without parameters that require grad: expected at least one")

    def evaluate(self, at: Any) -> tuple[float, None]:
        """(loss as a float, None): gradients are in `.grad`."""
        for p in self.parameters:
            p.grad = None
        value = self.loss(self.model, at)
        if not hasattr(value, "backward") or value.numel() != 1:
            found = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else abbreviated(value)
            raise InputError(f"loss returned {found}: expected a tensor of one element")
        value.backward()
        return float(value.detach()), None

    def squared_norm(self, gradients: None) -> float:
        """Sum of squares of all gradients."""
        return math.fsum(float(p.grad.abs().square().sum()) for p in self.parameters if p.grad is not None)

    def step(self, opt: Any, gradients: None) -> None:
        """One step of an optimizer."""
        opt.step()

    def optimizer(self, optimizer: Any, lr: float, options: dict[str, Any]) -> Any:
        """An optimizer of the model's parameters, by name or by class. Raises InputError for one without a rate."""
        from gpuopt.torch import create

        return made(create, optimizer, self.parameters, lr, options)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Puts parameters, buffers, gradients and training modes back, bit for bit, whatever happens inside."""
        import torch

        tensors = [*self.model.parameters(), *self.model.buffers()]
        kept = [t.detach().clone() for t in tensors]
        grads, modes = [p.grad for p in self.parameters], [(m, m.training) for m in self.model.modules()]
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, before in zip(tensors, kept, strict=True):
                    tensor.copy_(before)
            for p, grad in zip(self.parameters, grads, strict=True):
                p.grad = grad
            for module, mode in modes:
                module.training = mode


def number(value: Any) -> float:
    """A loss or a norm as a float. Raises InputError for what is none."""
    try:
        return arrays.number(value)
    except (TypeError, ValueError):
        raise InputError(f"loss returned {abbreviated(value)}: expected a number") from None


def made(create: Callable[..., Any], optimizer: Any, params: Any, lr: float, options: dict[str, Any]) -> Any:
    """The optimizer, which must have a rate that can be set between steps."""
    if isinstance(optimizer, str):
        opt = create(optimizer, params, lr=lr, **options)
    elif callable(optimizer):
        opt = optimizer(params, lr=lr, **options)
    else:
        raise InputError(f"optimizer = {abbreviated(optimizer)}: expected the name of an optimizer, or a class")
    if not all("lr" in group for group in getattr(opt, "param_groups", [{}])):
        raise InputError(f"optimizer = {abbreviated(optimizer)}: expected one with param_groups that have an lr")
    return opt


def set_rate(opt: Any, lr: float) -> None:
    """The rate of every group from the next step on."""
    for group in opt.param_groups:
        group["lr"] = lr
