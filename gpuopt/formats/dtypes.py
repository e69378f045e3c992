"""Element types an array may have: one table row each, read by every emitter and backend. Knows no rule and no backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Storage:
    """How one element lies in memory, and how a value becomes one.

    compute: the type arithmetic on it is done in; ctype: its type in kernels/types.cuh; dtype: what NumPy calls its bits;
    random: the random bits that rounding a value takes (see formats/philox.py), 0 where it rounds to nearest.
    """

    name: str
    itemsize: int
    compute: str
    ctype: str
    dtype: str
    random: int = 0
    epsilon: float = 0.0  # from 1 to the next number


STORAGES = {
    s.name: s
    for s in (
        Storage("float64", 8, "float64", "double", "float64", epsilon=2.0**-52),
        Storage("float32", 4, "float32", "float", "float32", epsilon=2.0**-23),
        Storage("float16", 2, "float32", "half16", "float16", epsilon=2.0**-10),
        Storage("bfloat16", 2, "float32", "bfloat16", "bfloat16", epsilon=2.0**-7),
        Storage("stochastic-bfloat16", 2, "float32", "stochastic_bfloat16", "bfloat16", random=16),
        Storage("bool", 1, "float32", "byte8", "bool"),
    )
}
PARAMETER_DTYPES = ("float64", "float32", "float16", "bfloat16")
# What a state accumulates in 16 bits would be lost by rounding to nearest: 0.001 of it is less than half of a step.
OF_STATES = {"bfloat16": "stochastic-bfloat16"}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a storage; bfloat16 comes from ml_dtypes."""
    name = STORAGES[name].dtype
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    return np.dtype(name)


def state_dtype(state_format: str, compute: str) -> str:
    """The dtype of arrays that a state format means for parameters of this compute type (float64 stays float64)."""
    return "float64" if compute == "float64" else state_format


def state_storage(dtype: str) -> str:
    """The storage of a state in arrays of this dtype."""
    return OF_STATES.get(dtype, dtype)
