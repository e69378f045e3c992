"""The largest rows or columns of matrices, alone orthogonalized: Ahn et al. 2025, Dion2.

Called by `launch.products` for what rules ask of whole matrices, on arrays of NumPy, CuPy or torch. Knows no rule, optimizer or
kernel.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np

from gpuopt.linalg import library, numbers, orthogonalize


def orthogonalize_largest(
    x: Any, coefficients: str, steps: int | None, fraction: float, rows: Any, columns: Any
) -> Any:
    """Orthogonalize this fraction of the rows of every matrix of a batch, of the columns where there are fewer of these, in place:
    those with the largest sums of absolute values, the first of equal ones. All others become 0.

    x: see `linalg.orthogonalize`; rows [matrices, rows, 1], columns [matrices, 1, columns]: become 1 for what was chosen, else 0.
    """
    tall = x.shape[1] > x.shape[2]
    lines = x.swapaxes(1, 2) if tall else x
    count = min(lines.shape[1], max(1, math.ceil(float(fraction) * lines.shape[1])))
    with np.errstate(all="ignore"):
        largest = largest_first(abs(lines).sum(2))[:, :count]
        which = numbers(x, len(x))[:, None], largest
        part = orthogonalize(contiguous(lines[which]), coefficients, steps)
        chosen, others = (columns, rows) if tall else (rows, columns)
        others[...] = 1
        chosen[...] = 0
        chosen.reshape(lines.shape[:2])[which] = 1
        lines[...] = 0
        lines[which] = part
    return x


def largest_first(sums: Any) -> Any:
    """The places of numbers [matrices, n] by falling size, those of equal ones by rising place; NaN counts as infinite."""
    sums = import_module(library(sums)).nan_to_num(sums, nan=math.inf, posinf=math.inf)
    if library(sums) == "torch":
        return (-sums).argsort(dim=1, stable=True)
    return by_counting(sums) if library(sums) == "cupy" else (-sums).argsort(axis=1, kind="stable")


def by_counting(sums: Any) -> Any:
    """The same by how many come before each: CuPy waits for its own sort, which the stream of a CUDA graph may not."""
    place = numbers(sums, sums.shape[1])
    found = (sums == sums).astype(place.dtype)
    for own, order in zip(sums, found, strict=True):
        equal = (own == own[:, None]) & (place < place[:, None])
        order[((own > own[:, None]) | equal).sum(1)] = place
    return found


def contiguous(x: Any) -> Any:
    """The array with its last axis contiguous, then the one before it."""
    return x.contiguous() if library(x) == "torch" else import_module(library(x)).ascontiguousarray(x)
