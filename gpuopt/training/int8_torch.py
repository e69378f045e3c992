"""torch.nn.Linear with int8 weights, and a model in which every one is such. Called by `int8`; imports torch."""

from __future__ import annotations

import copy

import torch

from gpuopt.errors import InputError
from gpuopt.training.codes import GREATEST


class Int8Linear(torch.nn.Module):
    """x @ (codes * scale)^T + bias, in the dtype of x: what torch.nn.Linear computes, with weights of 8 bits.

    codes: int8 (outputs, inputs); scale: (outputs, 1), of the dtype of the weights; bias: as it was, or None. All are buffers: they
    are saved and moved with the model and are not trained.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        if not bool(weight.isfinite().all()):
            raise InputError("weights: NaN or infinity in a torch.nn.Linear: expected finite weights")
        scale = weight.abs().amax(1, keepdim=True) / GREATEST
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("scale", scale)
        self.register_buffer("codes", (weight / scale).round().clamp(-GREATEST, GREATEST).to(torch.int8))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def dequantize(self) -> torch.Tensor:
        """The weights that the codes stand for."""
        return self.codes * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As torch.nn.Linear."""
        return torch.nn.functional.linear(x, self.dequantize().to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        """As torch.nn.Linear."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def quantized_model(model: torch.nn.Module) -> torch.nn.Module:
    """A copy with an Int8Linear in the place of every torch.nn.Linear. Raises InputError where there is none."""
    made = copy.deepcopy(model)
    if isinstance(made, torch.nn.Linear):
        return Int8Linear(made)
    found = 0
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, Int8Linear(child))
                found += 1
    if not found:
        raise InputError("weights: a model without torch.nn.Linear: expected at least one")
    return made
