"""Random numbers for parameters and gradients, the same for every provider and cheap at any size. Knows no library.

A tensor is a window into one pool of normal numbers, so that any part of it can be made again to be checked.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

POOL = (1 << 20) + 7  # odd, so that no tile or vector width divides it
PARAMETERS, GRADIENTS = 0, 1


@cache
def pool(kind: int) -> NDArray[np.float32]:
    """Normal numbers that are never zero: their magnitude stays above 1e-3."""
    values = np.random.default_rng(kind).standard_normal(POOL).astype(np.float32)
    return np.where(np.abs(values) < 1e-3, np.float32(1e-3), values)


def values(kind: int, tensor: int, start: int, stop: int) -> NDArray[np.float32]:
    """Elements start to stop of a flattened tensor."""
    source = pool(kind)
    result = np.empty(stop - start, np.float32)
    at, done = (tensor * 7919 + start) % POOL, 0
    while done < result.size:
        count = min(result.size - done, POOL - at)
        result[done : done + count] = source[at : at + count]
        at, done = 0, done + count
    return result
