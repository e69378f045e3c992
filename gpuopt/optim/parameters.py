"""One parameter tensor with its states, and the checks made before anything is written. Used by the optimizer only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt import arrays, driver
from gpuopt.arrays import View
from gpuopt.errors import DtypeError, InputError
from gpuopt.formats.dtypes import CODED, PARAMETER_DTYPES, STORAGES, numpy_dtype
from gpuopt.launch.launcher import StepCounter
from gpuopt.launch.shards import Shard
from gpuopt.messages import abbreviated
from gpuopt.pairs import COMPLEX, REAL
from gpuopt.strides import canonical, is_dense


@dataclass
class Parameter:
    """A tensor that is stepped: the array, its states by role name, its step counter, and what was last seen of its gradient."""

    label: str
    array: Any
    view: View
    group: int
    counter: StepCounter
    beside: dict[str, Any] = field(default_factory=dict)  # by the names in rules.options.BESIDE
    states: dict[str, Any] = field(default_factory=dict)
    grad: Any = None  # the array that the kernel reads: the caller's, or a copy in the parameter's memory order
    grad_view: View | None = None
    copy: Any = None  # the copy, to be used again
    given: Any = None  # what it was copied from
    pick: Any = None  # a `rows.Pick` where a step is of some rows only
    index: int = 0  # its place in the engine
    heads: int = 1  # equal parts of its rows, each of which is a matrix
    number: int = -1  # its place in the optimizer, on which its random numbers depend; -1: as in the engine
    shard: Shard | None = None  # which part of a tensor it is, where other processes have the others
    blocks: bool = True  # whether no block of codes is cut

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape of the tensor that it is, or is a part of."""
        return self.view.shape if self.shard is None else self.shard.shape

    @property
    def partial(self) -> bool:
        """Whether elements of the tensor are elsewhere."""
        return self.view.numel != prod(self.whole)


def parameter_view(array: Any, label: str) -> View:
    """The View of a parameter. Raises DtypeError or InputError naming it, what was found and what was expected."""
    view = arrays.describe(array, label, f"{arrays.REMEDY}, and keep the array, which is updated in place")
    if view.dtype not in PARAMETER_DTYPES:
        listed, near = ", ".join((*PARAMETER_DTYPES, *REAL)), "complex64" if view.dtype.startswith("c") else "float32"
        raise DtypeError(f"{label}: dtype {view.dtype}: expected one of {listed}; use {conversion(array, near)}")
    if not view.writable:
        raise InputError(
            f"{label}: the array is read-only: expected a writable one, since it is updated in place; numpy.array(...) "
            "makes a copy that is"
        )
    if not is_dense(view.shape, view.strides):
        raise InputError(
            f"{label}: shape {view.shape} with strides {view.strides} (in elements) leaves gaps or overlaps itself: "
            f"expected a dense array (any order of axes); make it contiguous with {copying(array)}"
        )
    return view


def conversion(array: Any, dtype: str) -> str:
    """How the library of an array makes one of another dtype."""
    return f".astype({dtype!r})" if hasattr(array, "astype") else f".to(torch.{dtype})"


def copying(array: Any) -> str:
    """How the library of an array makes a contiguous copy."""
    return ".copy()" if hasattr(array, "copy") else ".clone(memory_format=torch.contiguous_format)"


def same_order(view: View, like: View) -> bool:
    """Whether two arrays of one shape lie in memory in the same order."""
    strides = canonical(view.shape, view.strides)
    return strides == canonical(like.shape, like.strides) and is_dense(view.shape, view.strides)


def fitted(array: Any, p: Parameter, label: str) -> Any:
    """A state, mask or bound in its parameter's memory order: itself, or a copy. Raises InputError if shape or device differ."""
    view, like = arrays.describe(array, label), p.view
    if view.shape != like.shape or view.device != like.device:
        raise InputError(
            f"{label}: shape {view.shape} on {view.device}: expected {like.shape} on {like.device}, as {p.label}"
        )
    check_storage(view, label)
    return array if same_order(view, like) else arrays.relayout(array, p.array, None, label)


def check_storage(view: View, label: str) -> None:
    """Raise DtypeError for what no kernel reads."""
    if view.dtype not in STORAGES:
        raise DtypeError(
            f"{label}: dtype {view.dtype}: expected one of {', '.join(n for n in STORAGES if n not in CODED.values())}"
        )


def hosted(array: Any, p: Parameter, walked: bool, label: str) -> Any:
    """A state in host memory, pinned where its parameter is on a GPU: itself, or a copy. walked: whether it is of the parameter's
    shape, in whose memory order it then is. Raises InputError if it is not.
    """
    view, like = arrays.describe(array, label), p.view
    if walked and view.shape != like.shape:
        raise InputError(f"{label}: shape {view.shape}: expected {like.shape}, as {p.label}")
    check_storage(view, label)
    ready = same_order(view, like) if walked else is_dense(view.shape, view.strides)
    if ready and view.device == "cpu" and (like.device == "cpu" or driver.pinned(view.address)):
        return array
    made = arrays.kind_of(p.array, p.label).hosted(p.array, view.dtype, None if walked else view.shape)
    arrays.kind_of(made, label).assign(made, array)
    return made


def extent(view: View) -> tuple[int, int]:
    """First and last address plus one."""
    return view.address, view.address + view.span * STORAGES[view.dtype].itemsize


def check_overlap(parameters: Sequence[Parameter]) -> None:
    """Raise InputError if two parameters share memory: two threads would write the same element."""
    spans = sorted((p.view.device, *extent(p.view), p.label) for p in parameters if p.view.numel)
    for (device, _, end, first), (other, begin, _, second) in pairwise(spans):
        if begin < end and device == other:
            raise InputError(
                f"{second} overlaps {first} in memory: expected every parameter once, in memory of its own"
            )


def is_number(value: Any) -> bool:
    """Whether a value is one number of Python or NumPy, bfloat16 included; truth values and durations are none."""
    if isinstance(value, np.generic):
        return value.dtype.kind in "fiuc" or value.dtype.name == "bfloat16"
    return isinstance(value, (float, int, complex)) and not isinstance(value, bool)


def as_array(grad: Any, p: Parameter) -> Any:
    """A gradient as it is given; that of one element on the host may be a number of Python or NumPy."""
    if hasattr(grad, "__dlpack__") or not is_number(grad):
        return grad
    shape = p.view.shape[:-1] if p.view.pairs else p.view.shape
    paired = isinstance(grad, (np.complexfloating, complex))
    if prod(shape) != 1 or p.view.device != "cpu" or paired != p.view.pairs:
        return grad
    try:
        return np.full(shape, grad, COMPLEX[p.view.dtype] if paired else numpy_dtype(p.view.dtype))
    except OverflowError:  # a whole number beyond every float
        raise InputError(f"gradient of {p.label}: {abbreviated(grad)}: expected a number in (-inf, inf)") from None


def gradient_view(array: Any, p: Parameter, label: str, rows: tuple[int, ...] | None = None) -> View:
    """The View of a gradient that fits its parameter, or has the shape of the rows that are stepped. Raises an error naming the
    tensor otherwise.
    """
    view = arrays.describe(array, label)
    if view.dtype not in PARAMETER_DTYPES:
        remedy = conversion(array, p.view.dtype)
        raise DtypeError(
            f"{label}: dtype {view.dtype}: expected a floating-point gradient like {p.view.dtype}; use {remedy}"
        )
    if STORAGES[view.dtype].compute != STORAGES[p.view.dtype].compute:
        remedy = conversion(array, COMPLEX[p.view.dtype] if view.pairs else p.view.dtype)
        raise DtypeError(f"{label}: dtype {view.dtype} does not go with its parameter's {p.view.dtype}; use {remedy}")
    if view.pairs != p.view.pairs:
        kinds = ("real", "complex")
        raise DtypeError(
            f"{label}: {kinds[view.pairs]}: expected a {kinds[p.view.pairs]} gradient, as its parameter is"
        )
    if view.shape not in (p.view.shape, rows):
        instead = "" if rows is None else f", or {rows}, that of the rows"
        raise InputError(f"{label}: shape {view.shape}: expected {p.view.shape}, the shape of {p.label}{instead}")
    if view.device != p.view.device:
        raise InputError(f"{label}: on {view.device}: expected {p.view.device}, the device of {p.label}")
    return view


class Spans:
    """The memory of the parameters on one device, which do not overlap each other."""

    def __init__(self, parameters: Sequence[Parameter], device: str) -> None:
        found = sorted(
            (*extent(p.view), k) for k, p in enumerate(parameters) if p.view.device == device and p.view.numel
        )
        begins, ends, self.parameters = np.array(found, np.int64).reshape(-1, 3).T.copy()
        self.begins, self.ends = begins, np.append(ends, -1)  # at index -1: nothing begins before

    def overlapped(self, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[int, int] | None:
        """The first of these [begin, end) that overlaps a parameter, and the parameter of that one; None if there is none."""
        before = self.begins.searchsorted(ends) - 1
        hit = (self.ends[before] > begins) & (ends > begins)
        if not hit.any():
            return None
        first = int(hit.argmax())
        return first, int(self.parameters[before[first]])


class ParameterMemory:
    """The memory that steps write, to refuse a gradient that lies in it."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.devices = {p.view.device for p in parameters}
        self.spans = {device: Spans(parameters, device) for device in self.devices}
        self.parameters = parameters
        self.moving: list[tuple[str, NDArray[np.int64], NDArray[np.int64]]] | None = None  # until gradients change

    def check(self, labels: Sequence[str], views: Sequence[View]) -> None:
        """Raise InputError naming the first gradient that overlaps a parameter."""
        for device in {v.device for v in views} & self.devices:
            chosen = [k for k, v in enumerate(views) if v.device == device]
            bounds = np.array([extent(views[k]) for k in chosen], np.int64).reshape(-1, 2)
            found = self.spans[device].overlapped(bounds[:, 0], bounds[:, 1])
            if found is not None:
                self._refuse(labels[chosen[found[0]]], found[1])

    def check_addresses(self, parameters: Sequence[Parameter], addresses: NDArray[np.int64]) -> None:
        """The same for gradients of known dtypes that lie at other addresses, one for each parameter."""
        if self.moving is None:
            self.moving = [(device, *bytes_of_gradients(parameters, device)) for device in self.devices]
        for device, indices, sizes in self.moving:
            begins = addresses[indices]
            found = self.spans[device].overlapped(begins, begins + sizes)
            if found is not None:
                self._refuse(f"gradient of {parameters[indices[found[0]]].label}", found[1])

    def _refuse(self, label: str, index: int) -> None:
        raise InputError(f"{label} shares memory with {self.parameters[index].label}: expected a gradient of its own")


def bytes_of_gradients(parameters: Sequence[Parameter], device: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which parameters have a gradient on a device, and the bytes of each."""
    chosen = [(k, p.view.numel, p.grad_view) for k, p in enumerate(parameters) if p.view.device == device]
    found = [(k, numel * STORAGES[view.dtype].itemsize) for k, numel, view in chosen if view is not None]
    indices, sizes = np.array(found, np.int64).reshape(-1, 2).T
    return indices, sizes


Change = tuple[Parameter, Any, View | None]  # a parameter, its new gradient, and that gradient's View


def reshapes(change: Change) -> bool:
    """Whether a new gradient needs new launches, not only a new address."""
    p, _, view = change
    old = p.grad_view
    return (view is None) != (old is None) or (view is not None and old is not None and view.dtype != old.dtype)
