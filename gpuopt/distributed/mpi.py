"""Communicators of mpi4py: arrays on the host, and on GPUs through the host unless the MPI reads GPU memory itself.

Made by `gpuopt.distributed.communicator` and by users. Knows mpi4py, and no optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt import arrays
from gpuopt.distributed.buffers import Buffer, dtype_of, wait_for
from gpuopt.distributed.communicators import Communicator
from gpuopt.errors import CommunicationError, InputError
from gpuopt.messages import one_line

WIDER = {"float16": "float32", "bfloat16": "float32"}  # what MPI cannot add up is added up in these


class MPICommunicator(Communicator):
    """The processes of an mpi4py communicator; None: MPI.COMM_WORLD.

    MPI knows no streams: the stream of an array on a GPU is waited for before each call. cuda_aware: whether this MPI reads and
    writes GPU memory, as one that was built with CUDA does; else such arrays go through the host. 16-bit numbers are added up in
    float32. Raises InputError for what is no intracommunicator of mpi4py.
    """

    def __init__(self, comm: Any = None, cuda_aware: bool = False) -> None:
        from mpi4py import MPI
        from mpi4py.util import dtlib

        comm = MPI.COMM_WORLD if comm is None else comm
        if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
            raise InputError(
                f"comm: {type(comm).__name__}: expected an intracommunicator of mpi4py, such as MPI.COMM_WORLD"
            )
        self.mpi, self.comm, self.cuda_aware = MPI, comm, cuda_aware
        self.of_numpy = dtlib.from_numpy_dtype
        self.operations = {"sum": MPI.SUM, "max": MPI.MAX}
        self.rank, self.size = comm.Get_rank(), comm.Get_size()

    def _all_reduce(self, array: Buffer, op: str, stream: Any) -> None:
        with self._sending(array, stream), self._memory(array, array, reduced=True) as (mine, _):
            self.comm.Allreduce(self.mpi.IN_PLACE, mine, self.operations[op])

    def _reduce_scatter(self, array: Buffer, out: Buffer, op: str, stream: Any) -> None:
        with self._sending(array, stream), self._memory(array, out, reduced=True) as (mine, result):
            self.comm.Reduce_scatter_block(mine, result, self.operations[op])

    def _all_gather(self, array: Buffer, out: Buffer, stream: Any) -> None:
        with self._sending(array, stream), self._memory(array, out) as (mine, result):
            self.comm.Allgather(mine, result)

    def _broadcast(self, array: Buffer, root: int, stream: Any) -> None:
        with self._sending(array, stream), self._memory(array, array) as (mine, _):
            self.comm.Bcast(mine, root)

    @contextmanager
    def _sending(self, array: Buffer, stream: Any) -> Iterator[None]:
        """Behind what the stream of an array on a GPU was given. Raises CommunicationError for what MPI raises."""
        try:
            if array.device != "cpu":
                wait_for(array, stream)
            yield
        except (self.mpi.Exception, OverflowError) as error:
            raise CommunicationError(
                f"rank {self.rank} of {self.size}, {array.count} elements of {array.dtype} on {array.device}: MPI says: "
                f"{one_line(error)}"
            ) from error

    @contextmanager
    def _memory(self, array: Buffer, out: Buffer, reduced: bool = False) -> Iterator[tuple[Any, Any]]:
        """What MPI reads and what it writes, one where they are the same: their own memory, or copies, the latter of which then are
        brought back. reduced: whether it adds or compares numbers; else they are bytes.
        """
        dtype = WIDER.get(array.dtype, array.dtype) if reduced else "uint8"
        if array.device == "cpu" and (not reduced or dtype == array.dtype):
            mine = array.host().view(dtype_of(dtype))
            yield mine, mine if out is array else out.host().view(dtype_of(dtype))
        elif array.device != "cpu" and self.cuda_aware and (not reduced or dtype == array.dtype):
            typed = dtype if reduced else None
            yield self._device(array, typed), self._device(out, typed)
        else:
            mine = _numbers(array, dtype, reduced)
            result = mine if out is array else _numbers(out, dtype, reduced)
            yield mine, result
            _bring(result, out, reduced)

    def _device(self, array: Buffer, dtype: str | None) -> list[Any]:
        """Memory of a GPU as mpi4py takes it: bytes and what they are."""
        kind = self.mpi.BYTE if dtype is None else self.of_numpy(dtype_of(dtype))
        return [array.interface(), array.nbytes if dtype is None else array.count, kind]


def _numbers(array: Buffer, dtype: str, reduced: bool) -> NDArray[Any]:
    """A flat copy of an array on the host, as numbers of this dtype or as bytes."""
    flat = np.array(arrays.on_host(array.array)).reshape(-1).view(dtype_of(array.dtype))
    return flat.astype(dtype_of(dtype)) if reduced else flat.view(np.uint8)


def _bring(found: NDArray[Any], out: Buffer, reduced: bool) -> None:
    """Numbers or bytes from the host into an array, which has them when this returns."""
    flat = found.astype(dtype_of(out.dtype)) if reduced else found.view(dtype_of(out.dtype))
    if out.device == "cpu":
        out.host()[...] = flat
        return
    shape = arrays.describe(out.array, "out").shape
    whole = flat.reshape(shape)
    if getattr(out.array, "dtype", None) != whole.dtype and "complex" in str(getattr(out.array, "dtype", "")):
        whole = whole.view(np.result_type(whole.dtype, np.complex64))[..., 0]
    arrays.kind_of(out.array, "out").assign(out.array, whole)
    wait_for(out, None)
