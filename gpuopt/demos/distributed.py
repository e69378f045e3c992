"""`gpuopt demo --distributed`: the digits classifier on several processes, each with its part of every batch.

Called by `gpuopt/demos/__init__.py`, in each process: started alone, by mpirun or by torchrun. The network is `digits`'; gpuopt is
met in `gpuopt.create`, `data_parallel` and `opt.step`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

import gpuopt
from gpuopt.demos import digits
from gpuopt.demos.arrays import compute_type
from gpuopt.distributed import Communicator, data_parallel
from gpuopt.spaces import one_blas_thread, to_host

BATCH = 192  # images of all processes together
QUICK_EPOCHS, EPOCHS = 3, 15


@dataclass(frozen=True)
class Run:
    """shard: whether states were divided; loss: of the last epoch, over all processes; nbytes: of states, of the process that has
    most; alike: whether all processes have the same parameters, to the bit; backend: who ran the steps.
    """

    shard: bool
    loss: float
    accuracy: float
    seconds: float
    nbytes: int
    alike: bool
    backend: str
    params: dict[str, Any]


def train(
    comm: Communicator, optimizer: str, shard: bool, xp: Any, backend: str | None, dtype: np.dtype[Any], *, lr: float | None = None,
    quick: bool = False, seed: int = 0,
) -> Run:  # fmt: skip
    """Train from the same weights on every process, on its rows of every batch."""
    compute = compute_type(dtype)
    images, test_images, labels, test_labels = digits.load()
    x, y = xp.asarray(images.astype(compute)), xp.asarray(labels)
    epochs, batches = QUICK_EPOCHS if quick else EPOCHS, len(labels) // BATCH
    options, _ = digits.settings_for(optimizer, lr, epochs * batches)
    rng = np.random.default_rng(seed)
    params = digits.initial_weights(xp, dtype, rng)
    opt = data_parallel(gpuopt.create(optimizer, params, backend=backend, **options), comm, shard=shard)
    begin, losses = time.perf_counter(), list[Any]()
    with one_blas_thread():
        for _ in range(epochs):
            order = xp.asarray(rng.permutation(len(labels)))  # the same on every process
            losses = []
            for k in range(batches):
                mine = order[k * BATCH : (k + 1) * BATCH][comm.rank :: comm.size]
                loss, grads = digits.loss_and_gradients(params, x[mine], y[mine], xp)
                opt.step(grads)
                losses.append(loss)
    mean = over_all(comm, xp, sum(float(to_host(loss)) for loss in losses) / len(losses)) / comm.size
    share = digits.accuracy(params, xp.asarray(test_images.astype(compute)), xp.asarray(test_labels), xp)
    largest = int(over_all(comm, xp, float(opt.nbytes), "max"))
    seconds = time.perf_counter() - begin
    return Run(shard, mean, share, seconds, largest, are_alike(comm, params, xp), opt.backend, params)


def over_all(comm: Communicator, xp: Any, value: float, op: str = "sum") -> float:
    """The sum or the largest of the numbers that all processes have."""
    array = xp.full(1, value)
    comm.all_reduce(array, op)
    return float(to_host(array)[0])


def are_alike(comm: Communicator, params: dict[str, Any], xp: Any) -> bool:
    """Whether the largest of each parameter over all processes is this process's own, in all of them."""
    differ = 0.0
    for value in params.values():
        largest = value.copy()
        comm.all_reduce(largest, "max")
        differ += float(to_host((largest != value).sum()))
    return over_all(comm, xp, differ) == 0


def lines(comm: Communicator, optimizer: str, runs: list[Run]) -> list[str]:
    """What the first process prints."""
    each = f"{math.ceil(BATCH / comm.size)} images each of every {BATCH}"
    size = "one process" if comm.size == 1 else f"{comm.size} processes, {each}"
    found = [f"{optimizer} on {runs[0].backend}, digits: {size} ({type(comm).__name__})"]
    for run in runs:
        found += [
            f"  data_parallel(opt, comm{', shard=True' * run.shard}): loss {run.loss:.4f}, test accuracy {run.accuracy:.4f}, "
            f"{run.seconds:.1f} s",
            f"    states: {run.nbytes:,} bytes a process at most; parameters: "
            f"{'the same' if run.alike else 'NOT THE SAME'} on all processes",
        ]
    one, parts = (run.params for run in runs)
    equal = all(bool((one[name] == parts[name]).all()) for name in one)
    furthest = max(float(to_host(abs(one[name] - parts[name]).max())) for name in one)
    found.append(
        f"  with shard=True: {'bit for bit the same parameters' if equal else f'at most {furthest:.1e} apart'}"
    )
    return found
