"""What `load_state_dict` of this package's classes is given, looked at before anything is written.

Called by `pruning` and `averaging`; knows neither. A saved dict has counts, and one list of arrays, in the order of the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpuopt.errors import InputError
from gpuopt.optim.hyper import check_whole

FORM = "expected what state_dict() returned"


def checked(saved: Any, counts: Sequence[str], name: str, shapes: Sequence[Any]) -> tuple[list[int], list[Any]]:
    """The counts, and the list called `name`. shapes: of its arrays, None for those that are None.

    Raises InputError for what is missing, is no count, or has another length or shape.
    """
    if not isinstance(saved, Mapping):
        raise InputError(f"state_dict: found {type(saved).__name__}: {FORM}")
    for key in (*counts, name):
        if key not in saved:
            raise InputError(f"state_dict: {key} is missing: {FORM}")
    numbers = [check_whole(key, saved[key], 0, "state_dict") for key in counts]
    arrays = saved[name]
    if not isinstance(arrays, Sequence) or len(arrays) != len(shapes):
        found = f"{len(arrays)} arrays" if isinstance(arrays, Sequence) else type(arrays).__name__
        raise InputError(f"state_dict: {name}: found {found}: expected a list of {len(shapes)}")
    for k, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        found_shape = None if array is None else tuple(np.shape(array))
        if found_shape != (None if shape is None else tuple(shape)):
            raise InputError(f"state_dict: {name}[{k}]: shape {found_shape}: expected {shape and tuple(shape)}")
    return numbers, list(arrays)
