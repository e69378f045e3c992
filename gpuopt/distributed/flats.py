"""Flat memory: arrays of any library as one axis of real numbers, in C order, and copies between such.

Called by `averaging` and `sharded`. Knows no library that sends messages.
"""

from __future__ import annotations

import sys
from math import prod
from typing import Any

import numpy as np

from gpuopt import arrays, dlpack
from gpuopt.pairs import COMPLEX, is_complex
from gpuopt.strides import in_c_order


def known(array: Any) -> Any:
    """The array itself if it can be cut and reshaped, else the same memory as one of NumPy, CuPy or Numba."""
    if hasattr(array, "reshape"):
        return array
    if hasattr(array, "__dlpack__"):
        return dlpack.native(array)
    from numba import cuda

    made: Any = cuda
    return made.as_cuda_array(array, sync=False)


def empty(like: Any, dtype: str, count: int) -> Any:
    """Flat memory for so many numbers where another array lies, zeros."""
    return known(arrays.kind_of(like, "array").zeros(like, dtype, (count,)))


def flat(array: Any, label: str) -> Any:
    """The numbers of an array in C order, real and imaginary parts one behind the other: its memory, or a copy where that lies in
    another order.
    """
    array, view = known(array), arrays.describe(array, label)
    if not in_c_order(view.shape, view.strides) or any(s < 0 for s in view.strides):
        array = arrays.kind_of(array, label).relayout(array, _c_order(array), None)
    made = array.reshape(-1)
    return made.view(_named(made, view.dtype)) if is_complex(made) else made


def _c_order(array: Any) -> Any:
    """An array of its shape and dtype in C order."""
    if hasattr(array, "permute"):  # torch's
        return array.new_empty(array.shape)
    return np.empty(array.shape, array.dtype) if isinstance(array, np.ndarray) else array.copy("C")


def is_flat(array: Any, label: str) -> bool:
    """Whether `flat` is the array's own memory."""
    view = arrays.describe(array, label)
    return in_c_order(view.shape, view.strides) and all(s >= 0 for s in view.strides)


def _named(like: Any, dtype: str) -> Any:
    """A dtype of an array's library by its name."""
    return getattr(sys.modules["torch"], dtype) if hasattr(like, "permute") else np.dtype(dtype)


def shaped(part: Any, shape: tuple[int, ...], pairs: bool) -> Any:
    """Flat numbers as an array of this shape; pairs: the last axis is that of the parts of complex numbers, and goes."""
    if not pairs:
        return part.reshape(shape)
    if hasattr(part, "permute"):
        return sys.modules["torch"].view_as_complex(part.reshape(shape))
    return part.view(np.dtype(COMPLEX[str(part.dtype)])).reshape(shape[:-1])


def rows(array: Any, begin: int, end: int) -> Any:
    """These rows of an array, in its memory; one number is one row."""
    array = known(array)
    return (array if len(array.shape) else array.reshape(1))[begin:end]


def put(out: Any, given: Any) -> None:
    """Copy flat numbers into others, of the same library or dtype or not."""
    if not prod(out.shape):
        return
    if str(out.dtype) == str(given.dtype):
        arrays.relayout(given, out, out, "array")
    else:
        arrays.kind_of(out, "array").assign(out, given)


def clear(out: Any) -> None:
    """Make all of these numbers 0."""
    if prod(out.shape):
        arrays.kind_of(out, "array").assign(out, 0.0)
