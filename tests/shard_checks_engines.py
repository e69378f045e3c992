"""What `shard_checks` checks of torch's engines: FSDP2, tensor parallelism, DistributedDataParallel, Distributed Checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import gpuopt.torch as optimizers
from shard_samples import PARAMS, SIZE, STATES, Tensors, agree, check, gathered, line, random, refused, same, square


def network(width: int = 67) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(128, width), torch.nn.Tanh(), torch.nn.Linear(width, 2), torch.nn.LayerNorm(2)
    )


def trained(
    model: torch.nn.Module, opt: Any, twin: Sequence[torch.Tensor], other: Any, tell: Any = None, steps: int = 3
) -> None:
    """Steps of both with the gradients of the model, each process with inputs of its own. tell: of a parameter, the group in which
    inputs are the same.
    """
    for step in range(steps):
        x = random([(4, 128)], torch.float32, 10 * step + (dist.get_rank() if tell is None else tell))[0]
        model(x).square().sum().backward()
        for p, q in zip(model.parameters(), twin, strict=True):
            q.grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad.clone()  # type: ignore[union-attr]
        opt.step()
        other.step()
        opt.zero_grad()


def copied(model: torch.nn.Module) -> Tensors:
    return [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]


@check
def fully_sharded() -> None:
    """FSDP2, whose gradients are misaligned views: on a line, with copies, and behind tensor parallelism."""
    for kind in ("line", "copies", "parallel"):
        width = 66 if kind == "parallel" else 67
        model, twin = network(width), copied(network(width))
        if kind == "parallel":
            parallelize_module(model, square()["inner"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        mesh = {"line": line(), "copies": square(), "parallel": square()["outer"]}[kind]
        for layer in model:  # type: ignore[attr-defined]
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        opt, other = (
            optimizers.AdamW(ps, lr=0.01, backend="numpy", state_format="bfloat16") for ps in (model.parameters(), twin)
        )
        trained(model, opt, twin, other, tell=dist.get_rank() // 2 if kind == "parallel" else None)
        agree(other, opt)
        if kind != "parallel":
            matrices = [optimizers.Muon(ps, lr=0.01, backend="numpy") for ps in (model.parameters(), twin)]
            trained(model, matrices[0], twin, matrices[1])
            agree(matrices[1], matrices[0])
        norms = [optimizers.AdamW(ps, lr=0.01, backend="numpy", max_grad_norm=0.1) for ps in (model.parameters(), twin)]
        trained(model, norms[0], twin, norms[1], tell=dist.get_rank() // 2 if kind == "parallel" else None)
        agree(norms[1], norms[0], within=1e-6)


@check
def data_parallel() -> None:
    """DistributedDataParallel with gradients that are views of buckets, alone and with ZeroRedundancyOptimizer."""
    for zero in (False, True):
        inner, twin = network(), copied(network())
        model = DistributedDataParallel(inner, gradient_as_bucket_view=True)
        options: dict[str, Any] = {"lr": 0.01, "backend": "numpy", "weight_decay": 0.1}
        other = optimizers.AdamW(twin, **options)
        if zero:
            opt: Any = ZeroRedundancyOptimizer(
                inner.parameters(), optimizers.AdamW, parameters_as_bucket_view=True, **options
            )
        else:
            opt = optimizers.AdamW(inner.parameters(), **options)
        trained(model, opt, twin, other)
        for p, q in zip(inner.parameters(), twin, strict=True):
            assert torch.equal(p, q)
        if zero:
            clipping = ZeroRedundancyOptimizer(inner.parameters(), optimizers.AdamW, max_grad_norm=1.0)
            for p in inner.parameters():
                p.grad = torch.ones_like(p)
            refused("max_grad_norm = 1.0 cannot go with Zero", clipping.step)
            opt.consolidate_state_dict()
            if dist.get_rank() == 0:
                state = opt.state_dict()["state"]
                assert all(torch.equal(state[k]["exp_avg"], other.state[q]["exp_avg"]) for k, q in enumerate(twin))


def sharded(
    count: int, dtype: torch.dtype, options: dict[str, Any], name: str = "adamw"
) -> tuple[torch.nn.Module, Any]:
    model = network().to(dtype)
    for layer in model:  # type: ignore[attr-defined]
        fully_shard(layer, mesh=line(count))
    fully_shard(model, mesh=line(count))
    return model, optimizers.create(name, model.parameters(), lr=0.01, backend="numpy", **options)


@check
def checkpoints_reshard() -> None:
    """Distributed Checkpoint: saved by four, loaded by three and by one, bit for bit, and steps go on."""
    meshes = {count: line(count) for count in (3, 1)}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("adamw", {}),
        ("adamw", STATES[0]),
        ("adamw", STATES[2]),
        ("adamw", STATES[3]),
    ]
    cases += [("adamw", PARAMS[1]), ("adafactor", {}), ("soap", STATES[2])]
    for k, (name, options) in enumerate(cases):
        dtype = torch.bfloat16 if k % 2 or "param_format" in options else torch.float32
        model, opt = sharded(SIZE, dtype, options, name)
        for _ in range(2):
            model(random([(4, 128)], dtype, k)[0]).square().sum().backward()
            opt.step()
        wholes = [{key: gathered(value) for key, value in opt.state[p].items()} for p in model.parameters()]
        path = str(Path(sys.argv[1], f"checkpoint{k}"))
        dcp.save({"opt": get_optimizer_state_dict(model, opt)}, checkpoint_id=path)
        for count, mesh in meshes.items():
            if dist.get_rank() >= count:
                continue
            model, opt = sharded(count, dtype, options, name)
            before = [p.to_local().clone() for p in model.parameters()]  # type: ignore[attr-defined]
            if k == 1:
                opt.init_state()
                assert all(state["step"] == 0 for state in opt.state.values())
            state = {"opt": get_optimizer_state_dict(model, opt)}
            assert all(torch.equal(p.to_local(), b) for p, b in zip(model.parameters(), before, strict=True))  # type: ignore[attr-defined]
            dcp.load(state, checkpoint_id=path, process_group=mesh.get_group())
            set_optimizer_state_dict(model, opt, state["opt"])
            for p, whole in zip(model.parameters(), wholes, strict=True):
                found = opt.state[p]
                assert found.keys() == whole.keys()
                assert all(same(value, found[key]) and value.dtype == found[key].dtype for key, value in whole.items())
            model(random([(4, 128)], dtype, k)[0]).square().sum().backward()
            opt.step()
        dist.barrier()
