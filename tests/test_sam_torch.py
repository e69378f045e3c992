"""Sharpness-aware minimisation in torch: the widely used two steps and closure, over models, and what passes to the optimizer."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch

import gpuopt.torch
from gpuopt import InputError
from torch_samples import bits, gradients, parameters

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = X.sum(1, keepdim=True) ** 2 / 8


def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).double()


def loss(net: torch.nn.Module) -> torch.Tensor:
    made: torch.Tensor = (net(X) - Y).square().mean()
    made.backward()  # type: ignore[no-untyped-call]
    return made


def by_hand(net: torch.nn.Module, opt: torch.optim.Optimizer, rho: float, adaptive: bool, eta: float) -> float:
    """A step of Foret et al. 2021 (Kwon et al. 2021), each tensor by itself, in torch."""
    opt.zero_grad()
    loss(net)
    params = list(net.parameters())
    sizes = [p.detach().abs() + eta if adaptive else torch.ones_like(p) for p in params]
    norm = sum((t * p.grad).square().sum() for t, p in zip(sizes, params, strict=True)) ** 0.5  # type: ignore[operator]
    old = [p.detach().clone() for p in params]
    with torch.no_grad():
        for t, p in zip(sizes, params, strict=True):
            p += rho * t * t * p.grad / (norm + 1e-12)
    opt.zero_grad()
    there = float(loss(net).detach())
    with torch.no_grad():
        for p, q in zip(params, old, strict=True):
            p.copy_(q)
    opt.step()
    return there


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_model_is_trained_as_by_hand(adaptive: bool) -> None:
    """By a closure, by both steps, and with torch's own AdamW by hand; schedulers take both optimizers."""
    nets = [model() for _ in range(3)]
    hand = torch.optim.AdamW(nets[0].parameters(), lr=0.02)
    ours = [
        gpuopt.torch.SAM(gpuopt.torch.AdamW(net.parameters(), lr=0.02), 0.3, adaptive, eta=0.05) for net in nets[1:]
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of schedulers that believe no step was made
        rates = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 30) for o in (hand, ours[0], ours[1])]
        for _ in range(20):
            expected = by_hand(nets[0], hand, 0.3, adaptive, 0.05)
            ours[0].zero_grad()
            loss(nets[1])
            there = ours[0].step(lambda: loss(nets[1]))
            assert abs(float(there.detach()) - expected) < 1e-11
            loss(nets[2])
            ours[1].first_step(zero_grad=True)
            loss(nets[2])
            ours[1].second_step(zero_grad=True)
            for rate in rates:
                rate.step()
    found = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(found[1], found[2]) and (found[0] - found[1]).abs().max() < 1e-11
    assert all(p.grad is None for p in nets[2].parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_put_back_bit_for_bit_whatever_has_a_gradient(dtype: torch.dtype) -> None:
    """A parameter with gaps and one without a gradient too; gradients may come and go between both steps."""
    params = parameters(((4, 3), (5,), (0,), (), (6, 4)), dtype)
    params.append(torch.nn.Parameter(params[-1].detach()[::2, ::2]))
    params[4].requires_grad_(False)
    sam = gpuopt.torch.SAM(gpuopt.torch.SGD([p for p in params if p.requires_grad], lr=0.1), rho=0.5)
    members = sam.param_groups[0]["params"]
    for step in range(3):
        for k, (p, g) in enumerate(zip(members, gradients(members, step), strict=True)):
            p.grad = None if k == step else g
        before = [p.detach().clone() for p in members]
        sam.first_step(zero_grad=True)
        moved = [not torch.equal(p, q) for p, q in zip(members, before, strict=True)]
        assert moved == [k != step and p.numel() > 0 for k, p in enumerate(members)]
        members[step].grad = torch.zeros_like(members[step])
        sam.restore()
        assert bits(before) == bits([p.detach() for p in members])
    sam.zero_grad()
    sam.first_step()  # no gradient at all: nothing moves, and nothing old comes back
    with torch.no_grad():
        members[0].fill_(3)
    sam.second_step()
    assert (members[0] == 3).all()


def test_masks_bounds_and_ascent_hold_for_what_is_perturbed() -> None:
    p, q, r = (torch.nn.Parameter(torch.tensor(v)) for v in ([0.0, 1.0], [0.5, 0.5], [1.0]))
    groups = [{"params": [p, q]}, {"params": [r], "maximize": True}]
    opt = gpuopt.torch.SGD(groups, lr=0.1, mask={p: torch.tensor([False, True])}, bounds={q: (0.0, 0.6)})
    sam = gpuopt.torch.SAM(opt, rho=10.0)
    for each in (p, q, r):
        each.grad = torch.ones_like(each)
    sam.first_step()
    assert p[0] == 0 and p[1] > 1 and torch.equal(q, torch.tensor([0.6, 0.6])) and r[0] < 1


def test_everything_else_is_the_optimizer_s() -> None:
    params = parameters()
    opt = gpuopt.torch.ScheduleFreeAdamW(params, lr=0.1)
    sam = gpuopt.torch.SAM(opt, rho=0.1)
    assert isinstance(sam, torch.optim.Optimizer) and sam.param_groups is opt.param_groups and sam.state is opt.state
    calls: list[Any] = []
    sam.register_step_post_hook(lambda stepped, *_: calls.append(stepped))

    def stepped(sam: Any, members: Any, step: int) -> None:
        for p, g in zip(members, gradients(members, step), strict=True):
            p.grad = g
        sam.first_step()
        sam.second_step()

    stepped(sam, params, 0)
    assert calls == [opt] and sam.nbytes == opt.nbytes + sum(p.nbytes for p in params)
    again, others = copy.deepcopy((sam, params))
    third, more = pickle.loads(pickle.dumps((again, others)))
    fresh = [torch.nn.Parameter(p.detach().clone()) for p in params]
    loaded = gpuopt.torch.SAM(gpuopt.torch.ScheduleFreeAdamW(fresh, lr=0.1), rho=0.1)
    loaded.load_state_dict(copy.deepcopy(sam.state_dict()))
    for each, members in ((sam, params), (again, others), (third, more), (loaded, fresh)):
        stepped(each, members, 1)
    assert bits(params) == bits(others) == bits(more) == bits(fresh)
    sam.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    stepped(sam, [*params, sam.param_groups[1]["params"][0]], 2)
    sam.eval()
    with pytest.raises(InputError, match=r"opt\.train\(\)"):
        sam.first_step()
    sam.train()


def test_nothing_but_the_second_step_in_the_middle_of_one() -> None:
    params = parameters()
    sam = gpuopt.torch.SAM(gpuopt.torch.ScheduleFreeSGD(params, lr=0.1), rho=0.1)
    for call in (sam.restore, sam.second_step):
        with pytest.raises(InputError, match=r"not perturbed: expected first_step\(\) before it"):
            call()
    with pytest.raises(InputError, match=r"no parameter has a gradient: expected backward\(\)"):
        sam.step(lambda: None)
    with pytest.raises(InputError, match="expected a closure"):
        sam.step()
    saved = sam.state_dict()
    for p, g in zip(params, gradients(params, 0), strict=True):
        p.grad = g
    before = bits([p.detach() for p in params])
    with pytest.raises(ZeroDivisionError):
        sam.step(lambda: 1 / 0)
    assert bits([p.detach() for p in params]) == before
    for p, g in zip(params, gradients(params, 0), strict=True):
        p.grad = g
    sam.first_step()
    for wrong in (
        sam.first_step,
        lambda: sam.step(lambda: None),
        sam.state_dict,
        lambda: sam.load_state_dict(saved),
        lambda: sam.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]}),
        lambda: sam.eval(),
        lambda: copy.deepcopy(sam),
    ):
        with pytest.raises(InputError, match=r"perturbed: expected second_step\(\) before it, or restore\(\)"):
            wrong()
    sam.second_step()


def test_what_cannot_be_is_refused() -> None:
    params = parameters()
    with pytest.raises(InputError, match=r"SAM: found SGD: expected an optimizer of gpuopt\.torch"):
        gpuopt.torch.SAM(torch.optim.SGD(params, lr=0.1))  # type: ignore[arg-type]
    for options, words in (({"rho": -1}, "rho = -1"), ({"adaptive": "yes"}, "adaptive = 'yes'")):
        with pytest.raises(InputError, match=words):
            gpuopt.torch.SAM(gpuopt.torch.SGD(params, lr=0.1), **options)  # type: ignore[arg-type]
    sam = gpuopt.torch.SAM(gpuopt.torch.Adam(params, lr=0.1, differentiable=True))
    with pytest.raises(InputError, match="differentiable=True"):
        sam.first_step()
    scaler = torch.amp.GradScaler("cpu")
    sam = gpuopt.torch.SAM(gpuopt.torch.Adam(params, lr=0.1))
    params[0].grad = scaler.scale(torch.full((4, 3), torch.inf))  # which it would skip, and leave parameters perturbed
    with pytest.raises(InputError, match="expected a closure"):
        scaler.step(sam)
