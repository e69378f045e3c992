"""The battery over process groups of torch: one process that imports torch once, and forks as many as a group has.

Started by test_distributed with a folder, in which each rank of each group leaves what it found.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

import gpuopt
from distributed_battery import FEW, OF_GLOO, grads, params, write
from gpuopt.demos import text
from gpuopt.distributed import communicator, data_parallel


def tensors(folder: Path) -> None:
    """Arrays of torch are exchanged and stepped where they lie."""
    comm = communicator(distributed.group.WORLD)
    t = torch.ones(2, 3, dtype=torch.bfloat16).t().contiguous()
    comm.all_reduce(t)
    assert (t == comm.size).all()
    p, own = [torch.from_numpy(a.copy()) for a in params()], [torch.from_numpy(a) for a in grads(0, comm.rank)]
    data_parallel(gpuopt.AdamW(p), comm, shard=True).step(own)
    q = params()
    data_parallel(gpuopt.AdamW(q), comm).step(grads(0, comm.rank))
    assert all((a.numpy() == b).all() for a, b in zip(p, q, strict=True))


def silent(seconds: float) -> Callable[[Path], None]:
    """The last process does not answer for so long, or, at 0, is gone: an error in the others, and no waiting for ever."""

    def work(folder: Path) -> None:
        comm = communicator()
        if comm.rank == comm.size - 1:
            time.sleep(seconds)
            os._exit(0)
        opt, begun, said = data_parallel_alone(), time.monotonic(), ""
        try:
            opt.step(grads(0, comm.rank))
        except gpuopt.CommunicationError as error:
            said = str(error)
        assert "torch.distributed says" in said and time.monotonic() - begun < 10
        (folder / f"{comm.rank}.json").write_text(json.dumps({"silent": ""}))
        os._exit(0)

    return work


def data_parallel_alone() -> data_parallel:
    """An optimizer that has not compared its parameters with those of a process that may be gone."""
    from gpuopt.distributed import agreement

    agreement.check = lambda *_: None
    return data_parallel(gpuopt.SGD(params(), lr=0.1))


def transformer(folder: Path) -> None:
    """The demo of text, as torchrun starts it."""
    code = text.main(["--steps", "3", "--state-format", "int8"])
    (folder / f"{distributed.get_rank()}.json").write_text(json.dumps({"text": "" if code == 0 else str(code)}))


def group(folder: Path, size: int, work: Callable[[Path], None], seconds: float = 60) -> None:
    """Fork the processes of a group, which do this work, and wait for them."""
    folder.mkdir()
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            member(folder, rank, size, work, seconds)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def member(folder: Path, rank: int, size: int, work: Callable[[Path], None], seconds: float) -> None:
    try:
        start = f"file://{folder / 'meet'}"
        distributed.init_process_group("gloo", start, timedelta(seconds=seconds), world_size=size, rank=rank)
        work(folder)
        distributed.destroy_process_group()
    except BaseException as error:
        (folder / f"{rank}.json").write_text(json.dumps({"group": repr(error)}))
    os._exit(0)


def battery(names: Iterable[str]) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        tensors(folder)
        write(communicator(), folder, names)

    return work


if __name__ == "__main__":
    torch.set_num_threads(1)
    at = Path(sys.argv[1])
    group(at / "gloo-3", 3, battery(OF_GLOO))
    group(at / "gloo-2", 2, battery(FEW))
    group(at / "text", 2, transformer)
    group(at / "killed", 2, silent(0))
    group(at / "stuck", 2, silent(3), seconds=1)
