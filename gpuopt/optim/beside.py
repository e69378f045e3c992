"""The caller's arrays that lie beside a tensor and are only read: mask, bounds, anchor; checked, and found again when they move.

Called by both optimizers, by the engine and where launches are made. `rules.options.BESIDE` is the table of their names. Knows no
kernel and no array library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpuopt import arrays, dlpack
from gpuopt.arrays import View
from gpuopt.compiler.names import OPTION
from gpuopt.compiler.parts import Role
from gpuopt.errors import InputError
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.messages import abbreviated
from gpuopt.optim import decay
from gpuopt.optim.parameters import Parameter, fitted, is_number
from gpuopt.pairs import COMPLEX
from gpuopt.rules.between import EVALUATE
from gpuopt.rules.language import Rule
from gpuopt.rules.options import BESIDE

WORDS = {"lower": "lower bound", "upper": "upper bound", "mask": "mask", "anchor": "anchor"}
PAIR = "expected None or a pair (lower, upper), each a number, an array or None"


def label(name: str, p: Parameter) -> str:
    """What errors call it."""
    return f"{WORDS[name]} of {p.label}"


def checked(rule: Rule, p: Parameter, mask: Any, bounds: Any, anchor: Any = None) -> dict[str, Any]:
    """Those that a tensor has, by name, in its memory order. Raises InputError or DtypeError for what does not fit it."""
    return _bounds(rule, bounds, p) | _mask(mask, p) | _anchor(anchor, p)


def _anchor(anchor: Any, p: Parameter) -> dict[str, Any]:
    """A copy of the anchor in the parameter's dtype. Raises InputError unless it is numbers of p's shape."""
    if anchor is None:
        return {}
    where, kind = label("anchor", p), arrays.kind_of(p.array, p.label)
    view = arrays.describe(anchor, where, "use numpy.asarray(...)")
    if view.shape != p.view.shape or view.pairs != p.view.pairs or view.device not in (p.view.device, "cpu"):
        raise InputError(
            f"{where}: {view.dtype} {view.shape} on {view.device}: expected {p.view.dtype} {p.view.shape} on {p.view.device}"
        )
    made = kind.zeros(p.array, p.view.dtype)
    kind.assign(made, anchor)
    return {"anchor": made}


def _mask(mask: Any, p: Parameter) -> dict[str, Any]:
    """The mask itself, or a copy where it lies in another order. Raises InputError unless it is boolean and of p's shape."""
    if mask is None:
        return {}
    view = arrays.describe(mask, label("mask", p), "use numpy.asarray(..., bool)")
    if p.view.pairs and view.shape == p.view.shape[:-1]:  # of complex numbers: of both their parts
        mask = dlpack.native(mask)[..., None].repeat(2, -1)
        view = arrays.describe(mask, label("mask", p))
    if view.dtype != "bool" or view.shape != p.view.shape or view.device != p.view.device:
        raise InputError(
            f"{label('mask', p)}: found {view.dtype} {view.shape} on {view.device}: expected bool "
            f"{p.view.shape} on {p.view.device}"
        )
    return {"mask": fitted(mask, p, label("mask", p))}


def _bounds(rule: Rule, bounds: Any, p: Parameter) -> dict[str, Any]:
    """Copies of the bounds in the parameter's dtype, of every element. Raises InputError where they leave no number between."""
    bounds = pair(bounds, f"bounds of {p.label}")
    given = {name: value for name, value in zip(("lower", "upper"), bounds, strict=True) if value is not None}
    if not given:
        return {}
    if EVALUATE in rule.between:
        raise InputError(
            f"bounds: {rule.title} evaluates an average of other points than it trains, which the bounds of these would not hold "
            "for: expected an optimizer that trains what it evaluates"
        )
    if p.view.pairs:
        raise InputError(f"bounds of {p.label}: it is complex, and complex numbers have no order: expected None")
    values = {name: _values(value, p, label(name, p)) for name, value in given.items()}
    for name, array in values.items():
        wrong = ~(array < np.inf) if name == "lower" else ~(array > -np.inf)
        if wrong.any():
            least = "less than infinity" if name == "lower" else "more than -infinity"
            raise InputError(f"{label(name, p)}: {first(array, wrong)} in {p.view.dtype}: expected numbers {least}")
    if len(values) == 2 and (wrong := values["lower"] > values["upper"]).any():
        low, high = (first(array, wrong) for array in values.values())
        raise InputError(f"bounds of {p.label}: lower {low}, upper {high}: expected lower <= upper everywhere")
    made = {name: arrays.kind_of(p.array, p.label).zeros(p.array, p.view.dtype) for name in given}
    for name, array in made.items():
        arrays.kind_of(array, p.label).assign(array, values[name] if values[name].shape else float(values[name]))
    return made


def check_anchors(anchors: Iterable[Any], group: Mapping[str, Any], where: str) -> None:
    """Raise InputError where there are some and no decay draws to them, or to another point."""
    if any(anchor is not None for anchor in anchors):
        if group.get(decay.MODE) is None:
            raise InputError(f"{where}: anchor: what it draws is a decay: expected a {decay.MODE} with it")
        if group.get("anchor") is not None:
            raise InputError(f"{where}: anchor = {group['anchor']!r} and arrays of anchors: expected one of the two")


def pair(bounds: Any, where: str) -> tuple[Any, Any]:
    """Lower and upper bound of a tensor; None for none. Raises InputError for what is no pair."""
    if bounds is None:
        return None, None
    if hasattr(bounds, "lb") and hasattr(
        bounds, "ub"
    ):  # scipy.optimize.Bounds, which has an array of one where a number was given
        low, high = (float(np.ravel(each)[0]) if np.size(each) == 1 else each for each in (bounds.lb, bounds.ub))
        return low, high
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise InputError(f"{where}: found {abbreviated(bounds)}: {PAIR}")
    return bounds[0], bounds[1]


def _values(value: Any, p: Parameter, where: str) -> Any:
    """A bound as the parameter's dtype has it, on the host: an array, of no axis where it is one number."""
    dtype = numpy_dtype(p.view.dtype)
    if is_number(value) and not isinstance(value, (complex, np.complexfloating)):
        value = float(value)
    elif not arrays.is_array(value):
        raise InputError(f"{where}: found {abbreviated(value)}: expected a number, an array or None")
    else:
        view = arrays.describe(value, where)
        if view.pairs or not view.dtype.lstrip("bu").startswith(("float", "int")):
            found = COMPLEX[view.dtype] if view.pairs else view.dtype
            raise InputError(f"{where}: dtype {found}: expected real numbers, such as {p.view.dtype}")
        if view.shape != p.view.shape or view.device not in (p.view.device, "cpu"):
            raise InputError(
                f"{where}: shape {view.shape} on {view.device}: expected a number, or {p.view.shape} on {p.view.device}"
            )
        value = arrays.on_host(value)
    with np.errstate(over="ignore"):  # of what is too large for the dtype, infinity is left, and refused
        return np.array(value).astype(dtype)


def first(array: Any, wrong: Any) -> float:
    """The first of the elements that are wrong."""
    return float(np.broadcast_to(array, wrong.shape)[wrong][0])


# ---------------------------------------------------------------------------------------------------- as kernels see them


def flags(p: Parameter) -> dict[str, bool]:
    """The options' flags that say which there are."""
    return {OPTION + flag: name in p.beside for name, flag in BESIDE.items()}


def storages(present: Mapping[str, object], dtype: str) -> list[Role]:
    """The roles of those that these flags say are there, beside a parameter of a dtype."""
    there = [name for name, flag in BESIDE.items() if present[OPTION + flag]]
    return [Role(OPTION + name, "bool" if name == "mask" else dtype, False) for name in there]


def by_role(p: Parameter) -> dict[str, Any]:
    """The arrays by the names of their roles."""
    return {OPTION + name: array for name, array in p.beside.items()}


def refitted(p: Parameter) -> dict[str, Any]:
    """The arrays as they are walked with a parameter, which may have moved."""
    return {name: fitted(array, p, label(name, p)) for name, array in p.beside.items()}


def loose(parameters: Iterable[Parameter]) -> list[tuple[Parameter, str, View]]:
    """Those that can move while they stay the same object, and how they lie now."""
    found = [(p, name) for p in parameters for name, array in p.beside.items() if not arrays.kind_of(array, name).fixed]
    return seen_again([(p, name, None) for p, name in found])


def seen_again(known: Sequence[tuple[Parameter, str, Any]]) -> list[tuple[Parameter, str, View]]:
    """The same, as they lie now."""
    return [(p, name, arrays.describe(p.beside[name], label(name, p))) for p, name, _ in known]
