"""Gradients scaled by what Adam makes of them in a random space of few dimensions: Zhu et al. 2024, APOLLO.

Called by `launch.products` for what rules ask of whole matrices, on arrays of NumPy, CuPy or torch. Knows no rule, optimizer or
kernel.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpuopt.draws import Draw
from gpuopt.linalg import library_of


def scale_by_projection(
    g: Any, scale_type: str, projection: Any, m: Any, v: Any, length: Any, count: float, gap: float, beta1: float,
    beta2: float, eps: float, norm_growth: float, draw: Draw,
) -> Any:  # fmt: skip
    """Multiply every column of gradients [matrices, rows, columns], in place, by |u| / |r|, where r = projection g and u is what
    Adam makes of it; every row where there are no more columns than rows, r = g projection'; with scale_type = "tensor" every
    matrix.

    projection: [matrices, rank, shorter side], drawn anew at the first and after every `gap` steps, zeros until then; m, v:
    averages of r and its squares, of r's shape; length: [matrices, 1, 1], the norm of the last result: this one is no longer than
    norm_growth times that, unless it was 0. count: of the step, from 1 on.
    """
    tall = g.shape[1] >= g.shape[2]
    across = 2 if tall else 1
    with np.errstate(all="ignore"):
        if (count - 1) % gap == 0:
            projection[...] = draw.normals(int(count), projection) / math.sqrt(projection.shape[1])
        multiply = library_of(g).product
        r = multiply(g, projection.swapaxes(1, 2)) if tall else multiply(projection, g)
        m += (r - m) * (1 - beta1)
        v += (r * r - v) * (1 - beta2)
        along = (1, 2) if scale_type == "tensor" else across
        scales = norms(m / (v**0.5 + eps), along) / (norms(r, along) + 1e-8)
        scales = scales.reshape(len(g), -1)
        sizes = ((g * g).sum(across) * scales**2).sum(1) ** 0.5
        before = length.reshape(-1)
        limits = (sizes / (norm_growth * (before + 1e-8))).clip(1.0)
        limits[before == 0] = 1.0
        before[...] = sizes / limits
        scales = scales / limits[:, None]
        g *= scales[:, :, None] if tall else scales[:, None, :]
    return g


def norms(x: Any, along: Any) -> Any:
    """The Euclidean norms along these axes."""
    return (x * x).sum(along) ** 0.5
