"""Parameters, gradients and optimizers for the tests of `gpuopt.torch`, and "equal bit for bit". Knows no rule by name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

import gpuopt.torch

SHAPES = ((4, 3), (5,), (0,), ())
Params = list[torch.nn.Parameter]


def parameters(shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: Any = torch.float32, device: str = "cpu") -> Params:
    """Values of order 1, the same at each call."""
    values = torch.Generator().manual_seed(5)
    return [
        torch.nn.Parameter(torch.randn(s, generator=values, dtype=torch.float64).to(dtype).to(device)) for s in shapes
    ]


def gradients(params: Iterable[torch.Tensor], step: int) -> list[torch.Tensor]:
    """The gradients of a step (0, 1, ...), each a new tensor laid out as its parameter."""
    values = torch.Generator().manual_seed(1000 + step)
    made = []
    for p in params:
        wide = torch.complex128 if p.is_complex() else torch.float64
        drawn = torch.randn(p.shape, generator=values, dtype=wide).to(p.dtype)  # rounded on the CPU for every device
        made.append(torch.empty_like(p, requires_grad=False).copy_(drawn))
    return made


def train(
    opt: Any, params: Sequence[torch.Tensor], steps: Iterable[int], step: Callable[[], Any] | None = None
) -> None:
    """Steps with the gradients of these numbers."""
    for number in steps:
        for p, g in zip(params, gradients(params, number), strict=True):
            p.grad = g
        (step or opt.step)()


def create(name: str, params: Any, **options: Any) -> Any:
    """The optimizer of that name; hyperparameters that it needs and were not given are 0.1."""
    signature = inspect.signature(getattr(gpuopt.torch, title(name))).parameters
    needed = [n for n, p in signature.items() if p.default is p.empty and n != "params"]
    return gpuopt.torch.create(name, params, **{**dict.fromkeys(needed, 0.1), **options})


def title(name: str) -> str:
    return next(t for t in gpuopt.torch.__all__ if t.lower() == name and t != name)


def pair(name: str, shapes: Any = ((4, 3), (5,)), dtype: Any = torch.float32, **options: Any) -> list[tuple[Any, Any]]:
    """Ours and torch's optimizer on equal parameters, with these parameters."""
    made = []
    for module in (gpuopt.torch, torch.optim):
        params = parameters(shapes, dtype)
        made.append((getattr(module, title(name))(params, **{"lr": 0.1, **options}), params))
    return made


def bits(tree: Any) -> Any:
    """Nested dicts and lists of tensors -> the same with their bytes, so that `==` compares NaN and -0.0 too."""
    if isinstance(tree, dict):
        return {key: bits(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [bits(value) for value in tree]
    if isinstance(tree, torch.Tensor):
        memory = tree.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return str(tree.dtype), tuple(tree.shape), memory.numpy().tobytes()
    return tree


def everything(opt: Any) -> Any:
    """Bits of all that a step may change: parameters, states, step counts, hyperparameters."""
    return bits([[group["params"] for group in opt.param_groups], opt.state_dict()])


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch's default dtype meanwhile: the one in which its optimizers keep states of one number, which ours keep as wide as the
    parameter.
    """
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype.to_real())
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def copied(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict that shares no tensor: torch's load_state_dict keeps what needs no cast."""
    return copy.deepcopy(state_dict)


def furthest(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> float:
    """The largest difference over all tensors."""
    pairs = zip(found, expected, strict=True)
    return max(float((a.detach() - b.detach()).abs().max()) if a.numel() else 0.0 for a, b in pairs)
