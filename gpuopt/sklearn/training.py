"""The training loop that all four estimators share: passes over minibatches, when to stop, the best weights, Ctrl-C.

Called by `base.py`. Knows networks, losses and minibatches, and of an optimizer only `step`, `eval` and `train`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpuopt.errors import InputError
from gpuopt.sklearn.batches import Batches
from gpuopt.sklearn.losses import Loss
from gpuopt.sklearn.network import Network
from gpuopt.spaces import one_blas_thread

LARGE = 1 << 28  # multiplications of a product from which it is worth several threads


@dataclass(frozen=True)
class Plan:
    """passes: over the data, at most. validate: the validation score of the network as it is, higher is better; with it, the
    weights of the best pass are those that stay. tol, patience: stop after `patience` passes in a row none of which was better
    than the best before by more than tol; by the training loss where nothing is validated; tol None: that never stops.
    follow: called with the optimizer before each step. l1, l2: penalties, for the loss that is reported; dropout: a share.
    """

    passes: int
    validate: Callable[[], float] | None = None
    tol: float | None = None
    patience: int = 10
    follow: Callable[[Any], None] | None = None
    l1: float = 0.0
    l2: float = 0.0
    dropout: float = 0.0
    verbose: bool = False
    name: str = ""


@dataclass
class Record:
    """What a training was: mean loss of each pass (before its steps, with penalties), validation scores, whole passes made."""

    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    passes: int = 0
    interrupted: bool = False
    best: float = -math.inf  # the best score, or the least loss negated
    kept: list[Any] | None = None  # copies of the parameters of the best score
    stale: int = 0  # passes in a row without a better one

    def note(self, value: float, tol: float | None, copies: Callable[[], list[Any]] | None) -> None:
        """One more value, the higher the better."""
        self.stale = 0 if value > self.best + (tol or 0.0) or self.best == -math.inf else self.stale + 1
        if value > self.best:
            self.best = value
            self.kept = copies() if copies else None


def train(network: Network, optimizer: Any, loss: Loss, batches: Batches, plan: Plan) -> Record:
    """Train the network in place and return what happened; Ctrl-C ends it early. Raises InputError where the loss is no number.

    Afterwards the network holds the best weights where something was validated, else the last ones; those of a schedule-free
    optimizer are the averaged ones.
    """
    record = Record()
    with _threads(network, batches):
        try:
            for _ in _bar(plan):
                _pass(network, optimizer, loss, batches, plan, record)
                if plan.tol is not None and record.stale >= plan.patience:
                    break
        except KeyboardInterrupt:
            record.interrupted = True
    mode(optimizer, "eval")
    if record.kept is not None:
        for array, best in zip(network.parameters, record.kept, strict=True):
            array[...] = best
    return record


def mode(optimizer: Any, name: str) -> None:
    """Call `eval` or `train` of an optimizer that has them, which are those that evaluate other weights than they train."""
    switch = getattr(optimizer, name, None)
    if switch is not None:
        switch()


def _pass(network: Network, optimizer: Any, loss: Loss, batches: Batches, plan: Plan, record: Record) -> None:
    """One pass over the data, and what it was worth."""
    value = _steps(network, optimizer, loss, batches, plan) / len(batches.data) + _penalty(network, plan)
    if not math.isfinite(value):
        raise InputError(
            f"training diverged: the loss of pass {record.passes + 1} is {value}; expected a lower lr, or inputs of a "
            "smaller scale (scikit-learn's StandardScaler)"
        )
    record.losses.append(value)
    record.passes += 1
    if plan.validate is None:
        record.note(-value, plan.tol, None)
        return
    mode(optimizer, "eval")
    record.scores.append(plan.validate())
    record.note(record.scores[-1], plan.tol, lambda: [array.copy() for array in network.parameters])
    mode(optimizer, "train")


def _steps(network: Network, optimizer: Any, loss: Loss, batches: Batches, plan: Plan) -> float:
    """The steps of one pass; the sum of the losses of all rows, which a GPU adds up by itself."""
    total, xp, kept = 0.0, network.xp, 1 - plan.dropout
    gradients = network.gradients if len(optimizer.param_groups) == 1 else [
        network.weight_gradients, network.bias_gradients
    ]  # fmt: skip
    for x, y, weights in batches:
        masks = _masks(network, batches, x.shape[0], kept) if plan.dropout else ()
        z = network.forward(x, masks)
        losses = loss.rows(xp, z, y)
        if weights is not None:
            losses = losses * weights
            z *= weights
        z *= 1 / x.shape[0]
        network.backward(x, z, masks, kept)
        if plan.follow is not None:
            plan.follow(optimizer)
        optimizer.step(gradients)
        total = total + losses.sum()
    return float(total)


def _masks(network: Network, batches: Batches, rows: int, kept: float) -> list[Any]:
    """Factors of the hidden units of each row: 1 / kept, or 0 for those that are left out (Srivastava et al. 2014)."""
    dtype, rng = batches.dtype, batches.rng
    widths = [w.shape[1] for w in network.weights[:-1]]
    found = [(rng.random((rows, width), dtype) < kept) * dtype.type(1 / kept) for width in widths]
    return [network.xp.asarray(mask) for mask in found]


def _penalty(network: Network, plan: Plan) -> float:
    """l1 |w| + l2 / 2 w^2, summed over all weights."""
    found = 0.0
    for w in network.weights if plan.l1 or plan.l2 else ():
        found += plan.l1 * float(abs(w).sum()) + plan.l2 / 2 * float((w * w).sum())
    return found


def _threads(network: Network, batches: Batches) -> AbstractContextManager[Any]:
    """One BLAS thread, unless products are large."""
    rows = batches.bounds[1]
    largest = rows * max(w.size for w in network.weights)
    return nullcontext() if network.xp is not np or largest >= LARGE else one_blas_thread()


def _bar(plan: Plan) -> Iterator[int]:
    """The numbers of the passes, with a progress bar where one is asked for."""
    if not plan.verbose:
        return iter(range(plan.passes))
    from tqdm import tqdm

    return iter(tqdm(range(plan.passes), desc=plan.name, unit="pass"))
