"""Torch's tools around an optimizer: every scheduler, AMP's GradScaler, clipping, averaged models, gradient release."""

from __future__ import annotations

import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils

import gpuopt.torch
from gpuopt.errors import InputError
from torch_samples import bits, everything, furthest, gradients, parameters, train

ULPS = 16 * torch.finfo(torch.float32).eps  # values of order 1, a handful of steps, rounded in another order


# ---------------------------------------------------------------------------------------------------- schedulers

SCHEDULERS: dict[str, Any] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.01, 3),
}


def scheduled(opt: Any, params: Any, make: Any) -> list[float]:
    schedule, rates = make(opt), []
    for number in range(5):
        train(opt, params, [number])
        schedule.step(*([1.0] if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else []))
        rates.append(float(opt.param_groups[0]["lr"]))
    return rates


def test_every_scheduler_of_torch_is_in_the_table() -> None:
    assert set(lr_scheduler.__all__) - {"LRScheduler"} <= set(SCHEDULERS)


@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler(name: str, tensor: bool) -> None:
    found, expected = parameters(), parameters()
    rate = torch.tensor(0.05) if tensor else 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "lr_scheduler.step() before optimizer.step()" and its kin
        warnings.filterwarnings("ignore", message=".*verbose|.*epoch parameter")
        rates = scheduled(gpuopt.torch.SGD(found, lr=rate, momentum=0.9), found, SCHEDULERS[name])
        rate = torch.tensor(0.05) if tensor else 0.05
        assert rates == scheduled(torch.optim.SGD(expected, lr=rate, momentum=0.9), expected, SCHEDULERS[name])
    assert furthest(found, expected) <= ULPS


# ---------------------------------------------------------------------------------------------------- torch's utilities


def test_clip_grad_norm_before_the_step_is_max_grad_norm() -> None:
    by_hand, fused = parameters(), parameters()
    train_clipped(gpuopt.torch.AdamW(by_hand), by_hand, nn.utils.clip_grad_norm_)
    train(gpuopt.torch.AdamW(fused, max_grad_norm=0.5), fused, range(3))
    assert furthest(fused, by_hand) <= ULPS


def test_clip_grad_value_before_the_step_is_clip_value() -> None:
    by_hand, fused = parameters(), parameters()
    train_clipped(gpuopt.torch.AdamW(by_hand), by_hand, nn.utils.clip_grad_value_)
    train(gpuopt.torch.AdamW(fused, clip_value=0.5), fused, range(3))
    assert bits(fused) == bits(by_hand)


def train_clipped(opt: Any, params: Any, clip: Any) -> None:
    def step() -> None:
        clip(params, 0.5)
        opt.step()

    train(opt, params, range(3), step)


def test_l1_mask_and_grad_scale_are_what_one_would_do_by_hand() -> None:
    by_hand, fused = parameters(), parameters()
    masks = {p: torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) > 0.5 for p in fused}
    opt = gpuopt.torch.SGD(by_hand, lr=0.1)

    def step() -> None:
        for p in by_hand:
            p.grad = p.grad / 8
        opt.step()
        for p, mask in zip(by_hand, masks.values(), strict=True):
            p.data = torch.sign(p) * (p.abs() - 0.1 * 0.3).clamp(min=0) * mask

    train(opt, by_hand, range(3), step)
    train(gpuopt.torch.SGD(fused, lr=0.1, l1=0.3, mask=masks, grad_scale=8.0), fused, range(3))
    assert furthest(fused, by_hand) <= ULPS
    assert all(not p[~mask].any() for p, mask in masks.items())


def test_averaged_models() -> None:
    def run(cls: Any, average: Any) -> Any:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        averaged, opt = swa_utils.AveragedModel(model, multi_avg_fn=average), cls(model.parameters(), lr=0.1)
        for number in range(4):
            train(opt, list(model.parameters()), [number])
            averaged.update_parameters(model)
        return list(averaged.parameters())

    for average in (swa_utils.get_swa_multi_avg_fn(), swa_utils.get_ema_multi_avg_fn(0.9)):
        assert furthest(run(gpuopt.torch.SGD, average), run(torch.optim.SGD, average)) <= ULPS


# ---------------------------------------------------------------------------------------------------- AMP


def amp_steps(opt: Any, params: Any, steps: range, unscale: bool = False) -> torch.amp.GradScaler:
    """Steps through a GradScaler with gradients as a scaled loss leaves them."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for number in steps:
        scaler.scale(torch.ones(()))
        for p, g in zip(params, gradients(params, number), strict=True):
            p.grad = g * scaler.get_scale()
        if unscale:
            scaler.unscale_(opt)
            nn.utils.clip_grad_norm_(params, 0.5)
        scaler.step(opt)
        scaler.update()
    return scaler


@pytest.mark.parametrize("name", ["AdamW", "SGD"])  # AdamW alone would hardly notice a gradient of another scale
@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler_as_torch(unscale: bool, name: str) -> None:
    found, expected = parameters(), parameters()
    ours, theirs = getattr(gpuopt.torch, name), getattr(torch.optim, name)
    assert ours._step_supports_amp_scaling
    amp_steps(ours(found, lr=0.1), found, range(3), unscale)
    amp_steps(theirs(expected, lr=0.1), expected, range(3), unscale)
    assert furthest(found, expected) <= ULPS


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("before", [0, 2], ids=["first step", "later"])
@pytest.mark.parametrize("unscale", [False, True])
def test_found_inf_leaves_everything_bit_for_bit(unscale: bool, before: int, bad: float) -> None:
    params = parameters()
    opt = gpuopt.torch.AdamW(params)
    amp_steps(opt, params, range(before), unscale)
    opt.init_state()
    untouched, scaler = everything(opt), torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    for p, g in zip(params, gradients(params, 7), strict=True):
        p.grad = g
    params[0].grad[3, 2] = bad
    if unscale:
        scaler.unscale_(opt)
    scaler.step(opt)
    scaler.update()
    assert everything(opt) == untouched and scaler.get_scale() == 512.0
    assert opt.state_dict()["state"][0]["step"] == before

    amp_steps(opt, params, range(before, 4), unscale)
    again = parameters()
    amp_steps(gpuopt.torch.AdamW(again), again, range(4), unscale)
    assert bits(params) == bits(again), "the next finite step goes on as if nothing had been"


def test_scaled_gradients_are_not_rewritten() -> None:
    params = parameters()
    opt = gpuopt.torch.AdamW(params)
    amp_steps(opt, params, range(1))
    assert bits([p.grad for p in params]) == bits([g * 1024.0 for g in gradients(params, 0)])


def test_skip_nonfinite_without_a_scaler() -> None:
    params = parameters()
    opt = gpuopt.torch.AdamW(params, skip_nonfinite=True)
    train(opt, params, range(2))
    before = everything(opt)
    for p in params:
        p.grad = torch.full_like(p, torch.nan)
    opt.step()
    assert everything(opt) == before


# ---------------------------------------------------------------------------------------------------- gradient release


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def passes(model: nn.Module, opt: Any, steps: range) -> None:
    for number in steps:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
        opt.zero_grad()
        model(x).square().mean().backward()
        opt.step()


def test_gradient_release_is_ordinary_training() -> None:
    model, ordinary = network(), network()
    opt, usual = gpuopt.torch.AdamW(model.parameters()), gpuopt.torch.AdamW(ordinary.parameters())
    passes(ordinary, usual, range(8))
    passes(model, opt, range(2))
    end = gpuopt.torch.release_gradients(model, opt)
    passes(model, opt, range(2, 6))
    assert opt.state_dict()["state"][0]["step"] == 6
    end()
    passes(model, opt, range(6, 8))
    assert all(p.grad is not None for p in model.parameters()), "it has ended"
    assert everything(opt) == everything(usual)


def test_gradient_release_frees_each_gradient_at_once() -> None:
    model, alive = network(), []
    opt = gpuopt.torch.AdamW(model.parameters())
    seen: list[Any] = []

    def watch(p: torch.Tensor) -> None:
        alive.append(sum(r() is not None for r in seen))
        seen.append(weakref.ref(p.grad.untyped_storage()))

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(watch)
    gpuopt.torch.release_gradients(model, opt)
    model(torch.ones(2, 3)).sum().backward()
    assert alive == [0, 0, 0, 0] and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("option", [{"max_grad_norm": 1.0}, {"skip_nonfinite": True}, {"capturable": True}])
def test_gradient_release_refuses_what_needs_every_gradient(option: dict[str, Any]) -> None:
    model = network()
    with pytest.raises(InputError, match="every gradient"):
        gpuopt.torch.release_gradients(model, gpuopt.torch.AdamW(model.parameters(), **option))


def test_gradient_release_refuses_other_optimizers() -> None:
    model = network()
    with pytest.raises(
        InputError, match=r"the optimizer is a torch\.optim\.adamw\.AdamW: expected one of gpuopt\.torch"
    ):
        gpuopt.torch.release_gradients(model, torch.optim.AdamW(model.parameters()))
    with pytest.raises(InputError, match="none of the model's parameters"):
        gpuopt.torch.release_gradients(model, gpuopt.torch.AdamW(network().parameters()))


@pytest.mark.parametrize("late", [False, True], ids=["scaler first", "scaler later"])
def test_gradient_release_refuses_a_grad_scaler_before_a_step_is_made(late: bool) -> None:
    model = network()
    opt = gpuopt.torch.AdamW(model.parameters())
    before = everything(opt)
    scaler = None if late else torch.amp.GradScaler("cpu")
    end = gpuopt.torch.release_gradients(model, opt)
    scaler = scaler or torch.amp.GradScaler("cpu")
    with pytest.raises(InputError, match="GradScaler"):
        scaler.scale(model(torch.ones(2, 3)).sum()).backward()
    assert everything(opt) == before
    end()
    del scaler


def test_gradient_release_beside_a_scaler_that_is_off() -> None:
    model = network()
    opt = gpuopt.torch.AdamW(model.parameters())
    gpuopt.torch.release_gradients(model, opt)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    scaler.scale(model(torch.ones(2, 3)).sum()).backward()
    assert opt.state_dict()["state"][0]["step"] == 1


@pytest.mark.parametrize("given", ["wrapper", "module", "wrapped later"])
def test_gradient_release_refuses_distributed_data_parallel(given: str, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = network()
        opt = gpuopt.torch.AdamW(model.parameters())
        before = everything(opt)
        wrapper = None if given == "wrapped later" else nn.parallel.DistributedDataParallel(model)
        with pytest.raises(InputError, match="DistributedDataParallel"):
            gpuopt.torch.release_gradients(wrapper if given == "wrapper" else model, opt)
            wrapper = wrapper or nn.parallel.DistributedDataParallel(model)
            wrapper(torch.ones(2, 3)).sum().backward()
        assert everything(opt) == before
        del wrapper
    finally:
        torch.distributed.destroy_process_group()
