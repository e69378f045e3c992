"""What one of several processes measures for `distributed_cost.py`: exchanges of arrays of some sizes, and steps of an optimizer.

Started by it under mpirun, or with torchrun's variables; the first process prints a line of JSON: seconds, of the slowest process.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import gpuopt
from gpuopt.distributed import Communicator, communicator, data_parallel
from gpuopt.distributed.flats import put

SIZES = [2**k for k in range(12, 23, 2)]  # bytes that an exchange is of
SHAPES = [(256, 256)] * 8 + [(512, 512)] * 2  # of the parameters that are stepped: 4 MiB
REPEATS = 15
CACHED = 2**22  # numbers of float64 that fill what caches there are


def seconds(comm: Communicator, call: Callable[[], Any], count: int = 1) -> float:
    """The least of some repeats, each begun together and with other things in the caches, of the slowest process."""
    found, others = [], np.zeros(CACHED)
    for _ in range(REPEATS):
        others[...] += 1
        comm.all_reduce(np.zeros(1))
        begin = time.perf_counter()
        for _ in range(count):
            call()
        slowest = np.array([(time.perf_counter() - begin) / count])
        comm.all_reduce(slowest, "max")
        found.append(float(slowest[0]))
    return min(found)


def exchanges(comm: Communicator) -> dict[str, dict[int, float]]:
    """Operation -> bytes of the whole array -> seconds."""
    found: dict[str, dict[int, float]] = {"all_reduce": {}, "reduce_scatter": {}, "all_gather": {}}
    for size in SIZES:
        each = size // 4 // comm.size
        whole, part = np.zeros(each * comm.size, np.float32), np.zeros(each, np.float32)
        count = max(1, 2**16 // size)
        found["all_reduce"][size] = seconds(comm, lambda a=whole: comm.all_reduce(a), count)
        found["reduce_scatter"][size] = seconds(comm, lambda a=whole, b=part: comm.reduce_scatter(a, b), count)
        found["all_gather"][size] = seconds(comm, lambda a=whole, b=part: comm.all_gather(b, a), count)
    return found


def steps(comm: Communicator) -> dict[str, float]:
    """Of the optimizer alone on every process at once, of a copy of its gradients, and of both kinds of data_parallel."""
    grads = [np.full(shape, 0.5, np.float32) for shape in SHAPES]
    flat, memory = np.concatenate([g.reshape(-1) for g in grads]), np.zeros(sum(g.size for g in grads), np.float32)
    made: dict[str, Any] = {"alone": gpuopt.AdamW([g.copy() for g in grads])}
    for name, shard in (("data_parallel", False), ("zero1", True)):
        made[name] = data_parallel(
            gpuopt.AdamW([g.copy() for g in grads]), comm, shard=shard, find_unused_parameters=False
        )
    found = {"copy": seconds(comm, lambda: put(memory, flat))}
    for name, opt in made.items():
        opt.step(grads)
        found[name] = seconds(comm, lambda opt=opt: opt.step(grads))
    return found


if __name__ == "__main__":
    mine = communicator()
    load = os.getloadavg()[0]
    result = {
        "load": load,
        "exchanges": exchanges(mine),
        "steps": steps(mine),
        "size": mine.size,
        "kind": type(mine).__name__,
    }
    if mine.rank == 0:
        print(json.dumps(result), flush=True)
