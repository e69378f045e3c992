"""The memory of an array as libraries that send messages take it: an address, a number of elements, a dtype.

Called by `communicators`, which checks arrays, and by the adapters. Knows no library that sends messages.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt import arrays, driver
from gpuopt.errors import CommunicationError, DtypeError, InputError
from gpuopt.formats.dtypes import STORAGES, numpy_dtype
from gpuopt.launch.stream import override
from gpuopt.streams import address_of
from gpuopt.strides import in_c_order


@dataclass(frozen=True)
class Buffer:
    """count elements one behind the other. dtype: what NumPy calls it; device: "cpu" or "cuda:N"; array: whose they are."""

    array: Any
    address: int
    count: int
    dtype: str
    device: str

    @property
    def nbytes(self) -> int:
        return self.count * dtype_of(self.dtype).itemsize

    @property
    def index(self) -> int:
        """The number of the GPU."""
        return int(self.device.partition(":")[2] or 0)

    def host(self) -> NDArray[Any]:
        """The same memory as a flat array of NumPy; it must be on the host."""
        memory: Any = (ctypes.c_char * self.nbytes).from_address(self.address)
        return np.frombuffer(memory, dtype_of(self.dtype))

    def interface(self, dtype: str = "uint8") -> Interface:
        """The memory on a GPU, flat, as numbers of its dtype or as bytes, for what reads `__cuda_array_interface__`."""
        return Interface(self.address, self.nbytes, dtype_of(dtype), self.array)


class Interface:
    """Memory on a GPU. of: what keeps it alive."""

    def __init__(self, address: int, nbytes: int, dtype: np.dtype[Any], of: Any) -> None:
        self.of = of
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": (nbytes // dtype.itemsize,),
            "strides": None,
            "typestr": dtype.str,
            "version": 3,
        }


def dtype_of(name: str) -> np.dtype[Any]:
    """The NumPy dtype of that name, bfloat16 too."""
    return numpy_dtype(name) if name in STORAGES else np.dtype(name)


def buffer(array: Any, label: str, written: bool = False) -> Buffer:
    """The memory of an array. Raises InputError or DtypeError for what is no array, lies in another order than C's, or is
    read-only where it is to be written.
    """
    view = arrays.describe(array, label)
    if not in_c_order(view.shape, view.strides) or any(s < 0 for s in view.strides):
        raise InputError(
            f"{label}: shape {view.shape} with strides {view.strides} (in elements): expected a contiguous array, in C order"
        )
    if written and not view.writable:
        raise InputError(f"{label}: the array is read-only: expected a writable one, since it is updated in place")
    try:
        dtype_of(view.dtype)
    except TypeError:
        raise DtypeError(f"{label}: dtype {view.dtype}: expected numbers") from None
    return Buffer(array, view.address, view.numel, view.dtype, view.device)


def stream_address(array: Buffer, stream: Any) -> int:
    """The stream that work on an array on a GPU goes to, as an address: the one given, else that of `gpuopt.stream`, else the
    current one of torch for its tensors, of CuPy for others, or 0, the default one.
    """
    if stream is not None:
        return address_of(stream)
    current, torch, cupy = override.get(), sys.modules.get("torch"), sys.modules.get("cupy")
    if current is not None:
        return current(array.index)
    if torch is not None and isinstance(array.array, torch.Tensor):
        return int(torch.cuda.current_stream(array.index).cuda_stream)
    return 0 if cupy is None else int(cupy.cuda.get_current_stream().ptr)


def check_on_gpu(array: Buffer) -> None:
    """Raise InputError for an array on the host, which NCCL does not send."""
    if array.device == "cpu":
        raise InputError("an array on the host: expected one on a GPU, since NCCL sends no others; MPI and gloo do")


def wait_for(array: Buffer, stream: Any) -> None:
    """Wait for the stream of an array on a GPU. Raises CommunicationError where the driver says no."""
    loaded = driver.library()
    code = -1 if loaded is None else loaded.cuStreamSynchronize(ctypes.c_void_p(stream_address(array, stream)))
    if code:
        raise CommunicationError(f"the stream of an array on {array.device} cannot be waited for: CUDA error {code}")
