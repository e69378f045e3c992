"""The dtypes of the demos' arrays. Used by `gpuopt/demos`; knows no optimizer."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

import gpuopt
from gpuopt.messages import unknown

DTYPES = ("float64", "float32", "float16", "bfloat16")


def element_type(name: str) -> np.dtype[Any]:
    """The dtype of that name. Raises GpuoptError if it is not one parameters can have."""
    if name not in DTYPES:
        raise gpuopt.GpuoptError(unknown("dtype", name, DTYPES))
    return np.dtype(getattr(import_module("ml_dtypes"), name) if name == "bfloat16" else name)


def compute_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type to compute in for parameters of that dtype: float64 for float64, float32 for all others."""
    return np.dtype("float64" if dtype == np.float64 else "float32")
