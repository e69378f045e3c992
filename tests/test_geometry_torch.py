"""The options of test_geometry.py in `gpuopt.torch`: bits of the optimizer over arrays, in any memory order; derivatives."""

from __future__ import annotations

import pytest
import torch

import gpuopt
import gpuopt.torch
from samples import difference

OPTIONS = {
    "norms": {"cautious": True, "clip_update_rms": 0.3, "radial_brake": 0.25, "update_floor": 1.5},
    "rows": {"adaptive_clip": 0.2, "row_update_floor": 1.5},
    "hyperball": {"hyperball": True},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_bits_of_arrays(option: str) -> None:
    """A matrix, and a convolution in torch's other memory order, whose rows are its outputs all the same."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 5), (3, 4, 2, 2), (7,))
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[1] = tensors[1].contiguous(memory_format=torch.channels_last)
    params = [torch.nn.Parameter(t.clone()) for t in tensors]
    exact = [torch.nn.Parameter(t.double()) for t in tensors]
    arrays = [t.numpy().copy(order="C" if option == "rows" else "K") for t in tensors]  # sums go by the order in memory
    options = {"lr": 0.05, "weight_decay": 0.0, **OPTIONS[option]}
    opt, like = gpuopt.torch.AdamW(params, **options), gpuopt.AdamW(arrays, backend="numpy", **options)
    slow = gpuopt.torch.AdamW(exact, differentiable=True, **options)
    slow.defaults["differentiable"] = False  # nothing goes through it here, so that it may write leaves
    for _ in range(3):
        grads = [torch.randn(shape, generator=generator) for shape in shapes]
        for p, q, g in zip(params, exact, grads, strict=True):
            p.grad, q.grad = g, g.double()
        opt.step()
        slow.step()
        like.step([g.numpy() for g in grads])
    for p, q, array in zip(params, exact, arrays, strict=True):
        assert p.detach().numpy().tobytes() == array.tobytes()
        assert difference(q.detach().numpy(), array) < 1e-5


def test_a_derivative_goes_through() -> None:
    p = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def stepped(p: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
        q = p.clone()
        opt = gpuopt.torch.SGD([q], lr=0.1, update_floor=floor, differentiable=True)
        q.grad = torch.tensor([[0.1, 0.2], [-0.3, 0.1]], dtype=torch.float64)
        opt.step()
        return q

    assert torch.autograd.gradcheck(stepped, (p, scale))
