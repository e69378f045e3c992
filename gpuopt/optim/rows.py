"""Steps of some rows of a tensor only: which they are, checked, and what gradients go with them.

A row is what belongs to one index of the first axis. Called by the engine. Knows array libraries through `arrays.Kind` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt import arrays
from gpuopt.arrays import View
from gpuopt.errors import DtypeError, InputError, LayoutError
from gpuopt.launch.launcher import Launch
from gpuopt.optim.parameters import Parameter, gradient_view
from gpuopt.optim.settings import Settings
from gpuopt.strides import in_c_order

REMEDY = "use numpy.asarray(..., numpy.int64), or bool"
INDICES = ("int32", "int64")


@dataclass(frozen=True)
class Pick:
    """rows: their numbers, int64, contiguous, on the tensor's device; numbers: the same where the host may look at them; compact:
    whether the gradient has these rows only.
    """

    rows: Any
    address: int
    count: int
    numbers: NDArray[np.int64] | None = None
    compact: bool = False

    def shape(self, p: Parameter) -> tuple[int, ...]:
        """Of a gradient that has these rows only."""
        return (self.count, *p.view.shape[1:])


def picked(
    given: Sequence[Any], leaves: Sequence[Any], parameters: Sequence[Parameter], settings: Settings
) -> list[Pick | None] | None:
    """The rows of each parameter that has a gradient, None for all of them; or None where that holds for every parameter. Raises
    InputError, DtypeError or LayoutError naming the tensor.
    """
    every = zip(given, leaves, parameters, strict=True)
    found = [None if rows is None or grad is None else _pick(rows, p, f"rows of {p.label}") for rows, grad, p in every]
    if not any(found):
        return None
    if settings.capturable:
        raise InputError(
            "capturable: a captured step would be of the same rows for ever: expected all rows, found some"
        )
    if settings.state_device == "host":
        raise InputError("state_device = 'host': states travel as whole tensors: expected all rows, found some")
    return found


def tell(launches: Iterable[Launch]) -> None:
    """Tell launches which rows are stepped."""
    for launch in launches:
        if launch.plan.program.picked:
            picks: list[Pick] = [p.pick for p in launch.private["parameters"]]
            found = np.array([(k.count, k.address, k.compact) for k in picks], np.int64).reshape(-1, 3)
            launch.plan.pick(*found.T)
            for arrays_of, pick in zip(launch.arrays, picks, strict=True):
                arrays_of["@rows"] = pick.rows


def _pick(rows: Any, p: Parameter, label: str) -> Pick:
    axes = p.view.shape[:-1] if p.view.pairs else p.view.shape
    if not axes:
        raise InputError(f"{label}: it has no axes, and so no rows: expected None")
    view, kind = arrays.describe(rows, label, REMEDY), arrays.kind_of(rows, label)
    if view.dtype not in (*INDICES, "bool"):
        raise DtypeError(f"{label}: dtype {view.dtype}: expected int64 or int32 numbers of rows, or bool; {REMEDY}")
    shape = axes[:1] if view.dtype == "bool" else view.shape[:1]
    if view.shape != shape or len(shape) != 1:
        wanted = f"({axes[0]},), one for each row of {p.label}" if view.dtype == "bool" else "one axis"
        raise InputError(f"{label}: {view.dtype} of shape {view.shape}: expected {wanted}")
    if view.device != p.view.device:
        raise InputError(f"{label}: on {view.device}: expected {p.view.device}, the device of {p.label}")
    if kind.numbers is None and (view.dtype != "int64" or (view.numel > 1 and view.strides != (1,))):
        raise LayoutError(
            f"{label}: {view.dtype} with strides {view.strides} of a {type(rows).__name__}: expected contiguous int64, which "
            "is read where it lies"
        )
    made = rows if kind.numbers is None else kind.numbers(rows)
    found = arrays.describe(made, label)
    numbers = arrays.on_host(made) if view.device == "cpu" else None
    if numbers is not None and view.dtype != "bool":
        _check(numbers, axes[0], p, label)
    return Pick(made, found.address, found.numel, numbers)


def _check(numbers: NDArray[np.int64], height: int, p: Parameter, label: str) -> None:
    """Raise InputError for a row that is not there or given twice."""
    wrong = numbers[(numbers < 0) | (numbers >= height)]
    if wrong.size:
        raise InputError(f"{label}: {int(wrong[0])}: expected numbers from 0 to {height - 1}, the rows of {p.label}")
    if (numbers[1:] > numbers[:-1]).all():
        return
    ordered = np.sort(numbers)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if twice.size:
        raise InputError(f"{label}: {int(twice[0])} twice: expected each row once, with the sum of its gradients")


def gradient(grad: Any, p: Parameter, pick: Pick | None, settings: Settings) -> tuple[Any, View | None, Pick | None]:
    """The gradient as kernels read it, and how its rows are found. Raises InputError or DtypeError where it does not fit, where two
    readings are possible, or a GPU would have to be waited for.
    """
    label = f"gradient of {p.label}"
    if grad is None or pick is None:
        return grad, None if grad is None else gradient_view(grad, p, label), None
    view = gradient_view(grad, p, label, pick.shape(p))
    if view.shape != p.view.shape:
        if not in_c_order(view.shape, view.strides):
            kind = arrays.kind_of(grad, label)
            copy = kind.zeros(p.array, view.dtype, view.shape)
            kind.assign(copy, grad)
            grad, view = copy, arrays.describe(copy, label)
        return grad, view, Pick(pick.rows, pick.address, pick.count, pick.numbers, True)
    if pick.count == p.view.shape[0] and pick.numbers is not None and (pick.numbers[1:] < pick.numbers[:-1]).any():
        raise InputError(
            f"{label}: shape {view.shape} may be that of {p.label} or of its {pick.count} rows in the order given: expected rows "
            "in ascending order, where both are the same"
        )
    if settings.max_grad_norm is None and not settings.skip_nonfinite:  # nothing reads it as a whole beforehand
        return grad, view, pick
    if pick.numbers is None:
        raise InputError(
            f"{label}: shape {view.shape}: with max_grad_norm or skip_nonfinite, expected on a GPU the gradient of the given rows "
            f"only, {pick.shape(p)}"
        )
    taken = arrays.kind_of(grad, label).take(grad, pick.rows)
    return taken, arrays.describe(taken, label), Pick(pick.rows, pick.address, pick.count, pick.numbers, True)
