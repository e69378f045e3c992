"""`python -m gpuopt.demos.text`, or `torchrun --nproc-per-node 2 -m gpuopt.demos.text`: a small transformer learns to go on with
text that ships with Python, on the CPU, in under a minute; on several processes by DDP, or by FSDP2.

A program of its own, since torchrun starts it. gpuopt is met in `gpuopt.torch` and `gpuopt.distributed.communicator`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import gpuopt
from gpuopt import rules
from gpuopt.line import Parser
from gpuopt.messages import install, missing, one_line

WIDTH, LAYERS, STEPS, QUICK_STEPS = 64, 2, 200, 12
CHECKS = 20  # batches of the text that was kept apart


def arguments(argv: Sequence[str] | None) -> Any:
    """What the command line says."""
    parser = Parser(
        prog="python -m gpuopt.demos.text", description=(__doc__ or "").replace("\n", " "), allow_abbrev=False
    )
    parser.add_argument("--optimizer", default="adamw", help="one of `gpuopt show` (adamw)")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate (0.002)")
    parser.add_argument(
        "--state-format", default="float32", help="how states are kept: float32, bfloat16, int8 ... (float32)"
    )
    parser.add_argument(
        "--fsdp", action="store_true", help="parameters and states divided by fully_shard, instead of DDP"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"how many ({STEPS})")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and print on the first process what came of it; 0, or 2 after a GpuoptError."""
    given = arguments(argv)
    try:
        if missing("torch"):
            raise gpuopt.GpuoptError(f"this demo needs torch; {install('torch')}")
        return train(given)
    except gpuopt.GpuoptError as error:
        print(f"gpuopt: {one_line(error)}", file=sys.stderr)
        return 2


def train(given: Any) -> int:
    """The same weights everywhere, other batches on each process."""
    import torch

    from gpuopt.demos import text_model as model_of
    from gpuopt.distributed import communicator

    comm = communicator()
    torch.set_num_threads(max(1, torch.get_num_threads() // comm.size))
    model: Any = model_of.Transformer(WIDTH, LAYERS, torch.Generator().manual_seed(0))
    count = sum(p.numel() for p in model.parameters())
    engine = "no engine" if comm.size == 1 else "FSDP2" if given.fsdp else "DDP"
    trained = divided(model) if engine == "FSDP2" else replicated(model) if engine == "DDP" else model
    title = rules.get(given.optimizer).title
    opt = getattr(import_module("gpuopt.torch"), title)(
        trained.parameters(), lr=given.lr, state_format=given.state_format
    )
    learned, kept = model_of.text()
    say = print if comm.rank == 0 else lambda *_: None
    size = "one process" if comm.size == 1 else f"{comm.size} processes"
    say(f"{title}, {count:,} parameters, {len(learned):,} characters; {size}, {engine}")
    generator, begin = torch.Generator().manual_seed(1 + comm.rank), time.perf_counter()
    every = max(1, given.steps // 5)
    for step in range(given.steps):
        loss: Any = model_of.loss_of(trained, model_of.batch(learned, generator))
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % every == 0 or step + 1 == given.steps:
            say(f"  step {step + 1:>4}: loss {mean(comm, loss.item()):.4f}")
    seconds = time.perf_counter() - begin
    check = torch.Generator().manual_seed(12345)
    with torch.no_grad():
        found = [model_of.loss_of(trained, model_of.batch(kept, check)).item() for _ in range(CHECKS)]
    same = engine != "DDP" or all(alike(comm, p.detach()) for p in model.parameters())
    say(
        f"loss on text that was kept apart: {sum(found) / CHECKS:.4f}; {1e3 * seconds / max(1, given.steps):.0f} ms a step; "
        f"parameters are {'the same' if same else 'NOT THE SAME'} on all processes"
    )
    return 0 if same else 1


def replicated(model: Any) -> Any:
    """Every process has all parameters, and the average of all gradients."""
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model)


def divided(model: Any) -> Any:
    """Every process has a part of each parameter, as a DTensor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (import_module("torch.distributed").get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def mean(comm: Any, value: float) -> float:
    """Over all processes."""
    import torch

    found = torch.tensor([value], dtype=torch.float64)
    comm.all_reduce(found)
    return found.item() / float(comm.size)


def alike(comm: Any, tensor: Any) -> bool:
    """Whether the largest of a tensor over all processes is this process's own."""
    largest = tensor.clone()
    comm.all_reduce(largest, "max")
    return bool((largest == tensor).all())


if __name__ == "__main__":
    raise SystemExit(main())
