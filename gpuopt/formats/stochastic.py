"""Stochastic rounding: a value becomes one of its two neighbours in a narrower type, each as likely as it is near.

A mean that moves by less than half of a rounding step would stop for ever under rounding to nearest; rounded stochastically it
moves by what is right on average (Gupta et al. 2015, "Deep learning with limited numerical precision"). The reference, in
NumPy; the twins are `Encode` in kernels/types.cuh and `compiler.numba_ir.encode`. Knows no rule and no backend.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.formats.dtypes import STORAGES, numpy_dtype

NAN = 0x7FC0


def bfloat16(values: NDArray[np.float32], bits: NDArray[np.uint32]) -> NDArray[Any]:
    """Round float32 to bfloat16: 16 random bits are added below the last one that is kept. NaN stays NaN, infinity infinite."""
    raw = values.view(np.uint32)
    rounded = (raw + (bits & np.uint32(0xFFFF))) >> np.uint32(16)
    return np.where(np.isnan(values), NAN, rounded).astype(np.uint16).view(numpy_dtype("bfloat16"))


ENCODE = {"stochastic-bfloat16": bfloat16}


def encode(storage: str, values: NDArray[Any], bits: NDArray[np.uint32] | None) -> NDArray[Any]:
    """Values of the compute type as elements of a storage; bits: random ones where it takes them."""
    if bits is None:
        return values.astype(numpy_dtype(storage))
    assert STORAGES[storage].random
    return ENCODE[storage](values, bits)
