"""Arrays of real numbers as int8 codes and one scale for each channel. Called by `int8` and `int8_torch`; knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuopt import arrays
from gpuopt.errors import DtypeError, InputError
from gpuopt.messages import abbreviated

GREATEST = 127  # -128 is left out, so that a code and its negative mean opposite numbers


@dataclass(frozen=True)
class QuantizedArray:
    """Weights as codes * scale. codes: int8, of the shape of the weights; scale: of their dtype, one number for each output, shaped
    so that it multiplies them.
    """

    codes: Any
    scale: Any

    def dequantize(self) -> Any:
        """The weights that it stands for, each at most half a scale from the one that was quantized."""
        return self.codes * self.scale

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return int(self.codes.nbytes + self.scale.nbytes)


def quantized(array: Any, axis: int, label: str) -> QuantizedArray:
    """One array of NumPy or CuPy."""
    if array.dtype.kind not in "fV" or arrays.describe(array, label).pairs:
        raise DtypeError(f"{label}: dtype {array.dtype}: expected real numbers")
    if isinstance(axis, bool) or not isinstance(axis, int) or not -array.ndim <= axis < array.ndim:
        raise InputError(f"axis = {abbreviated(axis)}: expected one of the {array.ndim} axes of {label}")
    others = tuple(k for k in range(array.ndim) if k != axis % array.ndim)
    greatest = abs(array).max(axis=others, keepdims=True)
    if not bool((greatest < np.inf).all()):
        raise InputError(f"{label}: NaN or infinity in it: expected finite weights")
    scale = greatest / array.dtype.type(GREATEST)
    scale[scale == 0] = 1  # of an output whose weights are all 0, or too small for a scale
    codes = (array / scale).round().clip(-GREATEST, GREATEST).astype("int8")
    return QuantizedArray(codes, scale)
