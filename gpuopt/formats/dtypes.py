"""Element types an array may have: one table row each, read by every emitter and backend. Knows no rule and no backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Storage:
    """How one element lies in memory.

    compute: the type arithmetic on it is done in; ctype: its type in kernels/dtype.cuh; bits: how Numba loads it.
    """

    name: str
    itemsize: int
    compute: str
    ctype: str
    bits: str


STORAGES = {
    s.name: s
    for s in (
        Storage("float64", 8, "float64", "double", "float64"),
        Storage("float32", 4, "float32", "float", "float32"),
        Storage("float16", 2, "float32", "half16", "uint16"),
        Storage("bfloat16", 2, "float32", "bfloat16", "uint16"),
        Storage("bool", 1, "float32", "byte8", "uint8"),
    )
}
PARAMETER_DTYPES = ("float64", "float32", "float16", "bfloat16")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of that name; bfloat16 comes from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    return np.dtype(name)


def state_storage(state_format: str, compute: str) -> str:
    """The storage a state format means for parameters of this compute type (float64 stays float64)."""
    return "float64" if compute == "float64" else state_format
