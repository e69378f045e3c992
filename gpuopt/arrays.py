"""What gpuopt needs to know of an array, for every array library: one `Kind` each in a table, imported only when met.

Called by the optimizer (describe, allocate, copy). Knows no rule and no backend. An array is walked as flat memory, so any
dense layout works; two arrays are walked together only when their strides agree.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from math import prod
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt import dlpack, driver, pinned
from gpuopt.errors import DtypeError, InputError
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.native.ndarrays import first_addresses
from gpuopt.pairs import as_pairs, is_complex, paired, state_like
from gpuopt.strides import canonical, lowest, shifted, strides_of

LINE = 64  # bytes of a cache line


@dataclass(frozen=True, slots=True)
class View:
    """One array. strides are in elements; address is of the lowest element; device is "cpu" or "cuda:N". pairs: its elements are
    the real and imaginary parts of complex numbers, along a last axis of 2.

    pin: what keeps the address true as long as the View is kept. NumPy refuses to resize an array in place, even with
    `refcheck=False`, while there is a weak reference to it.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: str
    writable: bool = True
    pin: object = field(default=None, compare=False, repr=False)
    pairs: bool = False

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def span(self) -> int:
        """Elements from the lowest to the highest, gaps included."""
        return 1 + sum((n - 1) * abs(s) for n, s in zip(self.shape, self.strides, strict=True)) if self.numel else 0


@dataclass(frozen=True)
class Kind:
    """An array library. matches(array); describe(array) -> View; zeros(array, dtype, shape) -> array like it, or of that
    shape, filled with 0; relayout(array, like, out) -> copy of `array` in the memory order of `like`; clone(array) -> copy;
    assign(array, values); hosted(array, dtype, shape) -> as zeros, in host memory, pinned where the array is on a GPU.
    fixed: whether an array keeps its memory as long as it lives, so that seeing it again means that nothing moved.
    pooled: whether the library keeps memory that is allocated while a CUDA graph is captured as long as the graph.
    numbers(array): what it holds, or where it is true if it is boolean, as contiguous int64, if the library can say so; take(array,
    rows): a copy of these rows.
    looks(array), firsts(arrays): all that `describe` tells apart but the address, and the addresses of the first elements, where
    that is much less work than describing them.
    """

    name: str
    matches: Callable[[Any], bool]
    describe: Callable[[Any], View]
    zeros: Callable[..., Any]
    relayout: Callable[[Any, Any, Any], Any]
    clone: Callable[[Any], Any]
    assign: Callable[[Any, Any], None]
    hosted: Callable[..., Any]
    fixed: bool = False
    pooled: bool = False
    numbers: Callable[[Any], Any] | None = None
    take: Callable[[Any, Any], Any] = lambda array, rows: array[rows]
    looks: Callable[[Any], Any] | None = None
    firsts: Callable[[Sequence[Any]], NDArray[np.int64]] | None = None


def _numpy_view(array: Any) -> View:
    if isinstance(array, np.ma.MaskedArray):
        raise DtypeError(
            "a masked array: expected a plain one, since what lies under the mask would be used; use .filled(0)"
        )
    data = array.__array_interface__["data"]
    strides = strides_of(array)
    if not array.dtype.isnative:
        raise DtypeError(
            f"dtype {array.dtype.str}: expected this machine's byte order; use .astype({array.dtype.name!r})"
        )
    if data[0] % array.dtype.alignment:
        raise InputError(
            f"address {data[0]:#x}: expected a multiple of {array.dtype.itemsize}; make a copy with .copy()"
        )
    if any(s % array.dtype.itemsize for s in array.strides):
        raise InputError(f"strides {array.strides} are not multiples of the item size {array.dtype.itemsize}")
    address = lowest(data[0], array.shape, strides, array.dtype.itemsize)
    return paired(View(address, array.shape, strides, array.dtype.name, "cpu", not data[1], weakref.ref(array)))


def _in_order_of(xp: Any, like: Any, dtype: Any) -> Any:
    """An uninitialised array with the shape and the memory order (and the signs of strides) of `like`. On a GPU it lies as far
    behind a multiple of 16 elements as that, so that one head makes packed accesses to both of them aligned; on the host it begins
    a cache line, so that a row of one line is in no other.
    """
    size = np.dtype(dtype).itemsize
    room = LINE // size if xp is np else shifted(_cupy_view(like).address, like.dtype.itemsize)
    flat = xp.empty(like.size + room, dtype)
    return _ordered(flat[-flat.ctypes.data % LINE // size :][: like.size] if xp is np else flat[room:], like)


def _ordered(flat: Any, like: Any) -> Any:
    """Elements in the shape, the memory order and the signs of strides of `like`."""
    strides = canonical(like.shape, strides_of(like))
    order = sorted(range(like.ndim), key=lambda axis: -abs(like.strides[axis]) if like.shape[axis] > 1 else 0)
    result = flat.reshape([like.shape[axis] for axis in order]).transpose([int(k) for k in np.argsort(order)])
    if any(s < 0 for s in strides):
        flips = tuple(
            slice(None, None, -1 if s < 0 and n > 1 else 1) for s, n in zip(like.strides, like.shape, strict=True)
        )
        result = result[flips]
    return result


def _array_zeros(xp: Any) -> Callable[[Any, str], Any]:
    def zeros(like: Any, dtype: str, shape: tuple[int, ...] | None = None) -> Any:
        if shape is not None:
            return xp().zeros(shape, numpy_dtype(dtype))
        result = _in_order_of(xp(), *state_like(like, dtype))
        result[...] = 0
        return result

    return zeros


def _array_hosted(bytes_of: Callable[[int], Any]) -> Callable[..., Any]:
    """bytes_of(count): so many of host memory, as an array of NumPy."""

    def hosted(like: Any, dtype: str, shape: tuple[int, ...] | None = None) -> Any:
        like, made = state_like(like, dtype) if shape is None else (None, numpy_dtype(dtype))
        count = prod(like.shape if shape is None else shape)
        flat = bytes_of(max(1, count * made.itemsize))[: count * made.itemsize].view(made)
        flat[...] = 0
        return flat.reshape(shape) if like is None else _ordered(flat, like)

    return hosted


def _array_relayout(xp: Any) -> Callable[[Any, Any, Any], Any]:
    def relayout(array: Any, like: Any, out: Any) -> Any:
        like = as_pairs(like) if is_complex(like) and array.ndim > like.ndim else like
        out = _in_order_of(xp(), like, array.dtype) if out is None or out.dtype != array.dtype else out
        out[...] = array
        return out

    return relayout


def _numbers(xp: Any) -> Callable[[Any], Any]:
    def numbers(array: Any) -> Any:
        return xp().flatnonzero(array) if array.dtype == bool else xp().ascontiguousarray(array, np.int64)

    return numbers


def _cupy() -> Any:
    import cupy

    return cupy


def _cupy_view(array: Any) -> View:
    strides = strides_of(array)
    address = lowest(array.data.ptr, array.shape, strides, array.dtype.itemsize)
    return paired(View(address, array.shape, strides, array.dtype.name, f"cuda:{array.device.id}"))


def _there(function: Callable[..., Any], like: int = 0) -> Callable[..., Any]:
    """A function of CuPy arrays, called with the GPU of one of them as the current one, on which CuPy allocates and works."""

    def call(*args: Any) -> Any:
        with args[like].device:
            return function(*args)

    return call


# ------------------------------------------------------------------------------------- any CUDA array interface


def interface_dtype(array: Any) -> np.dtype[Any]:
    """Its dtype: bfloat16, of which the interface knows the size only, by what the array itself says."""
    said = getattr(array, "dtype", None)
    return said if isinstance(said, np.dtype) else np.dtype(array.__cuda_array_interface__["typestr"])


def _interface_view(array: Any) -> View:
    interface = array.__cuda_array_interface__
    dtype = interface_dtype(array)
    shape = tuple(interface["shape"])
    strides = interface.get("strides")
    if strides is None:
        strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    else:
        strides = tuple(s // dtype.itemsize for s in strides)
    address, readonly = interface["data"]
    at = lowest(address, shape, strides, dtype.itemsize)
    return paired(View(at, shape, strides, dtype.name, f"cuda:{driver.device_of(address)}", not readonly))


def _assign(array: Any, values: Any) -> None:
    """Values of the device too, which then is waited for."""
    if hasattr(values, "__cuda_array_interface__"):
        values = values.get() if _module(values) == "cupy" else _by_numba("to_host")(values)
    array[...] = values


def _cupy_assign(array: Any, values: Any) -> None:
    """Values of the host too: CuPy takes numbers from there, but no arrays."""
    array[...] = _cupy().asarray(values) if hasattr(values, "shape") else values


def _by_numba(method: str) -> Callable[..., Any]:
    """What gpuopt.numba_arrays does for arrays that are known by their interface alone."""

    def call(*args: Any) -> Any:
        from gpuopt import numba_arrays

        return getattr(numba_arrays, method)(*args)

    return call


def _module(array: Any) -> str:
    return type(array).__module__.partition(".")[0]


LOOKS = ("__class__", "dtype", "shape", "strides")
KINDS: tuple[Kind, ...] = (
    Kind(
        "numpy",
        lambda a: isinstance(a, np.ndarray),
        _numpy_view,
        _array_zeros(lambda: np),
        _array_relayout(lambda: np),
        lambda a: a.copy(),
        _assign,
        _array_zeros(lambda: np),
        fixed=True,
        numbers=_numbers(lambda: np),
        looks=attrgetter(*LOOKS),
        firsts=first_addresses,
    ),
    Kind(
        "cupy",
        lambda a: _module(a) == "cupy" and hasattr(a, "data"),
        _cupy_view,
        _there(_array_zeros(_cupy)),
        _there(_array_relayout(_cupy), like=1),
        _there(lambda a: a.copy()),
        _there(_cupy_assign),
        _there(_array_hosted(pinned.array)),
        fixed=True,
        numbers=_there(_numbers(_cupy)),
        looks=attrgetter(*LOOKS, "data.device_id"),
        firsts=lambda found: np.array([a.data.ptr for a in found], np.int64),
    ),
    Kind(
        "cuda-array-interface",
        lambda a: hasattr(a, "__cuda_array_interface__"),
        _interface_view,
        _by_numba("zeros"),
        _by_numba("relayout"),
        _by_numba("clone"),
        _by_numba("assign"),
        _by_numba("hosted"),
    ),
    Kind(
        "dlpack",
        lambda a: hasattr(a, "__dlpack__") and hasattr(a, "__dlpack_device__"),
        dlpack.through("describe"),
        dlpack.through("zeros"),
        dlpack.through("relayout"),
        dlpack.through("clone"),
        dlpack.through("assign"),
        dlpack.through("hosted"),
        numbers=dlpack.through("numbers"),
        take=dlpack.through("take"),
    ),
)
# What else is given for an array -> what makes one of it, by a method that only such things have.
REMEDIES = {"toarray": "a sparse matrix, convert it with .toarray()", "to_numpy": "use .to_numpy()"}
REMEDY = "use numpy.asarray(..., numpy.float32)"
_by_type: dict[type, Kind] = {}


def register(kind: Kind) -> None:
    """Add an array library in front of the others (the PyTorch adapter does)."""
    global KINDS
    KINDS = (kind, *(k for k in KINDS if k.name != kind.name))
    _by_type.clear()


def kind_of(array: Any, label: str, remedy: str = REMEDY) -> Kind:
    """The Kind of an array. Raises DtypeError for what is no dense array (lists, sparse matrices).

    remedy: what to say of one that no method of its own helps.
    """
    found = _by_type.get(type(array))
    if found is None and any(base.__module__ == "torch" for base in type(array).__mro__):
        import_module("gpuopt.torch.tensors")  # which registers them, whether anyone else imports it or not
        found = _by_type.get(type(array))
    if found is None:
        found = next((kind for kind in KINDS if kind.matches(array)), None)
        if found is None:
            remedy = next((text for name, text in REMEDIES.items() if hasattr(array, name)), remedy)
            raise DtypeError(f"{label}: expected a dense array, found {type(array).__name__}: {remedy}")
        _by_type[type(array)] = found
    return found


def is_array(value: Any) -> bool:
    """Whether a value has memory of its own: an array of any library and any number of axes, not a number."""
    known = ("shape", "__cuda_array_interface__", "__dlpack__")
    return not isinstance(value, np.generic) and any(hasattr(value, name) for name in known)


def number(value: Any) -> float:
    """A number, or what an array of none but one element holds, also where the array cannot say it itself. Raises TypeError for
    complex numbers and truth values, of which NumPy makes a number, as for anything else that is none.
    """
    if str(getattr(value, "dtype", "")).rpartition(".")[2].startswith(("complex", "bool")):
        raise TypeError(f"{value!r} is no number")
    if not hasattr(value, "__float__") and hasattr(value, "__cuda_array_interface__"):
        from gpuopt import numba_arrays

        return float(numba_arrays.to_host(value))
    return float(dlpack.seen(value) if not hasattr(value, "__float__") and hasattr(value, "__dlpack__") else value)


def on_host(array: Any) -> NDArray[Any]:
    """An array of NumPy: the same memory, or a copy of what lies on a GPU, which then is waited for."""
    array = array.detach().cpu() if hasattr(array, "cpu") else array  # torch's, which may have no CuPy beside it
    if not hasattr(array, "__cuda_array_interface__"):
        return np.asarray(dlpack.native(array))
    return np.asarray(array.get() if _module(array) == "cupy" else _by_numba("to_host")(array))


def describe(array: Any, label: str, remedy: str = REMEDY) -> View:
    """The View of an array, its errors naming `label`."""
    kind = kind_of(array, label, remedy)
    try:
        return kind.describe(array)
    except (InputError, DtypeError) as error:
        raise type(error)(f"{label}: {error}") from None


def relayout(array: Any, like: Any, out: Any, label: str) -> Any:
    """A copy of an array in the memory order of another one, which may be of another library; see Kind."""
    kind = kind_of(array, label)
    if kind is not kind_of(like, label) and kind.name != "cuda-array-interface":
        array, like = dlpack.native(array), dlpack.native(like)
        kind = kind_of(array, label)
    return kind.relayout(array, like, out)
