"""Gradient release: step each parameter as soon as its gradient is complete, then free the gradient."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from threading import RLock
from typing import Any
from weakref import WeakValueDictionary

import torch

from gpuopt.errors import InputError, entry
from gpuopt.torch.optimizer import TorchOptimizer

# Wrappers that put other gradients in place of those that backward leaves, when all of them are there.
SYNCHRONIZED = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}

BATCH = 1 << 20  # bytes of gradients that are stepped together, if no single one has more

SCALER = (
    "gradient release cannot go with a GradScaler, and one is in use here: gradients would be stepped before they are unscaled and "
    "looked at for infinities; train in bfloat16 without it, or step after backward()"
)


@entry
def release_gradients(model: torch.nn.Module, opt: TorchOptimizer) -> Callable[[], None]:
    """Make `backward()` update each parameter of `model` and set its `.grad` to None at once; returns a function that ends it.

    Memory for gradients falls from all parameters to 1 MiB and the largest one: a gradient waits until that much is there, or
    `backward()` is at its end, and those that waited are stepped together. `opt.step()` then has nothing left to do and may stay
    in the loop, where it steps parameters that are not the model's or were unfrozen since. Each `backward()` is a step: gradients
    do not accumulate over several. After one that raised an error, gradients that were waiting are still in `.grad`, as torch
    leaves them: `opt.zero_grad()` takes them out of the next.

    On one thread, 150 parameters of 1,000 numbers take 1.0 ms this way, 7 microseconds each, where `step()` takes 0.6 ms; each of
    more than 1 MiB is stepped alone, for some 0.2 ms on top of the update itself.

    Raises InputError where a step needs every gradient at once (max_grad_norm, skip_nonfinite, capturable, differentiable, sums
    over all tensors as of LAMB and Prodigy), for an optimizer that is none of gpuopt.torch's or has no parameter of the model, and
    for a DistributedDataParallel or FSDP model; in `backward()`, before anything is stepped, where a GradScaler is in use.
    """
    check(model, opt)
    known = {p for group in opt.param_groups for p in group["params"]}
    params = [p for p in model.parameters() if p in known and p.requires_grad]
    if not params:
        raise InputError("release_gradients: the optimizer has none of the model's parameters that require a gradient")
    release = Release(opt, set(params))
    hooks: list[Any] = [p.register_post_accumulate_grad_hook(release.take) for p in params]  # type: ignore[no-untyped-call]
    hooks.append(opt.register_step_pre_hook(refuse_scaled))

    def end() -> None:
        for hook in hooks:
            hook.remove()
        opt._save_steps()
        opt._reset()

    return end


@dataclass
class Batch:
    """Parameters whose gradients wait on one stream, and the bytes of these."""

    params: list[torch.Tensor] = field(default_factory=list)
    bytes: int = 0


class Waiting(dict[Any, Batch]):
    """What waits in one `backward()`, by stream; None for the CPU. Only torch keeps it, until that is over or has failed."""


class Release:
    """Steps parameters in batches, as their gradients come. They come in the same order every time, unless some come only
    sometimes, so batches are the same every time and the optimizer has its plans for them.
    """

    def __init__(self, opt: TorchOptimizer, params: set[torch.Tensor]) -> None:
        self.opt, self.params, self.passes = opt, params, 0
        self.waiting = WeakValueDictionary[int, Waiting]()  # by torch's number of the backward pass
        self.lock = RLock()  # each device has its thread in a backward pass

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def take(self, p: torch.Tensor) -> None:
        """The gradient of a parameter is complete."""
        with self.lock:
            number = torch._C._current_graph_task_id()
            waiting = self.waiting.get(number)
            if waiting is None:
                waiting = self.waiting[number] = self.begin()
            # Work on a gradient goes to the stream that made it, which is the current one here.
            stream = torch.cuda.current_stream(p.device) if p.is_cuda else None
            batch = waiting.get(stream)
            if batch is None:
                batch = waiting[stream] = Batch()
            batch.params.append(p)
            batch.bytes += p.nbytes
            if batch.bytes >= BATCH:
                self.step(waiting.pop(stream))

    def begin(self) -> Waiting:
        """A backward pass has begun: torch calls `finish` at its end, unless it fails."""
        check_options(self.opt)
        # At the 1st, 2nd, 4th, ...: what comes into use later is found too, at no cost. One that is refused does not count.
        if (self.passes + 1).bit_count() == 1:
            refuse_users(self.params)
        self.passes += 1
        made = Waiting()
        torch.autograd.Variable._execution_engine.queue_callback(partial(self.finish, made))
        return made

    def finish(self, waiting: Waiting) -> None:
        """A backward pass is at its end: step what still waits. The stream that goes on from here waits for it."""
        with self.lock:
            for stream, batch in waiting.items():
                if stream is None:
                    self.step(batch)
                    continue
                with torch.cuda.stream(stream):
                    self.step(batch)
                torch.cuda.current_stream(stream.device).wait_stream(stream)

    def step(self, batch: Batch) -> None:
        """Step a batch and free its gradients."""
        for p in self.opt._run(frozenset(p for p in batch.params if p.grad is not None)):
            p.grad = None


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
    check_options(opt)
    refuse_synchronized(model.modules())


def check_options(opt: TorchOptimizer) -> None:
    """Raise InputError for options that cannot be had."""
    settings = opt._settings()
    if opt.rule.joint:
        raise InputError(f"gradient release cannot go with {opt.rule.title}: a step of it needs every gradient at once")
    asked = {name: getattr(settings, name) for name in ("max_grad_norm", "skip_nonfinite", "capturable")}
    asked["differentiable"] = any(group.get("differentiable") for group in opt.param_groups)
    for name, value in asked.items():
        if value is not None and value is not False:
            raise InputError(f"gradient release cannot go with {name} = {value!r}: it needs every gradient at once")


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
    """Raise InputError where a GradScaler scales losses, or one of these parameters belongs to a model that exchanges gradients."""
    scaled, synchronized = users(params)
    if scaled:
        raise InputError(SCALER)
    refuse_synchronized(synchronized)


def users(params: set[torch.Tensor]) -> tuple[bool, list[torch.nn.Module]]:
    """Whether a GradScaler scales losses, and the modules with these parameters that exchange gradients: neither leaves a trace
    in a gradient, so they are looked for among all objects, which takes some 50 ms. A traceback should hold none of these.
    """
    everything = gc.get_objects()
    names = {kind: {cls.__name__ for cls in kind.__mro__} for kind in set(map(type, everything))}
    wanted = {kind for kind, of in names.items() if of & {"GradScaler", *SYNCHRONIZED}}
    found = [each for each in everything if type(each) in wanted]
    scalers = [each for each in found if "GradScaler" in names[type(each)]]
    scaled = any(getattr(s, "_enabled", False) and getattr(s, "_scale", None) is not None for s in scalers)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return scaled, []
    modules = [each for each in found if names[type(each)] & SYNCHRONIZED]
    return scaled, [module for module in modules if not params.isdisjoint(module.parameters())]
