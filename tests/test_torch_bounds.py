"""`bounds` of gpuopt.torch: by parameter or by name, in groups, in copies and checkpoints, and what is refused."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

import gpuopt
import gpuopt.torch
from gpuopt.errors import InputError


def stepped(opt: Any, params: list[torch.Tensor], steps: int = 5) -> None:
    for step in range(steps):
        for k, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(17 * step + k), dtype=p.dtype)
        opt.step()


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    shapes = ((4, 3), (7,), (2, 5))
    made = [torch.randn(s, generator=torch.Generator().manual_seed(k)).to(dtype) for k, s in enumerate(shapes)]
    return [p.requires_grad_() for p in made]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_as_clamping_by_hand(dtype: torch.dtype) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    low = torch.linspace(-1, 0, 12).reshape(4, 3)
    bounds = {ours[0]: (low, low.to(dtype) + 0.5), ours[1]: (None, 0.25)}
    opt = gpuopt.torch.SGD(ours, lr=0.3, momentum=0.9, bounds=bounds)
    by_hand = gpuopt.torch.SGD(theirs, lr=0.3, momentum=0.9)
    for step in range(5):
        for k, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = q.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step + 9 * k)).to(dtype)
        opt.step()
        by_hand.step()
        with torch.no_grad():
            theirs[0].clamp_(low.to(dtype), low.to(dtype) + 0.5)
            theirs[1].clamp_(max=0.25)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))
    assert (ours[1] == 0.25).any() and (ours[2].abs() > 1).any()


def test_by_name_in_another_order_and_kept_by_copies() -> None:
    model = torch.nn.Linear(3, 2)
    p = model.weight
    p.data = p.data.t().contiguous().t()  # another memory order than its bounds
    opt = gpuopt.torch.Adam(model.named_parameters(), lr=0.5, bounds={"weight": (torch.full((2, 3), -0.5), 0.5)})
    stepped(opt, [p])
    again = copy.deepcopy(opt)
    kept = io.BytesIO()
    torch.save(opt, kept)
    kept.seek(0)
    for other in (again, torch.load(kept, weights_only=False), opt):
        mine = [q for group in other.param_groups for q in group["params"]]
        stepped(other, mine)
        assert mine[0].abs().max() == 0.5 and mine[1].abs().max() > 0.5


def test_checkpoints_of_the_same_optimizer_without_bounds_load() -> None:
    free, bounded = parameters(), parameters()
    plain = gpuopt.torch.AdamW(free, lr=0.5)
    opt = gpuopt.torch.AdamW(bounded, lr=0.5, bounds=dict.fromkeys(bounded, (-0.1, 0.1)))
    stepped(plain, free)
    opt.load_state_dict(plain.state_dict())
    stepped(opt, bounded, 1)
    assert all(p.abs().max() <= torch.tensor(0.1) for p in bounded)


def test_gaps_sparse_steps_and_released_gradients() -> None:
    """Where a dense copy is stepped, and where parameters are stepped one by one as gradients arrive."""
    base = torch.zeros(6, 4)
    p = base[:, ::2].detach().requires_grad_()
    opt = gpuopt.torch.SGD([p], lr=1.0, bounds={p: (-0.5, None)})
    p.grad = torch.ones_like(p)
    opt.step()
    assert (p == -0.5).all() and (base[:, 1::2] == 0).all()
    model = torch.nn.Linear(3, 2)
    opt = gpuopt.torch.SGD(model.named_parameters(), lr=100.0, bounds={"bias": (-0.25, 0.25)})
    end = gpuopt.torch.release_gradients(model, opt)
    model(torch.ones(4, 3)).sum().backward()
    end()
    assert model.bias.tolist() == [-0.25, -0.25] and model.weight.abs().max() > 0.25


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (lambda p: [(0, 1)], "bounds: found list: expected a dict"),
        (lambda p: {"weight": (0, 1)}, "bounds: 'weight' is no parameter of this optimizer"),
        (lambda p: {p: 1.0}, "expected None or a pair"),
        (lambda p: {p: (2, 1)}, "lower 2.0, upper 1.0"),
        (lambda p: {p: (torch.ones(2), None)}, r"shape \(2,\) on cpu: expected a number, or \(3,\) on cpu"),
    ],
)
def test_bounds_that_cannot_be_used(bounds: Any, words: str) -> None:
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    with pytest.raises(InputError, match=words):
        gpuopt.torch.AdamW([p], bounds=bounds(p)).step()
    assert p.tolist() == [1, 1, 1]


def test_complex_and_schedule_free_ones_are_refused() -> None:
    p = torch.ones(3, dtype=torch.complex64, requires_grad=True)
    q = torch.ones(3, requires_grad=True)
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    with pytest.raises(InputError, match="complex numbers have no order"):
        gpuopt.torch.SGD([p], bounds={p: (0, 1)}).step()
    with pytest.raises(InputError, match="ScheduleFreeSGD evaluates an average"):
        gpuopt.torch.ScheduleFreeSGD([q], bounds={q: (0, 1)}).step()
