"""Whether all processes step the same parameters in the same way: compared once, by digests, before anything is averaged.

Called by `data_parallel`. Knows no library that sends messages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuopt import arrays
from gpuopt.distributed.communicators import Communicator
from gpuopt.distributed.flats import empty
from gpuopt.errors import InputError
from gpuopt.optim.optimizer import Optimizer
from gpuopt.strides import canonical

BITS = 52  # of a digest: whole numbers that float64, which all libraries send, has exactly


def check(opt: Optimizer, comm: Communicator, how: str) -> None:
    """Raise InputError, on all processes, naming what first differs between them: options, hyperparameters of a group, or shape,
    dtype, memory order or step count of a tensor. how: what travels, in words.
    """
    items = [("data_parallel", how), *described(opt)]
    like = opt._engine.parameters[0].array
    counts = [float(len(opt._engine.parameters)), float(len(opt.param_groups))]
    if differing(comm, like, counts) is not None:
        raise InputError(
            f"rank {comm.rank} of {comm.size} has {len(opt._engine.parameters)} tensors in {len(opt.param_groups)} groups, "
            "and another has others: expected the same params on all of them"
        )
    first = differing(comm, like, [digest(text) for _, text in items])
    if first is not None:
        name, text = items[first]
        raise InputError(f"{name} differs between the processes; on rank {comm.rank} of {comm.size} it is: {text}")


def described(opt: Optimizer) -> list[tuple[str, str]]:
    """What has to be the same, by name, in words."""
    settings = {k: v for k, v in vars(opt.settings).items() if k not in ("grad_scale", "found_inf")}
    found = [("the optimizer", f"{opt.rule.name}, {settings}")]
    for k, group in enumerate(opt.param_groups):
        values = {name: in_words(value) for name, value in group.items() if name != "params"}
        found.append((f"param_groups[{k}]", f"{values}"))
    for p in opt._engine.parameters:
        v = p.view
        order = canonical(v.shape, v.strides)
        text = f"{v.dtype} {v.shape}, strides {order}, group {p.group}, {p.counter.step} steps, with {sorted(p.beside)}"
        found.append((p.label, text))
    return found


def in_words(value: Any) -> str:
    """A hyperparameter: a schedule by its name, an array by what it holds, several one by one."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(in_words, value))})"
    if callable(value):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    return repr(float(arrays.number(value)) if arrays.is_array(value) else value)


def digest(text: str) -> float:
    """A whole number of 52 bits."""
    return float(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> (64 - BITS))


def differing(comm: Communicator, like: Any, values: Sequence[float]) -> int | None:
    """The place of the first number that is not the same on all processes."""
    given = np.array(values, np.float64)
    array = empty(like, "float64", 2 * len(given))
    arrays.kind_of(array, "digests").assign(array, np.concatenate([given, -given]))
    comm.all_reduce(array, "max")
    found = arrays.on_host(array)
    wrong = np.flatnonzero(found[: len(given)] != -found[len(given) :])
    return int(wrong[0]) if wrong.size else None
