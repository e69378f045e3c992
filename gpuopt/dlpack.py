"""Arrays of other libraries as arrays of NumPy or CuPy over the same memory, by DLPack.

Called by `arrays`, for libraries that are not in its table and where arrays of two libraries meet. Knows no library but those two,
and two words of others: `is_deleted` of JAX, `detach` of torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from gpuopt.errors import InputError
from gpuopt.formats.dtypes import numpy_dtype

CPU = 1  # DLDeviceType


def seen(array: Any) -> Any:
    """The same memory as an array of NumPy or CuPy. Raises InputError where its owner does not give it."""
    array = array.detach() if hasattr(array, "detach") else array
    try:
        on_host = array.__dlpack_device__()[0] == CPU
        if on_host and str(getattr(array, "dtype", "")).endswith("bfloat16"):
            return _bfloat16(array)
        found = np.from_dlpack(array) if on_host else _cupy().from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        if getattr(array, "is_deleted", bool)():
            raise _given_up(array) from None
        raise InputError(f"{type(array).__name__} gives no access to its memory through DLPack: {error}") from None
    if on_host and found.size and found.flags.owndata:  # NumPy allocates where it is given a null pointer
        raise _given_up(array)
    return found


def native(array: Any) -> Any:
    """The array itself if it is one of NumPy or CuPy, else as `seen`."""
    known = isinstance(array, np.ndarray) or type(array).__module__.partition(".")[0] == "cupy"
    return array if known else seen(array)


def through(method: str) -> Callable[..., Any]:
    """What the Kind of the NumPy or CuPy array does, for arrays that were made by another library."""

    def call(*args: Any) -> Any:
        from gpuopt.arrays import kind_of

        found = [native(a) if hasattr(a, "__dlpack__") else a for a in args]
        return getattr(kind_of(found[0], ""), method)(*found)

    return call


def _given_up(array: Any) -> InputError:
    return InputError(f"{type(array).__name__} {array.shape} has no memory: its owner has given it up")


def _bfloat16(array: Any) -> Any:
    """A read-only array, for it may be a copy: NumPy's `from_dlpack` does not know bfloat16."""
    if hasattr(array, "untyped_storage"):  # torch's: NumPy takes its bits
        return np.from_dlpack(array.view(sys.modules["torch"].int16)).view(numpy_dtype("bfloat16"))
    found = np.asarray(array).view()
    found.flags.writeable = False
    return found


def _cupy() -> Any:
    import cupy

    return cupy
