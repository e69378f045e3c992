"""Minibatches: data in the order of a pass, contiguous, with noise on inputs and mixup where asked for.

Called by the training loop. Knows no network and no loss.

Order. Rows are shuffled anew before every pass; of dense data beyond NEAR bytes on the host, runs of rows that lie together, so
many that each minibatch has RUNS of them or more: to gather single rows from all over the memory costs more than the pass itself.
Minibatches are gathered (sparse data made dense) one by one into the same memory, so that one of them lasts until the next. All
minibatches of a pass have the same number of rows or one less. Data that fit into one minibatch are never shuffled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gpuopt.sklearn import gathering

Array = np.ndarray[Any, Any]
Batch = tuple[Any, Any, Any]  # inputs (n, features), targets (n, k), weights (n, 1) or None

NEAR = 32 << 20  # what a cache may hold
RUNS = 128  # data may be sorted: then a minibatch is worth as many rows
WHOLE, LEAST = 64, 32
PARTS, MOST = (1024, 128), (512, 8192)  # of a network, of a linear model, whose steps are short


def automatic_size(rows: int, linear: bool) -> int:
    """Rows of a minibatch where nobody says how many: all up to 64, else the power of two near one of PARTS, from 32 to MOST."""
    if rows <= WHOLE:
        return rows
    return int(min(max(2 ** round(np.log2(rows / PARTS[linear])), LEAST), MOST[linear]))


@dataclass(frozen=True)
class Data:
    """x: (n, features), dense of float32 or float64, or a CSR matrix. y: (n, k) numbers, or (n,) numbers of classes, of which
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
    runs, lacking = rng.permutation(-(-count // run)), -count % run
    order = runs[:, None] * run + np.arange(run)
    if not lacking:
        return order.reshape(-1)
    end = run * (1 + int(runs.argmax()))  # of the last run, in which some are lacking
    return np.delete(order, np.s_[end - lacking : end])


class Gathered:
    """Rows of an array in a dtype and C order, in memory that the next call writes again."""

    def __init__(self, array: Array, dtype: Any, rows: int) -> None:
        self.array = np.ascontiguousarray(array)
        self.out = np.empty((rows, *array.shape[1:]), dtype)

    def take(self, rows: Array) -> Array:
        """These rows, in their order."""
        out = self.out[: len(rows)]
        if self.array.dtype == out.dtype:
            return np.take(self.array, rows, axis=0, out=out, mode="clip")
        gathering.convert(self.array, rows, out)
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
        self.run = max(rows // RUNS, 1) if on_host and data.x.size * self.dtype.itemsize > NEAR else 1
        self.gathered = Gathered(data.x, self.dtype, rows) if on_host and self.shuffle else None
        if not data.sparse and self.gathered is None:
            self.x = xp.asarray(np.ascontiguousarray(data.x, self.dtype))
        self.y = data.y if data.classes > 2 else np.asarray(data.y, self.dtype).reshape(n, -1)
        self.weights = None if data.weights is None else np.asarray(data.weights, self.dtype)[:, None]
        self.deviations = self._deviations() if augmentation.input_noise else None

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def _deviations(self) -> Array:
        """The standard deviation of each feature, (features,)."""
        if self.data.sparse:
            from sklearn.utils.sparsefuncs import mean_variance_axis

            return np.asarray(np.sqrt(mean_variance_axis(self.data.x, axis=0)[1]), self.dtype)
        return np.asarray(self.data.x.std(axis=0), self.dtype)

    def __iter__(self) -> Iterator[Batch]:
        order = shuffled(len(self.data), self.run, self.rng) if self.shuffle else None
        for part in self._parts(order):
            yield self._made(*part)

    def _parts(self, order: Array | None) -> Iterator[Batch]:
        """Inputs, targets (or numbers of classes) and weights of each minibatch; order None: as they lie."""
        x = self.x
        if order is not None and self.xp is not np and not self.data.sparse:
            x = x[self.xp.asarray(order)]
        for begin, end in pairwise(self.bounds):
            rows: Any = slice(begin, end) if order is None else order[begin:end]
            if self.gathered is not None:
                inputs = self.gathered.take(rows)
            elif self.data.sparse:
                inputs = np.asarray(x[rows].toarray(), self.dtype, order="C")
            else:
                inputs = x[begin:end]
            yield inputs, self.y[rows], None if self.weights is None else self.weights[rows]

    def _made(self, x: Any, y: Any, weights: Any) -> Batch:
        """A minibatch of these inputs, targets and weights."""
        xp, augmentation = self.xp, self.augmentation
        if self.data.classes > 2:
            y = self._one_hot(y)
        x, y, weights = (part if part is None else xp.asarray(part) for part in (x, y, weights))
        if augmentation.mixup:
            x, y, weights = self._mixed(x, y, weights)
        if self.deviations is not None:
            noise = self.rng.standard_normal(x.shape, self.dtype)
            noise *= augmentation.input_noise * self.deviations
            x = x + xp.asarray(noise)
        return x, y, weights

    def _one_hot(self, labels: Array) -> Array:
        """Shares of classes, (n, classes)."""
        shares = np.zeros((len(labels), self.data.classes), self.dtype)
        shares[np.arange(len(labels)), labels] = 1
        return shares

    def _mixed(self, x: Any, y: Any, weights: Any) -> Batch:
        """Each row with another one of the minibatch, in one share for all of them, as in the paper's program."""
        share = self.dtype.type(self.rng.beta(self.augmentation.mixup, self.augmentation.mixup))
        other = self.xp.asarray(self.rng.permutation(x.shape[0]))
        mixed = (share * rows + (1 - share) * rows[other] if rows is not None else None for rows in (x, y, weights))
        return tuple(mixed)  # type: ignore[return-value]
