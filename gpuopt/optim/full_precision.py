"""`gpuopt.full_precision`: the float32 parameters behind those that show, where a format keeps more of them; and back.

Called by users, and by both optimizers for their arrays. Works on the host, by the format's own functions. Knows no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt import arrays
from gpuopt.errors import InputError, entry
from gpuopt.formats.dtypes import CODED, SAME, STORAGES, numpy_dtype
from gpuopt.formats.language import VISIBLE, Format
from gpuopt.launch.shards import Shard
from gpuopt.optim.coded import codes
from gpuopt.optim.keeping import planes
from gpuopt.rules.language import Rule


@entry
def full_precision(optimizer: Any) -> Any:
    """The parameters in the full precision that `param_format` keeps of them, as new float32 arrays: of an optimizer over arrays in
    the structure of its params (a list of such where there are several groups), of one of gpuopt.torch a list of tensors in the
    order of its groups. Those of float64 stay float64, and what no format keeps is what shows.

    Waits for the devices. Raises InputError for what is no optimizer of gpuopt.
    """
    made = getattr(optimizer, "_full_precision", None)
    if made is None:
        raise InputError(f"full_precision: found {type(optimizer).__name__}: expected an optimizer of gpuopt")
    return made()


def bytes_of(array: Any) -> int:
    """The memory of one array, of any library."""
    view = arrays.describe(array, "state")
    return view.numel * STORAGES[view.dtype].itemsize


def decoded(
    rule: Rule, states: Mapping[str, Any], p: Any, dtype: str, on_host: Callable[[Any], NDArray[Any]]
) -> NDArray[Any]:
    """A parameter in full precision, on the host. states: by the names of the rule; dtype: the parameter's; on_host: of an array of
    its library; of 16 bits as uint16.
    """
    kept, shown = getattr(rule, "kept", None), on_host(p)
    if shown.dtype != np.uint16:
        return np.array(shown)
    others = [state.name for state in planes(kept)] if kept else []
    if kept is None or not all(name in states for name in others):
        return np.array(shown.view(numpy_dtype(dtype)).astype(np.float32))
    rest = iter(on_host(states[name]) for name in others)
    given = []
    for plane in kept.planes:
        found = shown if plane.dtype == VISIBLE else next(rest)
        given.append((found.view(numpy_dtype(dtype)) if plane.dtype == SAME else found).reshape(-1))
    (made,) = kept.decoded(given, dtype == "float16")
    full: NDArray[Any] = made.reshape(shown.shape)
    return full


def keeps(rule: Rule, dtype: str) -> bool:
    """Whether a parameter of this dtype is kept in a format."""
    return getattr(rule, "kept", None) is not None and dtype in CODED


def encoded(
    rule: Rule, full: NDArray[Any], dtype: str, place: tuple[int, int, int], shard: Shard | None = None
) -> dict[str, NDArray[Any]]:
    """The arrays of a parameter that becomes these float32 values between two steps: "p", what shows, as float32, and planes by the
    names of the rule. place: seed, number of the tensor, step count, on which random bits depend;
    shard: which part of the tensor they are.
    """
    kept: Format = rule.kept  # type: ignore[attr-defined]
    made = {}
    names = iter(state.name for state in planes(kept))
    for plane, found in zip(kept.planes, codes(kept, full, place, dtype == "float16", shard), strict=True):
        if plane.dtype == VISIBLE:
            made["p"] = found.view(numpy_dtype(dtype)).astype(np.float32).reshape(full.shape)
        else:
            made[next(names)] = found.reshape(full.shape)
    return made
