"""torch tensors as an array library of gpuopt: one more `arrays.Kind`, and torch's streams. Registered when `gpuopt.torch` is
imported.
"""

from __future__ import annotations

from typing import Any

import torch

from gpuopt import arrays
from gpuopt.arrays import Kind, View
from gpuopt.errors import DtypeError, InputError
from gpuopt.launch.stream import override

NAMES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.bool: "bool",
    torch.complex64: "float32",  # as torch's own optimizers do: a complex number is two real ones
    torch.complex128: "float64",
}
TYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEVICES = ("cpu", "cuda")
COMPLEX = {"float64": torch.complex128, "float32": torch.complex64}


def describe(tensor: torch.Tensor) -> View:
    """The View of a tensor; a complex one as real numbers with a last axis of 2. Raises DtypeError for sparse ones, InputError
    for those that keep their values in other tensors.
    """
    if tensor.layout is not torch.strided:
        raise DtypeError(f"layout {tensor.layout}: expected a dense tensor; sparse gradients are not supported")
    device = tensor.device
    if device.type not in DEVICES:
        raise InputError(f"on device {device}: expected a tensor on cpu or cuda")
    if tensor.numel() and not tensor.data_ptr():
        raise InputError(
            f"a {type(tensor).__name__} has no memory of its own: expected a plain tensor, such as to_local() of a DTensor"
        )
    where = "cpu" if device.type == "cpu" else f"{device.type}:{device.index or 0}"
    shape, strides = tuple(tensor.shape), tensor.stride()
    if tensor.is_complex():
        shape, strides = (*shape, 2), (*(2 * s for s in strides), 1)
    name = NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    return View(tensor.data_ptr(), shape, strides, name, where)


def storage(like: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.dtype]:
    """What a state is shaped as, and its dtype: complex where the parameter is, but for dtypes that have no complex twin, in
    which real and imaginary part are a last axis of 2.
    """
    like = like.detach()
    if like.is_complex():
        return (like, COMPLEX[dtype]) if dtype in COMPLEX else (torch.view_as_real(like.resolve_conj()), TYPES[dtype])
    return like, TYPES[dtype]


def zeros(like: torch.Tensor, dtype: str) -> torch.Tensor:
    """A state for a parameter: its shape, memory order and device, complex where it is complex."""
    shaped, kept = storage(like, dtype)
    return torch.zeros_like(shaped, dtype=kept, memory_format=torch.preserve_format, requires_grad=False)


def relayout(tensor: torch.Tensor, like: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """A copy in the memory order of `like`, into `out` where it fits. Pairs of real numbers may stand for complex ones."""
    if like.is_complex() and tensor.ndim > like.ndim:
        like = torch.view_as_real(like.detach())
    if out is None or out.dtype != tensor.dtype or out.shape != tensor.shape or out.stride() != like.stride():
        out = torch.empty_like(like, dtype=tensor.dtype, memory_format=torch.preserve_format, requires_grad=False)
    return out.copy_(tensor)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def assign(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Copy values into a tensor."""
    tensor.copy_(values)


TENSORS = Kind("torch", _is_tensor, describe, zeros, relayout, torch.clone, assign)
arrays.register(TENSORS)


def resolved(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with a pending conjugation or negation carried out, so that its memory holds its values."""
    if tensor.layout is torch.strided and (tensor.is_conj() or tensor.is_neg()):
        return tensor.resolve_conj().resolve_neg()
    return tensor


class TorchStreams:
    """A context in which launches go to torch's current stream of each device."""

    def __enter__(self) -> None:
        self._token = override.set(_current_stream)

    def __exit__(self, *raised: object) -> None:
        override.reset(self._token)


def _current_stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)
