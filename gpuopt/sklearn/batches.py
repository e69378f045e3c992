"""Minibatches: data in the order of a pass, as contiguous views, with noise on inputs and mixup where asked for.

Called by the training loop. Knows no network and no loss.

Order. Rows are shuffled anew before every pass, gathered into one array of which minibatches are views. Of dense data beyond
ONCE bytes on the host, rows are gathered in random order once, and every pass takes the same minibatches in another order: to
gather rows from all over the memory costs more than a pass itself. Sparse data are made dense minibatch by minibatch. All
minibatches of a pass have the same number of rows or one less. Data that fit into one minibatch are never shuffled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Batch = tuple[Any, Any, Any]  # inputs (n, features), targets (n, k), weights (n, 1) or None

ONCE = 32 << 20
BLOCK = 512  # rows that are brought into another dtype at a time, in memory that stays in a cache
WHOLE, LEAST = 64, 32
PARTS, MOST = (1024, 256), (512, 4096)  # of a network, of a linear model, whose steps are short


def automatic_size(rows: int, linear: bool) -> int:
    """Rows of a minibatch where nobody says how many: all up to 64, else the power of two near one of PARTS, from 32 to MOST."""
    if rows <= WHOLE:
        return rows
    return int(min(max(2 ** round(np.log2(rows / PARTS[linear])), LEAST), MOST[linear]))


@dataclass(frozen=True)
class Data:
    """x: (n, features), dense in any floating dtype, or a CSR matrix. y: (n, k) numbers, or (n,) numbers of classes, of which
    there are then `classes`. weights: (n,), of mean 1, or None.
    """

    x: Any
    y: Array
    weights: Array | None = None
    classes: int = 0

    def __len__(self) -> int:
        return int(self.x.shape[0])

    @property
    def sparse(self) -> bool:
        return not isinstance(self.x, np.ndarray)


@dataclass(frozen=True)
class Augmentation:
    """input_noise: of each feature's standard deviation. mixup: alpha of Beta(alpha, alpha), Zhang et al. 2018."""

    input_noise: float = 0.0
    mixup: float = 0.0


def take(array: Array, order: Array | None, dtype: Any) -> Array:
    """Rows of an array in this order (None: as they lie), in this dtype and C order; the array itself where nothing changes."""
    if order is None:
        return np.ascontiguousarray(array, dtype)
    out = np.empty((len(order), *array.shape[1:]), dtype)
    block = None if array.dtype == out.dtype else np.empty((BLOCK, *array.shape[1:]), array.dtype)
    for begin in range(0, len(order), BLOCK):
        rows, target = order[begin : begin + BLOCK], out[begin : begin + BLOCK]
        place = target if block is None else block[: len(rows)]
        np.take(array, rows, axis=0, out=place, mode="clip")
        if block is not None:
            target[...] = place
    return out


class Batches:
    """One pass of minibatches for each iteration over it, in the namespace `xp`; random numbers are those of `rng`, on the host."""

    def __init__(
        self,
        data: Data,
        rows: int,
        rng: np.random.Generator,
        *,
        shuffle: bool = True,
        augmentation: Augmentation = Augmentation(),
        dtype: Any = np.float32,
        xp: Any = np,
    ) -> None:
        n = len(data)
        self.data, self.rng, self.augmentation, self.dtype, self.xp = data, rng, augmentation, np.dtype(dtype), xp
        count = -(-n // rows)
        self.bounds = [n * k // count for k in range(count + 1)]
        self.shuffle = shuffle and count > 1
        self.once = self.shuffle and not data.sparse and xp is np and data.x.size * self.dtype.itemsize > ONCE
        self.x, self.y, self.weights = data.x, data.y, data.weights
        if self.once or not (self.shuffle or data.sparse):
            order = rng.permutation(n) if self.once else None
            self.x = take(data.x, order, self.dtype)
            self._rows(order)
        if xp is not np and not data.sparse:
            self.x = xp.asarray(take(self.x, None, self.dtype))
        self.deviations = self._deviations() if augmentation.input_noise else None

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def _rows(self, order: Array | None) -> None:
        """Targets and weights in this order."""
        integers = bool(self.data.classes)
        self.y = take(self.data.y, order, self.data.y.dtype if integers else self.dtype)
        if self.data.weights is not None:
            self.weights = take(self.data.weights, order, self.dtype)[:, None]

    def _deviations(self) -> Array:
        """The standard deviation of each feature, (features,)."""
        if self.data.sparse:
            from sklearn.utils.sparsefuncs import mean_variance_axis

            return np.asarray(np.sqrt(mean_variance_axis(self.data.x, axis=0)[1]), self.dtype)
        return np.asarray(self.data.x.std(axis=0), self.dtype)

    def __iter__(self) -> Iterator[Batch]:
        order = self.rng.permutation(len(self.data)) if self.shuffle and not self.once else None
        x = self.x
        if order is not None or self.data.sparse:
            self._rows(order)
            if self.xp is not np and order is not None and not self.data.sparse:
                x = self.x[self.xp.asarray(order)]
            elif not self.data.sparse:
                x = take(self.data.x, order, self.dtype)
        sequence = self.rng.permutation(len(self)) if self.once else range(len(self))
        for k in sequence:
            begin, end = self.bounds[k], self.bounds[k + 1]
            if self.data.sparse:
                rows = x[begin:end] if order is None else x[order[begin:end]]
                yield self._made(np.asarray(rows.toarray(), self.dtype, order="C"), begin, end)
            else:
                yield self._made(x[begin:end], begin, end)

    def _made(self, x: Any, begin: int, end: int) -> Batch:
        """A minibatch of these inputs and of the targets and weights from row `begin` to `end`."""
        xp, augmentation = self.xp, self.augmentation
        y = self.y[begin:end]
        if self.data.classes:
            y = self._one_hot(y)
        weights = None if self.weights is None else self.weights[begin:end]
        y, weights, x = xp.asarray(y), weights if weights is None else xp.asarray(weights), xp.asarray(x)
        if augmentation.mixup:
            x, y, weights = self._mixed(x, y, weights)
        if self.deviations is not None:
            noise = self.rng.standard_normal(x.shape, self.dtype)
            noise *= augmentation.input_noise * self.deviations
            x = x + xp.asarray(noise)
        return x, y, weights

    def _one_hot(self, labels: Array) -> Array:
        """Shares of classes: one column of a 1 or 0 for two of them."""
        if self.data.classes == 2:
            return labels[:, None].astype(self.dtype)
        shares = np.zeros((len(labels), self.data.classes), self.dtype)
        shares[np.arange(len(labels)), labels] = 1
        return shares

    def _mixed(self, x: Any, y: Any, weights: Any) -> Batch:
        """Each row with another one of the minibatch, in one share for all of them, as in the paper's program."""
        share = self.dtype.type(self.rng.beta(self.augmentation.mixup, self.augmentation.mixup))
        other = self.xp.asarray(self.rng.permutation(x.shape[0]))
        mixed = (share * rows + (1 - share) * rows[other] if rows is not None else None for rows in (x, y, weights))
        return tuple(mixed)  # type: ignore[return-value]
