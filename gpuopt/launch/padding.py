"""Matrices of near shapes that are multiplied together, zeros beside the smaller ones, where that is cheaper.

Called by `launch.products`, for what zeros do not change: rows and columns of zeros add nothing to a singular vector, and stay
zeros. Knows no rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gpuopt import linalg


class Group(NamedTuple):
    """So many matrices, `short` x `long` with their zeros, and which batches they come from."""

    short: int
    long: int
    matrices: int
    members: tuple[int, ...]


class Prices(NamedTuple):
    """What calls of a library cost, in seconds: `batch` those of one batch, `copy` those of one more shape in it; and a FLOP."""

    batch: float
    copy: float
    flop: float


# On the host every matrix is multiplied as it is: what would be gained are 35 us a shape, and what is lost is that a matrix has
# the same bits whichever others are stepped with it.
HOST: Prices | None = None
GPU = Prices(
    120e-6, 8e-6, 1 / 200e12
)  # assumed: some thirty launches of 4 us, and half of an H100's products in float16


def grouped(
    shapes: Sequence[tuple[int, int, int]], prices: Prices, flops: Callable[[int, int], float]
) -> list[tuple[int, ...]]:
    """Which batches are multiplied together, the cheapest pairs first. shapes: of each batch, matrices, rows and columns; flops: of
    a matrix whose sides these are, the short one first.
    """

    def cost(g: Group) -> float:
        copies = len(g.members) * prices.copy if len(g.members) > 1 else 0
        return prices.batch + copies + g.matrices * flops(g.short, g.long) * prices.flop

    def joined(a: Group, b: Group) -> Group:
        return Group(max(a.short, b.short), max(a.long, b.long), a.matrices + b.matrices, a.members + b.members)

    groups = [Group(min(r, c), max(r, c), n, (k,)) for k, (n, r, c) in enumerate(shapes)]
    while len(groups) > 1:
        saved, a, b = max(
            ((cost(a) + cost(b) - cost(joined(a, b)), a, b) for a, b in itertools.combinations(groups, 2)),
            key=lambda found: found[0],
        )
        if saved <= 0:
            break
        groups = [g for g in groups if g not in (a, b)] + [joined(a, b)]
    return sorted(g.members for g in groups)


def together(batches: Sequence[Any], words: Sequence[Any]) -> list[tuple[int, ...]]:
    """Which of these batches are orthogonalized together. batches: [matrices, rows, columns]; words: coefficients and steps."""
    first = batches[0]
    prices = GPU if linalg.on_gpu(first) else HOST
    if prices is None:
        return [(k,) for k in range(len(batches))]
    return grouped([b.shape for b in batches], prices, lambda *sides: linalg.flops(first, sides, *words))


class Padded:
    """Memory in which batches of several shapes are one, the short side first."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = [b if b.shape[1] <= b.shape[2] else b.swapaxes(1, 2) for b in batches]
        sides = [max(b.shape[axis] for b in self.batches) for axis in (1, 2)]
        self.matrices = linalg.zeros(batches[0], (sum(len(b) for b in batches), *sides))

    def run(self, multiply: Callable[[Any], Any]) -> None:
        """Multiply in that memory, and bring the results back."""
        self.matrices[...] = 0  # a NaN of the last step's has spread
        parts, first = [], 0
        for batch in self.batches:
            count, rows, columns = batch.shape
            parts.append(self.matrices[first : first + count, :rows, :columns])
            parts[-1][...] = batch
            first += count
        multiply(self.matrices)
        for batch, part in zip(self.batches, parts, strict=True):
            batch[...] = part
