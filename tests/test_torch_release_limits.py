"""Gradient release: the memory that gradients take, how often is stepped, and what is refused."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gpuopt.torch
from gpuopt.errors import InputError
from gpuopt.torch import change_tracker, engines, release
from torch_samples import bits, everything

# ---------------------------------------------------------------------------------------------------- memory and launches


def wide(numbers: list[int]) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.ones(n)) for n in numbers)


def backward(params: nn.ParameterList) -> None:
    """A pass whose gradients have memory of their own."""
    sum((p * torch.ones_like(p)).sum() for p in params).backward()


@pytest.mark.parametrize("largest", [25_000, 500_000])
def test_gradients_take_a_batch_and_the_largest(largest: int) -> None:
    params = wide([25_000] * 40 + [largest] + [1000] * 20 + [25_000] * 40)
    opt = gpuopt.torch.SGD(params.parameters())
    seen: list[tuple[Any, int]] = []
    peaks: list[int] = []

    def watch(p: torch.Tensor) -> None:
        seen.append((weakref.ref(p.grad.untyped_storage()), p.grad.nbytes))
        peaks.append(sum(size for storage, size in seen if storage() is not None))

    for p in params:
        p.register_post_accumulate_grad_hook(watch)
    gpuopt.torch.release_gradients(params, opt)
    for _ in range(3):
        seen.clear()
        peaks.clear()
        backward(params)
        assert len(peaks) == len(params) and max(peaks) < release.BATCH + 4 * largest < sum(s for _, s in seen) / 2
        assert all(storage() is None for storage, _ in seen) and all(p.grad is None for p in params)


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[str]:
    calls: list[str] = []
    called = getattr(owner, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return called(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return calls


@pytest.mark.parametrize("numbers, steps", [([1000] * 150, 1), ([26_215] * 95, 10), ([262_144] * 5, 5)])
def test_what_arrives_together_is_stepped_together(
    numbers: list[int], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines are made once, also with `opt.step()` in the loop, which steps a parameter that is not the model's."""
    params, other = wide(numbers), nn.Parameter(torch.ones(3))
    opt = gpuopt.torch.SGD([*params, other])
    gpuopt.torch.release_gradients(params, opt)
    made, stepped = (
        counted(monkeypatch, engines, "Engine"),
        counted(monkeypatch, change_tracker.ChangeTracker, "step"),
    )
    for _ in range(5):
        backward(params)
        other.grad = torch.ones(3)
        opt.step()
        opt.zero_grad()
    assert len(made) == steps + 1 and len(stepped) == 5 * (steps + 1)


# ---------------------------------------------------------------------------------------------------- refusals


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


@pytest.mark.parametrize("option", [{"max_grad_norm": 1.0}, {"skip_nonfinite": True}, {"capturable": True}])
def test_gradient_release_refuses_what_needs_every_gradient(option: dict[str, Any]) -> None:
    model = network()
    with pytest.raises(InputError, match="every gradient"):
        gpuopt.torch.release_gradients(model, gpuopt.torch.AdamW(model.parameters(), **option))


@pytest.mark.parametrize("option", ["capturable", "differentiable"])
def test_gradient_release_refuses_what_is_set_later(option: str) -> None:
    model = network()
    opt = gpuopt.torch.AdamW(model.parameters())
    gpuopt.torch.release_gradients(model, opt)
    before = bits(list(model.parameters()))
    opt.param_groups[0][option] = True
    with pytest.raises(InputError, match="every gradient"):
        model(torch.ones(2, 3)).sum().backward()
    assert bits(list(model.parameters())) == before


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
    for _ in range(4):
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
