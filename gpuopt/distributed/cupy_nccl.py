"""NCCL as CuPy has it, `cupy.cuda.nccl`: raw addresses on GPUs.

Made by `gpuopt.distributed.communicator` and by users. Knows CuPy, and no optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpuopt.distributed.buffers import Buffer, check_on_gpu, stream_address
from gpuopt.distributed.communicators import Communicator
from gpuopt.errors import CommunicationError
from gpuopt.messages import one_line


class CuPyNCCLCommunicator(Communicator):
    """The GPUs of a `cupy.cuda.nccl.NcclCommunicator`, one a process.

    Work goes behind what the stream was given before, and nothing waits for it on the host. Raises InputError for arrays that are
    not on a GPU.
    """

    def __init__(self, comm: Any) -> None:
        from cupy.cuda import nccl

        self.nccl, self.comm = nccl, comm
        self.operations = {"sum": nccl.NCCL_SUM, "max": nccl.NCCL_MAX}
        self.rank, self.size = int(comm.rank_id()), int(comm.size())

    def _dtype(self, array: Buffer) -> Any:
        return getattr(self.nccl, f"NCCL_{array.dtype.upper()}")

    def _all_reduce(self, array: Buffer, op: str, stream: Any) -> None:
        with self._on(array, stream) as at:
            place = array.address, array.address
            self.comm.allReduce(*place, array.count, self._dtype(array), self.operations[op], at)

    def _reduce_scatter(self, array: Buffer, out: Buffer, op: str, stream: Any) -> None:
        with self._on(array, stream) as at:
            place = array.address, out.address
            self.comm.reduceScatter(*place, out.count, self._dtype(array), self.operations[op], at)

    def _all_gather(self, array: Buffer, out: Buffer, stream: Any) -> None:
        with self._on(array, stream) as at:
            self.comm.allGather(array.address, out.address, array.nbytes, self.nccl.NCCL_UINT8, at)

    def _broadcast(self, array: Buffer, root: int, stream: Any) -> None:
        with self._on(array, stream) as at:
            self.comm.broadcast(array.address, array.address, array.nbytes, self.nccl.NCCL_UINT8, root, at)

    @contextmanager
    def _on(self, array: Buffer, stream: Any) -> Iterator[int]:
        """The address of the stream. Raises InputError for an array on the host, CommunicationError for what NCCL says."""
        check_on_gpu(array)
        try:
            yield stream_address(array, stream)
        except RuntimeError as error:
            raise CommunicationError(f"rank {self.rank} of {self.size}: NCCL says: {one_line(error)}") from error
