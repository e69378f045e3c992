"""Which part of a tensor the array of a parameter is, where several processes have one each, and who adds up what they find.

Made by `gpuopt.torch` and `gpuopt.distributed`, read by plans (random numbers are those of the whole tensor) and by backends (sums
are completed). Knows no library that sends messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpuopt import arrays
from gpuopt.errors import CommunicationError


class Communicator(Protocol):
    """Processes that exchange arrays; `gpuopt.distributed` makes them of torch's groups, MPI and NCCL. rank: 0 to size - 1."""

    rank: int
    size: int

    def all_reduce(self, array: Any, op: str = "sum", stream: Any = None) -> None:
        """Each element of this array becomes the sum ("sum") or the largest ("max") of those that all processes have there: the
        same bits everywhere. An array of NumPy or on a GPU, contiguous; stream: an address, of a GPU's array.
        """
        ...


def agree(communicator: Communicator, failed: bool, what: str, like: Any) -> None:
    """Wait for all processes. Raises CommunicationError where this one has not failed and another one has; what: was done; like: an
    array of those that this communicator sends, as NCCL sends none that lies on the host.
    """
    kind = arrays.kind_of(like, what)
    found = kind.zeros(like, "float64", (1,))
    kind.assign(found, np.array([float(failed)]))
    communicator.all_reduce(found, "max")
    if float(arrays.on_host(found)[0]) and not failed:
        raise CommunicationError(f"{what} failed in another process, which says why")


@dataclass(frozen=True)
class Shard:
    """A part of a tensor: the array's elements, in the order of memory, are `run` consecutive ones of the tensor, then `skip` of
    others, then `run` again, from the first-th of the tensor on. run = 0: all are consecutive.

    shape: of the whole tensor; communicator: of the processes that have the other parts, whose sums are added up; None where
    every process has the same part.
    """

    shape: tuple[int, ...]
    first: int = 0
    run: int = 0
    skip: int = 0
    communicator: Communicator | None = None

    @property
    def numel(self) -> int:
        """Elements of the whole tensor."""
        return prod(self.shape)

    def elements(self, here: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which elements of the whole tensor these are, as kernels/shards.cuh says."""
        return elements(self.first, self.run, self.skip, here)


def elements(first: int, run: int, skip: int, here: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which elements of a tensor these ones of a part are; see Shard."""
    return first + here + (here // run * skip if run else np.int64(0))


def shard_of(
    shape: tuple[int, ...], local: tuple[int, ...], offset: tuple[int, ...], communicator: Communicator | None = None
) -> Shard | None:
    """The part of a tensor of this shape that begins at an offset and has a shape of its own, both one number an axis; None where
    more than one axis behind the first is cut, which no Shard describes.
    """
    behind = [k for k in range(1, len(shape)) if local[k] != shape[k]]
    if len(behind) > 1:
        return None
    strides = [prod(shape[k + 1 :]) for k in range(len(shape))]
    first = sum(o * s for o, s in zip(offset, strides, strict=True)) if prod(local) else 0
    if not behind:
        return Shard(shape, first, communicator=communicator)
    cut = behind[0]
    run = local[cut] * strides[cut]
    return Shard(shape, first, run, shape[cut] * strides[cut] - run, communicator)
