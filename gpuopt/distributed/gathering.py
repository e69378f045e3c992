"""Parts of arrays that processes keep, as whole ones on the host of every process: states to be saved, averaged parameters.

Called by `parallel`. Knows no library that sends messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt import arrays
from gpuopt.distributed.buffers import dtype_of
from gpuopt.distributed.flats import empty, flat, put
from gpuopt.distributed.sharded import Scattered
from gpuopt.optim.parameters import Parameter
from gpuopt.pairs import COMPLEX, is_complex
from gpuopt.rules.language import Rule


def states(saved: Mapping[str, Any], rule: Rule, of: Scattered) -> dict[str, Any]:
    """What `state_dict()` of parts returned, of whole tensors."""
    known = {s.key: s for s in rule.states}
    found: dict[int, dict[str, Any]] = {}
    for index, entry in saved["state"].items():
        p = of.parameters[index]
        group = saved["param_groups"][p.group]
        found[index] = {"step": entry["step"]}
        for key, array in entry.items():
            if key != "step" and known[key].large:
                found[index][key] = of_rows(array, rule.shape_of(known[key], p.view.shape, group), p, of)
            elif key != "step":
                found[index][key] = of_owner(array, rule.shape_of(known[key], p.view.shape, group), p, of)
    return {**saved, "state": found}


def arrays_of(parts: Sequence[Any], of: Scattered) -> list[NDArray[Any]]:
    """Arrays of the parts of parameters as whole ones."""
    return [of_rows(part, p.view.shape, p, of) for part, p in zip(parts, of.parameters, strict=True)]


def of_rows(part: Any, shape: tuple[int, ...], p: Parameter, of: Scattered) -> NDArray[Any]:
    """The rows of all processes, one behind the other. shape: of real numbers."""
    own, bounds, row = flat(part, p.label), of.bounds[p.index], prod(shape[1:])
    whole = empty(p.array, _name(own), prod(shape))
    for rank, (begin, end) in enumerate(pairwise(bounds)):
        rows = whole[begin * row : end * row]
        if rank == of.comm.rank:
            put(rows, own)
        of.comm.broadcast(rows, rank)
    return _shaped(whole, shape, part)


def of_owner(part: Any, shape: tuple[int, ...], p: Parameter, of: Scattered) -> NDArray[Any]:
    """What a process that has rows of the tensor keeps of all of it."""
    owner = next((rank for rank, (begin, end) in enumerate(pairwise(of.bounds[p.index])) if end > begin), 0)
    own = flat(part, p.label)
    whole = empty(p.array, _name(own), prod(shape))
    if owner == of.comm.rank:
        put(whole, own)
    of.comm.broadcast(whole, owner)
    return _shaped(whole, shape, part)


def _name(array: Any) -> str:
    return str(array.dtype).removeprefix("torch.")


def _shaped(whole: Any, shape: tuple[int, ...], like: Any) -> NDArray[Any]:
    """On the host, in this shape, complex as another array is."""
    found = np.array(arrays.on_host(whole))
    return found.view(dtype_of(COMPLEX[_name(whole)])).reshape(shape[:-1]) if is_complex(like) else found.reshape(shape)
