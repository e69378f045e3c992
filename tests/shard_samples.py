"""Parts of tensors beside the whole ones, for `shard_checks`: both are made here and stepped by the same optimizer, and compared.

Imported where process groups are, in processes that `test_torch_shards` starts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import gpuopt.torch as optimizers
from gpuopt import rules
from gpuopt.errors import CommunicationError, InputError

SIZE = 4
CHECKS: list[Callable[[], None]] = []
SHAPES: list[tuple[int, ...]] = [(7, 5), (2, 3), (64, 256), (9,), (1,), (3, 4, 5)]
STATES = [{"state_format": name} for name in ("bfloat16", "float8", "int8", "int4")]
PARAMS = [{"param_format": name} for name in ("stochastic", "split8", "split16", "kahan", "master32")]
Tensors = list[torch.Tensor]
ROWS = (Shard(0),)


def check(function: Callable[[], None]) -> Callable[[], None]:
    """One of the checks, in their order."""
    CHECKS.append(function)
    return function


@cache
def line(count: int = SIZE) -> DeviceMesh:
    """The first so many processes."""
    return DeviceMesh("cpu", torch.arange(count))


@cache
def square() -> DeviceMesh:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))


def random(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, seed: int) -> Tensors:
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=made).to(dtype) for shape in shapes]


def cut(whole: torch.Tensor, mesh: DeviceMesh, placements: Any) -> DTensor:
    """The part of this process, by torch."""
    return distribute_tensor(whole.clone(), mesh, placements, src_data_rank=None)


def same(whole: torch.Tensor, part: torch.Tensor, within: float = 0.0) -> bool:
    """Whether a part is that of a whole tensor: of one placed as `cut` places, its numbers here, else all of them."""
    if not isinstance(part, DTensor):
        mine = part
    elif any("Strided" in type(p).__name__ for p in part.placements):
        mine = part.full_tensor()
    else:
        assert part.shape == whole.shape, (part.shape, whole.shape)
        whole, mine = cut(whole, part.device_mesh, part.placements).to_local(), part.to_local()
    if within:
        return (
            bool(((whole - mine).abs() <= within * whole.abs().max().clamp(min=1e-6)).all()) if mine.numel() else True
        )
    return torch.equal(whole, mine)


def agree(whole: Any, parts: Any, within: float = 0.0) -> None:
    """Parameters and states of two optimizers are the same."""
    pairs = zip(*(
        [p for group in opt.param_groups for p in group["params"]] for opt in (whole, parts)
    ), strict=True)  # fmt: skip
    for k, (p, q) in enumerate(pairs):
        assert same(p.detach(), q.detach(), within), f"{type(parts).__name__}: parameter {k}"
        assert whole.state[p].keys() == parts.state[q].keys(), (k, whole.state[p].keys(), parts.state[q].keys())
        for key, value in whole.state[p].items():
            found = parts.state[q][key]
            assert same(value, found, within), f"{type(parts).__name__}: {key} of parameter {k}"
            assert isinstance(found, DTensor) == (isinstance(q, DTensor) and bool(value.ndim)), key


def both(
    name: str,
    placements: Any = ROWS,
    mesh: DeviceMesh | None = None,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    dtype: torch.dtype = torch.float32,
    steps: int = 3,
    **options: Any,
) -> tuple[Any, Any]:
    """The optimizer over whole tensors and over parts of them, after so many steps with the same gradients."""
    mesh = mesh or line()
    given = {"backend": "numpy"} | options
    wholes = [torch.nn.Parameter(t) for t in random(shapes, dtype, 0)]
    parts = [torch.nn.Parameter(cut(p.detach(), mesh, placements)) for p in wholes]
    whole, part = (optimizers.create(name, params, **given) for params in (wholes, parts))
    for step in range(1, steps + 1):
        for p, q, g in zip(wholes, parts, random(shapes, dtype, step), strict=True):
            p.grad, q.grad = g, cut(g, mesh, placements)
        whole.step()
        part.step()
    return whole, part


def refused(words: str, work: Callable[[], Any]) -> None:
    try:
        work()
    except (InputError, CommunicationError, OSError) as error:
        assert re.search(words, str(error)), error
    else:
        raise AssertionError(f"not refused: {words}")


def rate(name: str) -> dict[str, float]:
    return {"lr": 0.01} if "lr" in optimizers.make_optimizer(rules.get(name)).__signature__.parameters else {}  # type: ignore[attr-defined]


def params(opt: Any) -> list[Any]:
    return [p for group in opt.param_groups for p in group["params"]]


def gathered(value: torch.Tensor) -> torch.Tensor:
    """A whole tensor; gloo sends no 16-bit codes, so bytes are sent."""
    if not isinstance(value, DTensor):
        return value
    if value.dtype is not torch.uint16:
        return value.full_tensor()
    wide = value.to_local().to(torch.int32)
    made = DTensor.from_local(
        wide, value.device_mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride()
    )
    return made.full_tensor().to(torch.uint16)
