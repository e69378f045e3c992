"""The three losses of `gpuopt.sklearn`: half the squared error, logistic, softmax cross-entropy; each value with its gradient.

Called by `training.py` with the outputs of a network, and by the estimators for probabilities. Knows no network and no optimizer.
Outputs and targets are (n, k) arrays of one floating dtype, of NumPy or CuPy (`xp`); targets are numbers, for classes shares
from 0 to 1 that mixup may have mixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Loss:
    """rows(xp, z, target) -> losses of the rows, (n, 1); z then holds the gradient of their sum, in place.
    outputs(xp, z) -> what a prediction says: numbers, or probabilities of the columns.
    """

    rows: Callable[[Any, Any, Any], Any]
    outputs: Callable[[Any, Any], Any]


def _squared(xp: Any, z: Any, target: Any) -> Any:
    xp.subtract(z, target, out=z)
    return 0.5 * (z * z).sum(axis=1, keepdims=True)


def _logistic(xp: Any, z: Any, target: Any) -> Any:
    """log(1 + exp(z)) - target z, and sigmoid(z) - target, by exp(-|z|) alone, which cannot overflow; one column."""
    small = xp.exp(-xp.abs(z))
    losses = xp.maximum(z, 0) - target * z + xp.log(1 + small)
    xp.subtract(_positive(xp, z, small), target, out=z)
    return losses


def _positive(xp: Any, z: Any, small: Any) -> Any:
    return xp.where(z >= 0, 1, small) / (1 + small)


def _softmax(xp: Any, z: Any, target: Any) -> Any:
    z -= z.max(axis=1, keepdims=True)
    losses = -(z * target).sum(axis=1, keepdims=True)
    xp.exp(z, out=z)
    total = z.sum(axis=1, keepdims=True)
    losses += xp.log(total)
    z /= total
    z -= target
    return losses


def _shares(xp: Any, z: Any) -> Any:
    z = xp.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


SQUARED = Loss(_squared, lambda xp, z: z)
LOGISTIC = Loss(_logistic, lambda xp, z: _positive(xp, z, xp.exp(-xp.abs(z))))
SOFTMAX = Loss(_softmax, _shares)
