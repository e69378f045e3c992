"""Element types an array may have: one table row each, read by every emitter and backend. Knows no rule and no backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Storage:
    """How one element lies in memory, and how a value becomes one.

    compute: the type arithmetic on it is done in; ctype: its type in kernels/types.cuh; dtype: what NumPy calls its bits; code:
    whether it is no number but the code of one, which a format decodes.
    """

    name: str
    itemsize: int
    compute: str
    ctype: str
    dtype: str
    code: bool = False
    epsilon: float = 0.0  # from 1 to the next number


STORAGES = {
    s.name: s
    for s in (
        Storage("float64", 8, "float64", "double", "float64", epsilon=2.0**-52),
        Storage("float32", 4, "float32", "float", "float32", epsilon=2.0**-23),
        Storage("float16", 2, "float32", "half16", "float16", epsilon=2.0**-10),
        Storage("bfloat16", 2, "float32", "bfloat16", "bfloat16", epsilon=2.0**-7),
        Storage("bool", 1, "float32", "byte8", "bool"),
        Storage("code-float16", 2, "float32", "code16", "uint16", code=True, epsilon=2.0**-10),
        Storage("code-bfloat16", 2, "float32", "code16", "uint16", code=True, epsilon=2.0**-7),
        Storage("int8", 1, "float32", "code8", "int8", code=True),
        Storage("uint8", 1, "float32", "code8", "uint8", code=True),
        Storage("int16", 2, "float32", "code16", "int16", code=True),
        Storage("uint16", 2, "float32", "code16", "uint16", code=True),
    )
}
CODED = {"float16": "code-float16", "bfloat16": "code-bfloat16"}  # storages of the codes of such numbers
SAME = "same"  # as the parameter's
PARAMETER_DTYPES = ("float64", "float32", "float16", "bfloat16")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a storage; bfloat16 comes from ml_dtypes."""
    name = STORAGES[name].dtype
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    return np.dtype(name)


def state_dtype(state_format: str, parameter: str) -> str:
    """The dtype of arrays that a state format means for parameters of this dtype (float64 stays float64)."""
    if state_format == SAME:
        return parameter
    return "float64" if STORAGES[parameter].compute == "float64" else state_format
