"""Minibatches: data in the order of a pass, contiguous, with noise on inputs and mixup where asked for.

Called by the training loop. Knows no network and no loss.

Order. Rows are shuffled anew before every pass; of dense data beyond NEAR bytes on the host, runs of RUN rows that lie together,
since to gather single rows from all over the memory costs more than the pass itself. Minibatches are gathered (sparse data made
dense) one by one into the same memory, so that one of them lasts until the next. All minibatches of a pass have the same number
of rows or one less. Data that fit into one minibatch are never shuffled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Batch = tuple[Any, Any, Any]  # inputs (n, features), targets (n, k), weights (n, 1) or None

NEAR = 32 << 20  # what a cache may hold
RUN = 8
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


def shuffled(count: int, run: int, rng: np.random.Generator) -> Array:
    """The numbers below `count` in random order, runs of so many of them together: (count,)."""
    if run == 1:
        return rng.permutation(count)
    order = rng.permutation(-(-count // run))[:, None] * run + np.arange(run)
    return order[order < count]


class Gathered:
    """Rows of an array in a dtype and C order: all in memory that the next call writes again, or the array's own where it fits."""

    def __init__(self, array: Array, dtype: Any, rows: int) -> None:
        self.array = array
        self.out = np.empty((rows, *array.shape[1:]), dtype)
        self.read = self.out if array.dtype == self.out.dtype else np.empty(self.out.shape, array.dtype)

    def take(self, rows: Array) -> Array:
        """These rows, in their order."""
        read, out = self.read[: len(rows)], self.out[: len(rows)]
        np.take(self.array, rows, axis=0, out=read, mode="clip")
        if read is not out:
            out[...] = read
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
        self.x = data.x
        on_host = xp is np and not data.sparse
        self.run = RUN if on_host and data.x.size * self.dtype.itemsize > NEAR else 1
        self.gathered = Gathered(data.x, self.dtype, rows) if on_host and self.shuffle else None
        if not data.sparse and self.gathered is None:
            self.x = xp.asarray(np.ascontiguousarray(data.x, self.dtype))
        self._rows(None)
        self.deviations = self._deviations() if augmentation.input_noise else None

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def _rows(self, order: Array | None) -> None:
        """Targets and weights in this order (None: as they lie)."""
        y, weights = self.data.y, self.data.weights
        y = y if order is None else y[order]
        self.y = np.ascontiguousarray(y, y.dtype if self.data.classes else self.dtype)
        if weights is not None:
            weights = np.asarray(weights if order is None else weights[order], self.dtype)[:, None]
        self.weights = weights

    def _deviations(self) -> Array:
        """The standard deviation of each feature, (features,)."""
        if self.data.sparse:
            from sklearn.utils.sparsefuncs import mean_variance_axis

            return np.asarray(np.sqrt(mean_variance_axis(self.data.x, axis=0)[1]), self.dtype)
        return np.asarray(self.data.x.std(axis=0), self.dtype)

    def __iter__(self) -> Iterator[Batch]:
        order = shuffled(len(self.data), self.run, self.rng) if self.shuffle else None
        x = self.x
        if order is not None:
            self._rows(order)
            if self.xp is not np and not self.data.sparse:
                x = self.x[self.xp.asarray(order)]
        for begin, end in pairwise(self.bounds):
            rows: Any
            if self.gathered is not None and order is not None:
                rows = self.gathered.take(order[begin:end])
            elif self.data.sparse:
                found = x[begin:end] if order is None else x[order[begin:end]]
                rows = np.asarray(found.toarray(), self.dtype, order="C")
            else:
                rows = x[begin:end]
            yield self._made(rows, begin, end)

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
