"""torch tensors as an array library of gpuopt: one more `arrays.Kind`, and torch's streams. Registered when `gpuopt.torch` is
imported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

from gpuopt import arrays
from gpuopt.arrays import Kind, View
from gpuopt.backends import numba as cpu
from gpuopt.errors import DeviceError, InputError, LayoutError
from gpuopt.launch.stream import override
from gpuopt.pairs import paired

NAMES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.bool: "bool",
    torch.complex64: "float32",  # as torch's own optimizers do: a complex number is two real ones
    torch.complex128: "float64",
}
CODES = {name: getattr(torch, name) for name in ("int8", "uint8", "int16", "uint16")}  # of planes of a format
NAMES |= {dtype: name for name, dtype in CODES.items()}
TYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TYPES |= CODES
DEVICES = ("cpu", "cuda")
P = ParamSpec("P")
R = TypeVar("R")
COMPLEX = {"float64": torch.complex128, "float32": torch.complex64}


def describe(tensor: torch.Tensor) -> View:
    """The View of a tensor; a complex one as real numbers with a last axis of 2. Raises LayoutError for sparse ones, DeviceError
    for those on other devices, InputError for those that keep their values in other tensors.
    """
    if tensor.layout is not torch.strided:
        raise LayoutError(f"layout {tensor.layout}: expected a dense tensor, or a gradient in COO layout")
    device = tensor.device
    if device.type not in DEVICES:
        raise DeviceError(f"on device {device}: expected a tensor on cpu or cuda")
    if tensor.numel() and not tensor.data_ptr():
        raise InputError(
            f"a {type(tensor).__name__} has no memory of its own: expected a plain tensor, such as to_local() of a DTensor"
        )
    if tensor.is_conj() or tensor.is_neg():
        raise InputError(
            f"a {type(tensor).__name__} whose memory holds other values, as conj() leaves it: use .resolve_conj().resolve_neg()"
        )
    where = "cpu" if device.type == "cpu" else f"{device.type}:{device.index or 0}"
    dtype = str(tensor.dtype).removeprefix("torch.")
    return paired(View(tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), dtype, where))


def storage(like: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.dtype]:
    """What a state is shaped as, and its dtype: complex where the parameter is, but for dtypes that have no complex twin, in
    which real and imaginary part are a last axis of 2.
    """
    like = like.detach()
    if like.is_complex():
        return (like, COMPLEX[dtype]) if dtype in COMPLEX else (torch.view_as_real(like.resolve_conj()), TYPES[dtype])
    return like, TYPES[dtype]


def survives_fork(work: Callable[P, R]) -> Callable[P, R]:
    """Work of torch that is done on one thread in a forked process, whose others are gone and would be waited for, for ever."""

    @wraps(work)
    def on_one_thread(*args: P.args, **kwargs: P.kwargs) -> R:
        threads = torch.get_num_threads()
        if threads == 1 or not cpu.threads_lost():
            return work(*args, **kwargs)
        torch.set_num_threads(1)
        try:
            return work(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return on_one_thread


@survives_fork
def zeros(like: torch.Tensor, dtype: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """A state for a parameter: its shape, memory order and device, complex where it is complex; or of another shape."""
    if shape is not None:
        return torch.zeros(shape, dtype=TYPES[dtype], device=like.device)
    shaped, kept = storage(like, dtype)
    return torch.zeros_like(shaped, dtype=kept, memory_format=torch.preserve_format, requires_grad=False)


@survives_fork
def hosted(like: torch.Tensor, dtype: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """The same in host memory, pinned where the parameter is on a GPU."""
    if shape is not None:
        return torch.zeros(shape, dtype=TYPES[dtype], pin_memory=like.is_cuda)
    shaped, kept = storage(like, dtype)
    order = torch.preserve_format
    return torch.zeros_like(
        shaped, dtype=kept, device="cpu", memory_format=order, requires_grad=False, pin_memory=like.is_cuda
    )


@survives_fork
def relayout(tensor: torch.Tensor, like: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """A copy in the memory order of `like`, into `out` where it fits. Pairs of real numbers may stand for complex ones."""
    if like.is_complex() and tensor.ndim > like.ndim:
        like = torch.view_as_real(like.detach())
    if out is None or out.dtype != tensor.dtype or out.shape != tensor.shape or out.stride() != like.stride():
        out = torch.empty_like(like, dtype=tensor.dtype, memory_format=torch.preserve_format, requires_grad=False)
    return out.copy_(tensor)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


@survives_fork
def assign(tensor: torch.Tensor, values: Any) -> None:
    """Copy values, an array or tensor of them or one number, into a tensor."""
    if str(getattr(values, "dtype", "")) == "bfloat16":  # NumPy's, which torch does not know
        values = values.astype(np.float32)
    elif isinstance(values, np.ndarray) and not values.flags.writeable:  # which torch warns of
        values = values.copy()
    given: Any = values if isinstance(values, (float, complex)) else torch.as_tensor(values)
    tensor[...] = given


def numbers(tensor: torch.Tensor) -> torch.Tensor:
    """Numbers of rows, or where a boolean tensor is true, as contiguous int64."""
    found = tensor.nonzero().reshape(-1) if tensor.dtype is torch.bool else tensor
    return found.to(torch.int64).contiguous()


TENSORS = Kind(
    "torch",
    _is_tensor,
    describe,
    zeros,
    relayout,
    survives_fork(torch.clone),
    assign,
    hosted,
    pooled=True,
    numbers=numbers,
)
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


def _current_stream(index: int) -> int:
    """The number says it: what torch takes for the current device, which it sets late, may not be where the step is."""
    return int(torch.cuda.current_stream(index).cuda_stream)
