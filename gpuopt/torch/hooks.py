"""Torch's hooks around a step. Used where the classes are made; knows no rule.

`torch.optim.Optimizer` wraps every step into its hooks and a record for profilers. The record alone takes longer than the update
of a small model, so it is left out where nothing listens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from gpuopt.errors import GpuoptError, outside
from gpuopt.native.torch import library


def defines(cls: type, name: str) -> type:
    """The class that a method of this one comes from."""
    return next(base for base in cls.__mro__ if name in vars(base))


def with_hooks(owner: type, step: Callable[..., Any]) -> Callable[..., Any]:
    """The `step` of a class, in what torch would wrap it into."""
    step = getattr(step, "__wrapped__", step)  # the entry is here
    recorded = torch.optim.Optimizer.profile_hook_step(step)

    @wraps(step)
    def hooked(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:  # an `entry` itself: one around it would take most of a microsecond a step
            if type(self).step is not hooked and defines(type(self), "step") is not owner:
                return step(self, *args, **kwargs)  # called from the step of a subclass, which torch has wrapped
            own = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
            if own or _global_optimizer_pre_hooks or _global_optimizer_post_hooks or library.listening():
                return recorded(self, *args, **kwargs)
            return step(self, *args, **kwargs)
        except GpuoptError as error:
            raise outside(error) from error.__cause__

    hooked.hooked = True  # type: ignore[attr-defined]  # torch asks for this before it wraps a class's step itself
    return hooked
