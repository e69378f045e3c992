"""One parameter tensor with its states, and the checks made before anything is written. Used by the optimizer only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt import arrays
from gpuopt.arrays import View
from gpuopt.errors import DtypeError, InputError
from gpuopt.formats.dtypes import PARAMETER_DTYPES, STORAGES
from gpuopt.launch.launcher import Clock

UNSEEN = object()


@dataclass
class Slot:
    """A parameter, where it came from, its states by role name, its clock, and what was last seen of its gradient."""

    label: str
    array: Any
    view: View
    group: int
    clock: Clock
    mask: Any = None
    states: dict[str, Any] = field(default_factory=dict)
    grad: Any = None  # the array that the kernel reads: the caller's, or a copy in the parameter's memory order
    grad_view: View | None = None
    seen: Any = UNSEEN  # the caller's array, if seeing it again means that nothing has changed
    copy: Any = None  # the copy, to be used again
    index: int = 0  # its place in the engine


def parameter_view(array: Any, label: str) -> View:
    """The View of a parameter. Raises DtypeError or InputError naming it, what was found and what was expected."""
    view = arrays.describe(array, label)
    if view.dtype not in PARAMETER_DTYPES:
        raise DtypeError(f"{label}: dtype {view.dtype}: expected one of {', '.join(PARAMETER_DTYPES)}")
    if not view.writable:
        raise InputError(f"{label}: the array is read-only: expected a writable one, since it is updated in place")
    if not arrays.is_dense(view.shape, view.strides):
        raise InputError(
            f"{label}: shape {view.shape} with strides {view.strides} (in elements) leaves gaps or overlaps itself: "
            "expected a dense array (any order of axes); make it contiguous with .copy()"
        )
    return view


def extent(view: View) -> tuple[int, int]:
    """First and last address plus one."""
    return view.address, view.address + view.numel * STORAGES[view.dtype].itemsize


def check_overlap(slots: Sequence[Slot]) -> None:
    """Raise InputError if two parameters share memory: two threads would write the same element."""
    spans = sorted((*extent(s.view), s.view.device, s.label) for s in slots if s.view.numel)
    for (_, end, device, first), (begin, _, other, second) in pairwise(spans):
        if begin < end and device == other:
            raise InputError(
                f"{second} overlaps {first} in memory: expected every parameter once, in memory of its own"
            )


def gradient_view(array: Any, slot: Slot, label: str) -> View:
    """The View of a gradient that fits its parameter. Raises an error naming the tensor otherwise."""
    view = arrays.describe(array, label)
    if view.dtype not in STORAGES or view.dtype == "bool":
        raise DtypeError(f"{label}: dtype {view.dtype}: expected a floating-point gradient like {slot.view.dtype}")
    if STORAGES[view.dtype].compute != STORAGES[slot.view.dtype].compute:
        raise DtypeError(f"{label}: dtype {view.dtype} does not go with its parameter's {slot.view.dtype}")
    if view.shape != slot.view.shape:
        raise InputError(f"{label}: shape {view.shape}: expected {slot.view.shape}, the shape of {slot.label}")
    if view.device != slot.view.device:
        raise InputError(f"{label}: on {view.device}: expected {slot.view.device}, the device of {slot.label}")
    return view


def overlapped(spans: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each [begin, end) the index of a sorted span [begin, end, ...] that it overlaps, or -1."""
    if not len(spans) or not len(bounds):
        return np.full(len(bounds), -1)
    before = np.searchsorted(spans[:, 0], bounds[:, 1], "left") - 1
    hit = (before >= 0) & (spans[np.maximum(before, 0), 1] > bounds[:, 0]) & (bounds[:, 1] > bounds[:, 0])
    return np.where(hit, before, -1)


class Written:
    """The memory that steps write, to refuse a gradient that lies in it."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.devices = {s.view.device for s in slots}
        self.spans = {}
        for device in self.devices:
            spans = sorted(
                (*extent(s.view), k) for k, s in enumerate(slots) if s.view.device == device and s.view.numel
            )
            self.spans[device] = np.array(spans, np.int64).reshape(-1, 3)
        self.slots = slots

    def check(self, labels: Sequence[str], views: Sequence[View]) -> None:
        """Raise InputError naming the first gradient that overlaps a parameter."""
        for device in {v.device for v in views} & self.devices:
            chosen = [k for k, v in enumerate(views) if v.device == device]
            bounds = np.array([extent(views[k]) for k in chosen], np.int64).reshape(-1, 2)
            self._refuse(device, bounds, [labels[k] for k in chosen])

    def check_addresses(self, slots: Sequence[Slot], addresses: NDArray[np.int64]) -> None:
        """The same for gradients of known dtypes that lie at other addresses, one for each slot."""
        for device in self.devices:
            chosen = [s for s in slots if s.view.device == device and s.grad_view is not None]
            sizes = [s.view.numel * STORAGES[s.grad_view.dtype].itemsize for s in chosen if s.grad_view]
            begins = addresses[[s.index for s in chosen]]
            bounds = np.stack([begins, begins + np.array(sizes, np.int64)], axis=1)
            self._refuse(device, bounds, [f"gradient of {s.label}" for s in chosen])

    def _refuse(self, device: str, bounds: NDArray[np.int64], labels: Sequence[str]) -> None:
        found = overlapped(self.spans[device], bounds)
        for k in np.flatnonzero(found >= 0)[:1]:
            other = self.slots[int(self.spans[device][found[k], 2])].label
            raise InputError(f"{labels[k]} shares memory with {other}: expected a gradient of its own")
