"""The options every optimizer takes, against torch's utilities or a NumPy formula, in float64 on each host backend.

The oracle is always a composition: torch's optimizer, and around it what the option means, written out here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
from cases import Array, TorchOracle
from samples import HOST_BACKENDS, SHAPES, bits, difference, gradients, parameters

TOLERANCE = 1e-12
BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
# Three rules are enough here: options are fused around a rule and know none.
RULES: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
    "AdamW": {"lr": 0.05, "weight_decay": 0.1},
    "RMSprop": {"lr": 0.01, "eps": 1e-4},
}
NAMES = pytest.mark.parametrize("name", RULES)


def agree(
    name: str, backend: str, options: dict[str, Any], before: Callable[..., Any], after: Callable[..., Any]
) -> None:
    """20 steps of `name` with `options` equal torch's optimizer with `before(tensors)` and `after(tensors)` around it."""
    params = parameters()
    oracle = TorchOracle(name, params, **RULES[name])
    ours = getattr(gpuopt, name)(params, backend=backend, **RULES[name], **options)
    step_without = oracle.optimizer.step

    def step_between() -> None:
        before(oracle.tensors)
        step_without()
        after(oracle.tensors)

    oracle.optimizer.step = step_between
    for step in range(20):
        grads = gradients(step)
        kept = bits(grads)
        ours.step(grads)
        assert bits(grads) == kept, "gradients are only read"
        oracle.step(grads)
    assert max(difference(p, q) for p, q in zip(params, oracle.params, strict=True)) < TOLERANCE


def nothing(tensors: list[torch.Tensor]) -> None:
    """Neither before nor after the step."""


def threshold(tensors: list[torch.Tensor], amount: float) -> None:
    """The proximal operator of amount * |p|."""
    for t in tensors:
        t.copy_(torch.sign(t) * torch.clamp(torch.abs(t) - amount, min=0))


def grads_of(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [t.grad for t in tensors if t.grad is not None]


@BACKENDS
@NAMES
def test_l1_is_the_proximal_soft_threshold(name: str, backend: str) -> None:
    amount = RULES[name]["lr"] * 0.3
    agree(name, backend, {"l1": 0.3}, nothing, lambda tensors: threshold(tensors, amount))


@BACKENDS
def test_l1_makes_exact_zeros(backend: str) -> None:
    params = parameters()
    optimizer = gpuopt.SGD(params, lr=0.1, l1=2.0, backend=backend)
    for step in range(5):
        optimizer.step(gradients(step))
    assert 0.5 < np.mean(params[-1] == 0) < 1


@BACKENDS
@NAMES
def test_clip_value(name: str, backend: str) -> None:
    agree(name, backend, {"clip_value": 0.01}, lambda t: torch.nn.utils.clip_grad_value_(t, 0.01), nothing)


@BACKENDS
@pytest.mark.parametrize("bound", [0.0, 0.5, 40.0, 1e9])
@NAMES
def test_max_grad_norm(name: str, bound: float, backend: str) -> None:
    """The norm of all tensors is about 40 here, so that the bounds clip always, sometimes and never."""
    agree(name, backend, {"max_grad_norm": bound}, lambda t: torch.nn.utils.clip_grad_norm_(t, bound), nothing)


@BACKENDS
def test_a_norm_below_the_bound_changes_no_bit(backend: str) -> None:
    results = []
    for bound in (None, 1e9):
        params = parameters(dtype=np.float32)
        optimizer = gpuopt.Adam(params, max_grad_norm=bound, backend=backend)
        optimizer.step(gradients(0, dtype=np.float32))
        results.append(bits([params, optimizer.state_dict()["state"]]))
    assert results[0] == results[1]


@BACKENDS
@pytest.mark.parametrize("scale", [4.0, np.array([3.0]), np.array(3.0)], ids=["number", "one-element", "0-d"])
@NAMES
def test_grad_scale_divides_gradients(name: str, scale: Any, backend: str) -> None:
    divide = [float(np.asarray(scale).reshape(-1)[0])]
    agree(name, backend, {"grad_scale": scale}, lambda t: [g.div_(divide[0]) for g in grads_of(t)], nothing)


@BACKENDS
@NAMES
def test_everything_at_once(name: str, backend: str) -> None:
    """Unscale, clip by norm, clip by value, negate, step, threshold, prune: in this order."""
    rng = np.random.default_rng(2)
    masks = [rng.integers(0, 2, shape).astype(bool) for shape in SHAPES]
    options = {"grad_scale": 8.0, "max_grad_norm": 2.0, "clip_value": 0.02, "maximize": True, "l1": 0.1, "mask": masks}

    def before(tensors: list[torch.Tensor]) -> None:
        for g in grads_of(tensors):
            g.div_(8.0)
        torch.nn.utils.clip_grad_norm_(tensors, 2.0)
        torch.nn.utils.clip_grad_value_(tensors, 0.02)
        for g in grads_of(tensors):
            g.neg_()

    def after(tensors: list[torch.Tensor]) -> None:
        threshold(tensors, RULES[name]["lr"] * 0.1)
        for t, mask in zip(tensors, masks, strict=True):
            t.mul_(torch.from_numpy(mask))

    agree(name, backend, options, before, after)


@BACKENDS
def test_mask_keeps_pruned_weights_at_zero_and_only_those(backend: str) -> None:
    params, free = parameters(), parameters()
    rng = np.random.default_rng(4)
    masks: list[Array | None] = [rng.integers(0, 2, shape).astype(bool) for shape in SHAPES]
    masks[4] = None  # no mask for this tensor
    masked = gpuopt.Adam(params, lr=0.1, mask=masks, backend=backend)
    unmasked = gpuopt.Adam(free, lr=0.1, backend=backend)
    for step in range(5):
        masked.step(gradients(step))
        unmasked.step(gradients(step))
    for p, q, mask in zip(params, free, masks, strict=True):
        expected = q if mask is None else np.where(mask, q, 0.0)
        assert bits(p) == bits(expected), (
            "Adam's update does not depend on the parameter, so the rest is as without mask"
        )


@BACKENDS
def test_mask_in_another_memory_order(backend: str) -> None:
    mask = np.arange(12).reshape(3, 4) % 3 == 0
    results = []
    for given in (mask, np.asfortranarray(mask), mask.repeat(2, axis=1)[:, ::2], mask[::-1].copy()[::-1]):
        p = parameters([(3, 4)])[0]
        gpuopt.SGD(p, lr=0.1, mask=given, backend=backend).step(gradients(0, [(3, 4)])[0])
        results.append(bits(p))
    assert results == [results[0]] * 4


@BACKENDS
def test_lr_callable_gets_the_number_of_steps_already_taken(backend: str) -> None:
    asked: list[int] = []

    def schedule(taken: int) -> float:
        asked.append(taken)
        return 0.1 / (1 + taken)

    params = parameters()
    oracle = TorchOracle("AdamW", params, weight_decay=0.1)
    ours = gpuopt.AdamW(params, lr=schedule, weight_decay=0.1, l1=0.0, backend=backend)
    for step in range(10):
        oracle.optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        ours.step(gradients(step))
        oracle.step(gradients(step))
    assert list(dict.fromkeys(asked)) == list(range(10))
    assert max(difference(p, q) for p, q in zip(params, oracle.params, strict=True)) < TOLERANCE


@BACKENDS
def test_lr_callable_is_called_once_for_each_step(backend: str) -> None:
    """A schedule may draw its values from a generator."""
    values = iter([0.5, 0.25, 0.125])
    p = np.zeros(3)
    optimizer = gpuopt.GD([p], lr=lambda taken: next(values), backend=backend)
    for _ in range(3):
        optimizer.step([np.ones(3)])
    assert p.tolist() == [-0.875] * 3


@BACKENDS
def test_options_differ_by_group(backend: str) -> None:
    """Options are compiled in for all groups if one needs them; the others must not notice, not in one bit."""
    shape = [(50,)]
    values, grads = parameters(shape, np.float32)[0], gradients(3, shape, np.float32)[0]
    values[:2] = np.finfo(np.float32).smallest_subnormal, -1e-40
    options: list[dict[str, Any]] = [{}, {"l1": 0.5}, {"clip_value": 0.05}, {"maximize": True}, {"lr": lambda t: 0.3}]
    alone = []
    for option in options:
        p = values.copy()
        gpuopt.SGD(p, **{"lr": 0.1, "momentum": 0.9, "backend": backend} | option).step(grads)
        alone.append(bits(p))
    params = [values.copy() for _ in options]
    groups = [{"params": p} | option for p, option in zip(params, options, strict=True)]
    gpuopt.SGD(groups, lr=0.1, momentum=0.9, backend=backend).step([grads] * len(groups))
    assert [bits(p) for p in params] == alone
