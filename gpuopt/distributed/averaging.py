"""Gradients in flat memory, which the communicator makes the sums of all processes, a bucket at a time.

Called by `parallel`. Knows no library that sends messages, and of an optimizer its tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuopt import arrays
from gpuopt.distributed.communicators import Communicator
from gpuopt.distributed.flats import clear, empty, flat, put, shaped
from gpuopt.errors import InputError
from gpuopt.formats.dtypes import STORAGES
from gpuopt.optim.parameters import Parameter, as_array, gradient_view


@dataclass(frozen=True)
class Buckets:
    """What `data_parallel` is told, the same on all processes. nbytes: how much is sent at a time; dtype: in which gradients are
    added up, None: the compute type of their parameters; unused: whether a gradient may be None on some processes only, which they
    then tell each other.
    """

    nbytes: int
    dtype: str | None
    unused: bool

    def dtype_of(self, p: Parameter) -> str:
        """In which the gradients of a parameter are added up."""
        compute = STORAGES[p.view.dtype].compute
        return self.dtype if self.dtype is not None and compute == "float32" else compute

    def length(self, dtype: str) -> int:
        """Elements of a bucket."""
        return max(1, self.nbytes // STORAGES[dtype].itemsize)

    def together(self, parameters: Sequence[Parameter]) -> dict[tuple[str, str, str], list[Parameter]]:
        """Those that share memory: of one device, dtype and dtype of gradients."""
        found: dict[tuple[str, str, str], list[Parameter]] = {}
        for p in parameters:
            found.setdefault((p.view.device, self.dtype_of(p), p.view.dtype), []).append(p)
        return found


def checked(leaves: Sequence[Any], parameters: Sequence[Parameter], unused: bool) -> list[Any]:
    """The gradients, one for each parameter or None. Raises InputError or DtypeError before anything is sent."""
    found = [as_array(grad, p) for grad, p in zip(leaves, parameters, strict=True)]
    for grad, p in zip(found, parameters, strict=True):
        if grad is not None:
            gradient_view(grad, p, f"gradient of {p.label}")
        elif not unused:
            raise InputError(f"gradient of {p.label}: None: expected an array, or find_unused_parameters=True")
    return found


class Flags:
    """Which parameters have a gradient, as numbers that are added up. array: as many of them."""

    def __init__(self, array: Any) -> None:
        self.array, self.kind = array, arrays.kind_of(array, "flags")

    def write(self, leaves: Sequence[Any]) -> None:
        """1 where this process has one."""
        self.kind.assign(self.array, np.array([grad is not None for grad in leaves], np.float32))

    def read(self) -> list[bool]:
        """Whether any process has one; waits for the device."""
        return [bool(found) for found in arrays.on_host(self.array) != 0]


class AllReduced:
    """All gradients one behind the other, the last first, in memory that is used again. parameters: whole tensors."""

    def __init__(self, parameters: Sequence[Parameter], comm: Communicator, buckets: Buckets) -> None:
        self.parameters, self.comm, self.buckets = parameters, comm, buckets
        self.memories: list[Any] = []
        self.places: dict[int, Any] = {}  # of each parameter, by its index: its numbers
        self.flags: Flags | None = None
        for (_, dtype, _), members in buckets.together(parameters).items():
            extra = len(parameters) if buckets.unused and self.flags is None else 0
            memory = empty(members[0].array, dtype, extra + sum(p.view.numel for p in members))
            self.memories.append(memory)
            if extra:
                self.flags = Flags(memory[:extra])
            for p in reversed(members):
                self.places[p.index] = memory[extra : extra + p.view.numel]
                extra += p.view.numel
        self.shaped = [shaped(self.places[p.index], p.view.shape, p.view.pairs) for p in parameters]

    def sums(self, leaves: Sequence[Any]) -> list[Any]:
        """The sum of the gradients of each parameter, None where no process has one."""
        leaves = checked(leaves, self.parameters, self.buckets.unused)
        if self.flags is not None:
            self.flags.write(leaves)
        for p, grad in zip(self.parameters, leaves, strict=True):
            place = self.places[p.index]
            clear(place) if grad is None else put(place, flat(grad, f"gradient of {p.label}"))
        for memory in self.memories:
            length = self.buckets.length(str(memory.dtype).removeprefix("torch."))
            for begin in range(0, memory.shape[0], length):
                self.comm.all_reduce(memory[begin : begin + length])
        there = [True] * len(leaves) if self.flags is None else self.flags.read()
        return [array if found else None for array, found in zip(self.shaped, there, strict=True)]

    def spread(self) -> None:
        """Nothing: every process has stepped all tensors."""
