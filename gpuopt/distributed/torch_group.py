"""Arrays sent by a process group of torch: gloo on the host, NCCL on GPUs. Called by `gpuopt.torch`; knows no optimizer."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class TorchCommunicator:
    """The processes of a group, by default of all. rank: 0 to size - 1."""

    def __init__(self, process_group: Any = None) -> None:
        self.group = process_group
        self.rank, self.size = dist.get_rank(process_group), dist.get_world_size(process_group)

    def all_reduce(self, array: Any, op: str = "sum", stream: Any = None) -> None:
        """See `launch.shards.Communicator`."""
        tensor = torch.from_numpy(array) if hasattr(array, "__array_interface__") else torch.as_tensor(array)
        dist.all_reduce(tensor, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[op], self.group)
