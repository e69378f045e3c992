"""Arrays that are known by `__cuda_array_interface__` alone, Numba's own among them: made, copied and filled with Numba.

Called by `arrays`, in the table of array libraries. Numba copies bytes between host and device; what they mean, and their memory
order, is NumPy's business on the host. So any dtype and any order works, and a copy waits for the device: for what happens once.
Gradients whose memory order differs from their parameter's are copied at every step, by CuPy where it is installed, which waits
for nothing and can be captured into a CUDA graph; else as the rest.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt import arrays
from gpuopt.arrays import View
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.pairs import REAL
from gpuopt.strides import is_dense, shifted


def _cuda() -> Any:
    """numba.cuda, untyped: its annotations are those of the simulator."""
    from numba import cuda

    return cuda


class _Bytes:
    """The memory of an array, gaps included, as Numba may look at it."""

    def __init__(self, address: int, count: int) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": (count,),
            "strides": None,
            "typestr": "|u1",
            "version": 3,
        }


def _dtype(array: Any) -> np.dtype[Any]:
    """Of its real numbers: a complex array is one of pairs here, in `describe` and in what is made for it."""
    dtype = arrays.interface_dtype(array)
    return np.dtype(REAL.get(dtype.name, dtype))


def _memory(view: View, itemsize: int) -> Any:
    return _cuda().as_cuda_array(_Bytes(view.address, view.span * itemsize), sync=False)


def _strided(flat: NDArray[Any], view: View) -> NDArray[Any]:
    """The array that lies in `flat`, lowest element first, as `view` lies in its memory."""
    strides = [s * flat.itemsize for s in view.strides]
    return np.lib.stride_tricks.as_strided(flat[_first(view.shape, view.strides) :], view.shape, strides)


def _first(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the lowest one to the first one: more than 0 where strides are negative."""
    return -sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if s < 0 and n > 1)


def to_host(array: Any) -> NDArray[Any]:
    """A copy on the host, in the same memory order."""
    view, dtype = arrays.describe(array, "array"), _dtype(array)
    if not view.numel:
        return np.empty(view.shape, dtype)
    with _cuda().gpus[int(view.device.partition(":")[2])]:
        _cuda().synchronize()
        return _strided(_memory(view, dtype.itemsize).copy_to_host().view(dtype), view)


def _write(array: Any, values: Any) -> None:
    """Values, or one value, into a dense array."""
    view, dtype = arrays.describe(array, "array"), _dtype(array)
    if not view.numel:
        return
    flat = np.empty(view.span, dtype)
    _strided(flat, view)[...] = values
    with _cuda().gpus[int(view.device.partition(":")[2])]:
        _cuda().synchronize()
        _memory(view, dtype.itemsize).copy_to_device(flat.view(np.uint8))
        _cuda().synchronize()  # the next step may be on a stream that does not wait for the default one


def _empty(like: Any, dtype: Any) -> Any:
    """An array of Numba with the shape and, unless that has gaps, the memory order of `like`."""
    from numba.cuda.cudadrv import devicearray

    made: Any = devicearray.DeviceNDArray
    cuda, view, dtype = _cuda(), arrays.describe(like, "array"), np.dtype(dtype)
    strides = view.strides
    if not is_dense(view.shape, strides):
        strides = tuple(s // dtype.itemsize for s in np.empty(view.shape, dtype).strides)
    shift = shifted(view.address, _dtype(like).itemsize)  # as `like`: one head makes accesses to both aligned
    first = _first(view.shape, strides) + shift
    with cuda.gpus[int(view.device.partition(":")[2])]:
        buffer = cuda.device_array(max(1, view.numel + shift) * dtype.itemsize, np.uint8)
    data = buffer.gpu_data.view(first * dtype.itemsize)
    return made(view.shape, tuple(s * dtype.itemsize for s in strides), dtype, gpu_data=data)


def _one(like: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    """An array of that shape on the same GPU."""
    cuda = _cuda()
    with cuda.gpus[int(arrays.describe(like, "array").device.partition(":")[2])]:
        return cuda.device_array(shape, dtype)


def zeros(like: Any, dtype: str, shape: tuple[int, ...] | None = None) -> Any:
    """As Kind.zeros."""
    made = _empty(like, numpy_dtype(dtype)) if shape is None else _one(like, numpy_dtype(dtype), shape)
    _write(made, 0)
    return made


def hosted(like: Any, dtype: str, shape: tuple[int, ...] | None = None) -> Any:
    """As Kind.hosted."""
    view, made = arrays.describe(like, "array"), numpy_dtype(dtype)
    count = math.prod(view.shape if shape is None else shape)
    with _cuda().gpus[int(view.device.partition(":")[2])]:
        flat = _cuda().pinned_array(max(1, count * made.itemsize), np.uint8)[: count * made.itemsize].view(made)
    flat[...] = 0
    return (
        flat.reshape(view.shape if shape is None else shape) if shape is not None or not count else _strided(flat, view)
    )


def relayout(array: Any, like: Any, out: Any) -> Any:
    """As Kind.relayout."""
    dtype = _dtype(array)
    out = _empty(like, dtype) if out is None or _dtype(out) != dtype else out
    if find_spec("cupy") is None:
        _write(out, to_host(array))
    elif dtype.itemsize * arrays.describe(array, "array").numel:
        with _of_cupy(out).device:
            _of_cupy(out)[...] = _of_cupy(array)
    return out


def _of_cupy(array: Any) -> Any:
    """The same memory as an array of CuPy."""
    import cupy

    view, dtype = arrays.describe(array, "array"), _dtype(array)
    index, first = int(view.device.partition(":")[2]), _first(view.shape, view.strides)
    memory = cupy.cuda.UnownedMemory(view.address, view.span * dtype.itemsize, array, index)
    at = cupy.cuda.MemoryPointer(memory, first * dtype.itemsize)
    return cupy.ndarray(view.shape, dtype, at, [s * dtype.itemsize for s in view.strides])


def clone(array: Any) -> Any:
    """As Kind.clone."""
    return relayout(array, array, None)


def assign(array: Any, values: Any) -> None:
    """As Kind.assign; values: an array of the host or the device, or a number."""
    _write(array, to_host(values) if hasattr(values, "__cuda_array_interface__") else values)
