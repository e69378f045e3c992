"""The orthogonal factor of a matrix of NumPy by reflections, nearly all of it products of matrices, where LAPACK's own goes through
the whole matrix for every few columns.

Called by `linalg` for bases that are renewed. Knows no rule, optimizer or kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

PANEL, LEAST = 128, 256  # columns that LAPACK takes at a time, and of how many it takes none at once
STRIP = 512  # columns that meet the reflections of a panel at a time


def orthogonal(a: Any) -> Any:
    """Q of a = Q R, for one square matrix of float32 or float64, with LAPACK's signs; what is not finite makes NaN of its panel and
    those behind it.

    The reflections of a panel of columns are one matrix I - V T V', T upper triangular: Schreiber & Van Loan 1989; the inverse of T
    has one over their scales on the diagonal and V' V above it: Puglisi 1992.
    """
    if len(a) < LEAST:
        return np.linalg.qr(a)[0]
    a, panels = np.array(a, order="C"), []
    for begin in range(0, len(a), PANEL):
        v, t = reflections(a[begin:, begin : begin + PANEL])
        reflect(a[begin:, begin + PANEL :], v, t.T)
        panels.append((begin, v, t))
    q = np.eye(len(a), dtype=a.dtype)
    for begin, v, t in reversed(panels):
        reflect(q[begin:, begin:], v, t)
    return q


def reflections(panel: Any) -> tuple[Any, Any]:
    """V and T of the reflections that make a panel, of no more columns than rows, upper triangular."""
    raw, scales = np.linalg.qr(panel, mode="raw")
    v = np.tril(raw.T, -1)
    np.fill_diagonal(v, 1)
    between = np.triu(v.T @ v, 1) * scales[:, None]
    np.fill_diagonal(between, 1)
    return v, np.linalg.inv(between) * scales


def reflect(x: Any, v: Any, t: Any) -> None:
    """x - v t v' x, in place, some columns at a time, so that what lies between stays in the caches."""
    for begin in range(0, x.shape[1], STRIP):
        part = x[:, begin : begin + STRIP]
        part -= v @ (t @ (v.T @ part))
