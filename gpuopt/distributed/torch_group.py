"""Process groups of torch.distributed as a communicator: gloo on the host, NCCL on GPUs, arrays of any library.

Made by `gpuopt.distributed.communicator`, by `gpuopt.torch` and by users. Knows torch, and no optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed

from gpuopt.distributed.buffers import Buffer, stream_address
from gpuopt.distributed.communicators import Communicator
from gpuopt.errors import CommunicationError, InputError
from gpuopt.messages import one_line

OPERATIONS = {"sum": distributed.ReduceOp.SUM, "max": distributed.ReduceOp.MAX} if distributed.is_available() else {}


class TorchCommunicator(Communicator):
    """The processes of a group of torch.distributed; None: all of them.

    gloo sends arrays on the host, NCCL those on GPUs, and a group made by `init_process_group("cpu:gloo,cuda:nccl")` both. A
    process that is gone raises CommunicationError in the others, at the latest after the `timeout` of the group. Work on a GPU is
    behind what its stream was given before, and the stream waits for it, not the host. Raises InputError where torch.distributed
    is not initialised, or this process is not in the group.
    """

    def __init__(self, process_group: Any = None) -> None:
        if not distributed.is_available() or not distributed.is_initialized():
            raise InputError(
                "torch.distributed has no process group: expected torch.distributed.init_process_group(...) before"
            )
        if process_group is not None and not isinstance(process_group, distributed.ProcessGroup):
            outside = process_group == distributed.GroupMember.NON_GROUP_MEMBER
            found = "a group that this process is not in" if outside else type(process_group).__name__
            raise InputError(
                f"process_group: {found}: expected a group of torch.distributed with this process, or None"
            )
        self.group = process_group
        self.rank, self.size = distributed.get_rank(process_group), distributed.get_world_size(process_group)
        if self.rank < 0:
            raise InputError("process_group: a group that this process is not in: expected one that it is in, or None")

    def _all_reduce(self, array: Buffer, op: str, stream: Any) -> None:
        with self._sending(array, stream):
            distributed.all_reduce(tensor(array), OPERATIONS[op], self.group)

    def _reduce_scatter(self, array: Buffer, out: Buffer, op: str, stream: Any) -> None:
        with self._sending(array, stream):
            _call("reduce_scatter_single", "reduce_scatter_tensor")(
                tensor(out), tensor(array), OPERATIONS[op], self.group
            )

    def _all_gather(self, array: Buffer, out: Buffer, stream: Any) -> None:
        with self._sending(array, stream):
            _call("all_gather_single", "all_gather_into_tensor")(octets(out), octets(array), self.group)

    def _broadcast(self, array: Buffer, root: int, stream: Any) -> None:
        with self._sending(array, stream):
            distributed.broadcast(octets(array), group=self.group, group_src=root)

    @contextmanager
    def _sending(self, array: Buffer, stream: Any) -> Iterator[None]:
        """On the stream of an array on a GPU. Raises CommunicationError for what torch raises."""
        try:
            if array.device == "cpu":
                yield
                return
            with torch.cuda.stream(_stream(array, stream)):
                yield
        except (RuntimeError, ValueError) as error:
            raise CommunicationError(
                f"rank {self.rank} of {self.size}, {array.count} elements of {array.dtype} on {array.device}: torch.distributed "
                f"says: {one_line(error)}"
            ) from error


def _call(name: str, before: str) -> Any:
    """A function of torch.distributed, which had another name before torch 2.13."""
    return getattr(distributed, name, None) or getattr(distributed, before)


def _stream(array: Buffer, stream: Any) -> Any:
    """The stream for an array, as torch has it."""
    made: Any = torch.cuda.ExternalStream
    return made(stream_address(array, stream), device=array.index)


def tensor(array: Buffer) -> torch.Tensor:
    """The same memory as a flat tensor."""
    dtype = getattr(torch, array.dtype)
    if isinstance(array.array, torch.Tensor):
        flat = array.array.detach().reshape(-1)
        return torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
    if array.device == "cpu":
        return torch.from_numpy(array.host().view("uint8")).view(dtype)
    return torch.as_tensor(array.interface(), device=array.device).view(dtype)


def octets(array: Buffer) -> torch.Tensor:
    """The same memory as bytes, which every backend copies, whatever they mean."""
    return tensor(array).view(torch.uint8)
