"""Gradient release: step each parameter as soon as its gradient is complete, then free the gradient."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch

from gpuopt.errors import InputError
from gpuopt.torch.optimizer import TorchOptimizer

# Wrappers that put other gradients in place of those that backward leaves, when all of them are there.
SYNCHRONIZED = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}

SCALER = (
    "gradient release cannot go with a GradScaler, and one is in use here: gradients would be stepped before they are unscaled and "
    "looked at for infinities; train in bfloat16 without it, or step after backward()"
)


def release_gradients(model: torch.nn.Module, opt: TorchOptimizer) -> Callable[[], None]:
    """Make `backward()` update each parameter of `model` and set its `.grad` to None at once; returns a function that ends it.

    Memory for gradients falls from all parameters to the largest one. `opt.step()` then has nothing left to do and may stay
    in the loop. Each `backward()` is a step: gradients do not accumulate over several. Every parameter is a step of its own,
    which adds some 400 microseconds for each (1,000 of 1,000 numbers on two busy cores: 0.5 s instead of 0.03 s): worth it for
    few large parameters, not for many small ones.

    Raises InputError where a step needs every gradient at once (max_grad_norm, skip_nonfinite, capturable, differentiable), for
    an optimizer that is none of gpuopt.torch's or has no parameter of the model, and for a DistributedDataParallel or FSDP model;
    in `backward()`, before anything is stepped, where a GradScaler is in use.
    """
    check(model, opt)
    known = {p for group in opt.param_groups for p in group["params"]}
    params = [p for p in model.parameters() if p in known and p.requires_grad]
    if not params:
        raise InputError("release_gradients: the optimizer has none of the model's parameters that require a gradient")
    counted = 0

    def stepped(p: torch.Tensor) -> None:
        nonlocal counted
        counted += 1
        if counted & (counted - 1) == 0:  # the 1st, 2nd, 4th, ...: what comes into use later is found too, at no cost
            refuse_users(set(params))
        opt._step_one(p)
        p.grad = None

    hooks: list[Any] = [p.register_post_accumulate_grad_hook(stepped) for p in params]  # type: ignore[no-untyped-call]
    hooks.append(opt.register_step_pre_hook(refuse_scaled))

    def end() -> None:
        for hook in hooks:
            hook.remove()
        opt._save_steps()
        opt._reset()

    return end


def refuse_scaled(opt: torch.optim.Optimizer, *_: Any) -> None:
    """Before a step that a GradScaler asks for: raise InputError."""
    if getattr(opt, "grad_scale", None) is not None or getattr(opt, "found_inf", None) is not None:
        raise InputError(SCALER)


def check(model: torch.nn.Module, opt: Any) -> None:
    """Raise InputError for what cannot be released."""
    if not isinstance(opt, TorchOptimizer):
        found = f"{type(opt).__module__}.{type(opt).__qualname__}"
        raise InputError(
            f"release_gradients: the optimizer is a {found}: expected one of gpuopt.torch, which steps single parameters, "
            "itself and not in a wrapper"
        )
    settings = opt._settings()
    asked = {name: getattr(settings, name) for name in ("max_grad_norm", "skip_nonfinite", "capturable")}
    asked["differentiable"] = any(group.get("differentiable") for group in opt.param_groups)
    for name, value in asked.items():
        if value is not None and value is not False:
            raise InputError(f"gradient release cannot go with {name} = {value!r}: it needs every gradient at once")
    refuse_synchronized(model.modules())


def refuse_synchronized(found: Iterable[Any]) -> None:
    """Raise InputError if one of these is a module that exchanges gradients between processes."""
    for module in found:
        names = {cls.__name__ for cls in type(module).__mro__} & SYNCHRONIZED
        if names:
            raise InputError(
                f"gradient release cannot go with {names.pop()}: parameters would be updated with the gradients of this process "
                "alone, before they are exchanged; step after backward() instead"
            )


def refuse_users(params: set[torch.Tensor]) -> None:
    """Raise InputError where a GradScaler scales losses, or one of these parameters belongs to a model that exchanges gradients:
    neither leaves a trace in a gradient, so they are looked for among all objects, which takes some 20 ms.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    for each in gc.get_objects():
        names = {cls.__name__ for cls in type(each).__mro__}
        if "GradScaler" in names and getattr(each, "_enabled", False) and getattr(each, "_scale", None) is not None:
            raise InputError(SCALER)
        if distributed and names & SYNCHRONIZED and not params.isdisjoint(each.parameters()):
            refuse_synchronized([each])
