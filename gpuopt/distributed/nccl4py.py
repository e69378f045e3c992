"""NCCL as NVIDIA's nccl4py has it: arrays on GPUs by the interfaces they offer.

Made by `gpuopt.distributed.communicator` and by users. Knows nccl4py (from 0.6 on), and no optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpuopt.distributed.buffers import Buffer, check_on_gpu, stream_address
from gpuopt.distributed.communicators import Communicator
from gpuopt.errors import CommunicationError
from gpuopt.messages import one_line


class NCCL4PyCommunicator(Communicator):
    """The GPUs of a `nccl.core.Communicator`, one a process.

    Work goes behind what the stream was given before, and nothing waits for it on the host. Raises InputError for arrays that are
    not on a GPU.
    """

    def __init__(self, comm: Any) -> None:
        from nccl import core

        self.comm = comm
        self.operations = {"sum": core.SUM, "max": core.MAX}
        self.rank, self.size = int(comm.rank), int(comm.nranks)

    def _all_reduce(self, array: Buffer, op: str, stream: Any) -> None:
        with self._on(array, stream) as at:
            self.comm.allreduce(numbers(array), numbers(array), self.operations[op], stream=at)

    def _reduce_scatter(self, array: Buffer, out: Buffer, op: str, stream: Any) -> None:
        with self._on(array, stream) as at:
            self.comm.reduce_scatter(numbers(array), numbers(out), self.operations[op], stream=at)

    def _all_gather(self, array: Buffer, out: Buffer, stream: Any) -> None:
        with self._on(array, stream) as at:
            self.comm.allgather(array.interface(), out.interface(), stream=at)

    def _broadcast(self, array: Buffer, root: int, stream: Any) -> None:
        with self._on(array, stream) as at:
            self.comm.broadcast(array.interface(), array.interface(), root, stream=at)

    @contextmanager
    def _on(self, array: Buffer, stream: Any) -> Iterator[int]:
        """The address of the stream. Raises InputError for an array on the host, CommunicationError for what NCCL says."""
        check_on_gpu(array)
        try:
            yield stream_address(array, stream)
        except Exception as error:  # nccl4py's own kinds have no common base
            raise CommunicationError(f"rank {self.rank} of {self.size}: NCCL says: {one_line(error)}") from error


def numbers(array: Buffer) -> Any:
    """What nccl4py reads numbers of: the memory with their dtype; of bfloat16, which that interface does not know, the array."""
    return array.array if array.dtype == "bfloat16" else array.interface(array.dtype)
