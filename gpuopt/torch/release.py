"""Gradient release: step each parameter as soon as its gradient is complete, then free the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpuopt.errors import InputError
from gpuopt.torch.optimizer import TorchOptimizer


def release_gradients(model: torch.nn.Module, opt: TorchOptimizer) -> Callable[[], None]:
    """Make `backward()` update each parameter of `model` and set its `.grad` to None at once; returns a function that ends it.

    Memory for gradients falls from all parameters to the largest one. `opt.step()` then has nothing left to do and may stay
    in the loop. Raises InputError with options that need every gradient at once (max_grad_norm, skip_nonfinite, capturable).
    """
    settings = opt._settings()
    if settings.max_grad_norm is not None or settings.skip_nonfinite or settings.capturable:
        raise InputError(
            "gradient release cannot go with max_grad_norm, skip_nonfinite or capturable: they need every gradient at once"
        )
    known = {p for group in opt.param_groups for p in group["params"]}

    def stepped(p: torch.Tensor) -> None:
        opt._step_one(p)
        p.grad = None

    hooks: list[Any] = [
        p.register_post_accumulate_grad_hook(stepped)  # type: ignore[no-untyped-call]
        for p in model.parameters()
        if p in known and p.requires_grad
    ]

    def end() -> None:
        for hook in hooks:
            hook.remove()
        opt._save_steps()
        opt._reset()

    return end
