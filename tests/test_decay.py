"""Weight decay as an option of every rule: each mode against a formula written here, alone, in groups, under schedules, in torch.

The oracle is always a composition: the rule's own oracle without a decay, and around it what the mode means.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from cases import CASES, Array, Case
from gpuopt import rules, schedules
from gpuopt.optim.decay import MODES
from samples import HOST_BACKENDS, bits, difference, everything, gradients, parameters, refused

TOLERANCE = 1e-12
WEIGHT_DECAY, LR_MAX = 0.3, 0.25
BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
OWN = {"SGD": "coupled", "Adam": "coupled", "AdamW": "decoupled", "Lion": "decoupled"}
EACH_MODE = pytest.mark.parametrize("mode", MODES)
SHAPES = [(), (7,), (0, 3), (3, 4), (2, 3, 5)]

# What happens to the parameter before the update, given p, lr, weight_decay, lr_max; nothing in the other modes.
BEFORE: dict[str, Callable[[Array, float, float, float], Array]] = {
    "decoupled": lambda p, lr, decay, peak: p - lr * decay * p,
    "lr_ratio": lambda p, lr, decay, peak: p - (lr / peak) * decay * p,
    "corrected": lambda p, lr, decay, peak: p - (lr**2 / peak) * decay * p,
}


def first_case(name: str) -> Case:
    """A row of the table of cases that has the rule's oracle, without its decay."""
    title = rules.get(name).title
    found = next(case for case in CASES if case.optimizer == title)
    if name in ("lamb", "lars"):  # they adapt where there is a decay, whoever carries it out
        return Case(title, found.options | {"weight_decay": 0.0, "always_adapt": True})
    own = {"weight_decay": 0.0} if "weight_decay" in rules.get(name).hyperparameters else {}
    return Case(title, {k: v for k, v in found.options.items() if k != "weight_decay"} | own)


def decayed_step(mode: str, oracle: Any, grads: list[Array], lr: float, decay: float, peak: float) -> None:
    """One step of the oracle with the decay of a mode around it."""
    old = [p.copy() for p in oracle.params]
    if mode == "coupled":
        grads = [g + decay * p for g, p in zip(grads, old, strict=True)]
    for p in oracle.params:
        p[...] = BEFORE.get(mode, lambda p, *_: p)(p, lr, decay, peak)
    oracle.step(grads)
    for p, q in zip(oracle.params, old, strict=True):
        if mode == "proximal":
            p /= 1 + lr * decay
        if mode == "cautious":  # Chen et al. 2025: where the update and the parameter have no opposite signs
            p -= np.where((q - p) * q >= 0, lr * decay * q, 0.0)


@EACH_MODE
@pytest.mark.parametrize("name", gpuopt.optimizers())
def test_every_rule_in_every_mode(name: str, mode: str) -> None:
    """Muon stands for AdaMuon where signs of updates decide: of matrices of signs, whose ranks are low, many are noise around 0."""
    name = "muon" if (name, mode) == ("adamuon", "cautious") else name
    case = first_case(name)
    lr = case.options.get("lr", rules.get(name).hyperparameters["lr"])
    params = parameters(SHAPES)
    oracle = case.oracle(params)
    options = case.options | {"weight_decay": WEIGHT_DECAY, "weight_decay_mode": mode, "lr_max": LR_MAX}
    ours = gpuopt.create(name, params, backend="numpy", **options)
    for step in range(10):
        grads = gradients(step, SHAPES)
        decayed_step(mode, oracle, grads, lr, WEIGHT_DECAY, LR_MAX)
        ours.step(grads)
    assert max(difference(p, q) for p, q in zip(params, oracle.params, strict=True)) < TOLERANCE


@BACKENDS
@EACH_MODE
@pytest.mark.parametrize("title", ["GD", "AdamW"])
def test_schedules_of_rate_and_decay(title: str, mode: str, backend: str) -> None:
    rate, decay = schedules.cosine(0.2, 20), schedules.linear(0.4, 20)
    params = parameters(SHAPES)
    case = Case(title, {"lr": 1.0, "weight_decay": 0.0})
    oracle: Any = case.oracle(params)
    options = {"lr": rate, "weight_decay": decay, "weight_decay_mode": mode, "lr_max": LR_MAX}
    ours = getattr(gpuopt, title)(params, backend=backend, **options)
    for step in range(12):
        if title == "GD":
            oracle.options["lr"] = rate(step)
        else:
            oracle.optimizer.param_groups[0]["lr"] = rate(step)
        grads = gradients(step, SHAPES)
        decayed_step(mode, oracle, grads, rate(step), decay(step), LR_MAX)
        ours.step(grads)
    assert max(difference(p, q) for p, q in zip(params, oracle.params, strict=True)) < TOLERANCE


def one_nan(p: Array) -> Array:
    """The same with every NaN as NumPy writes it: what an infinity less itself is has any sign."""
    numbers = p.view(p.real.dtype)
    numbers[np.isnan(numbers)] = np.nan
    return p


@BACKENDS
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.complex64], ids=lambda d: np.dtype(d).name)
def test_groups_of_every_mode_are_one_launch_and_do_not_notice_each_other(dtype: Any, backend: str) -> None:
    shape = [(50,)]
    values, grads = parameters(shape, dtype)[0], gradients(3, shape, dtype)[0]
    values[:4] = 1e-7, -1e-7, np.inf, 0.0
    grads[2:4] = 0.25, 0.0
    options: list[dict[str, Any]] = [{}, {"weight_decay": 0.0}, {"l1": 0.5}]
    options += [{"weight_decay_mode": mode, "lr_max": 0.5} for mode in MODES]
    alone = []
    for option in options:
        p = values.copy()
        gpuopt.SGD(p, **{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2, "backend": backend} | option).step(grads)
        alone.append(bits(one_nan(p)))
    params = [values.copy() for _ in options]
    groups = [{"params": p} | option for p, option in zip(params, options, strict=True)]
    opt = gpuopt.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.2, backend=backend)
    opt.step([grads] * len(groups))
    assert [bits(one_nan(p)) for p in params] == alone
    assert len({str(b) for b in alone}) == len(options) - 1  # SGD's own decay is coupled; every other is another
    assert opt.launches == 1


@BACKENDS
@pytest.mark.parametrize(("title", "mode"), OWN.items())
def test_a_rules_own_form_by_the_option_has_its_bits(title: str, mode: str, backend: str) -> None:
    results = []
    for options in ({}, {"weight_decay_mode": mode}):
        params = parameters(dtype=np.float32)
        opt = getattr(gpuopt, title)(params, lr=0.05, weight_decay=0.1, backend=backend, **options)
        for step in range(3):
            opt.step(gradients(step, dtype=np.float32))
        results.append(bits(params))
    assert results[0] == results[1]


@BACKENDS
def test_cautious_decay_spares_what_the_update_moves_away_from_zero(backend: str) -> None:
    """Signs are told exactly, where products of the smallest numbers would be zero."""
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    p = np.array([1, 1, 1, -1, -1, 4 * tiny, 4 * tiny, 0], np.float32)
    g = np.array([1, -1, 0, 1, -1, -tiny, tiny, 1], np.float32)
    gpuopt.GD(p, lr=1.0, weight_decay=0.5, weight_decay_mode="cautious", backend=backend).step(g)
    expected = [1 - 1 - 0.5, 2, 0.5, -2, -1 + 1 + 0.5, 5 * tiny, tiny, -1]
    assert p.tolist() == np.array(expected, np.float32).tolist()


@BACKENDS
def test_proximal_decay_with_l1_is_the_proximal_operator_of_both(backend: str) -> None:
    """argmin over x of (x - v)^2 / 2 + lr l1 |x| + lr weight_decay x^2 / 2, found by search."""
    v = np.linspace(-2, 2, 9)
    p = v.copy()
    gpuopt.GD(p, lr=0.5, l1=0.4, weight_decay=0.6, weight_decay_mode="proximal", backend=backend).step(np.zeros(9))
    x = np.linspace(-2, 2, 40_001)[:, None]
    costs = (x - v) ** 2 / 2 + 0.5 * 0.4 * abs(x) + 0.5 * 0.6 * x**2 / 2
    assert abs(p - x[costs.argmin(0), 0]).max() < 1e-4


# ---------------------------------------------------------------------------------------------------- lr_max, rules without


@BACKENDS
def test_lr_max_is_the_rate_that_a_group_is_made_with(backend: str) -> None:
    p, q = np.ones(3), np.ones(3)
    groups = [{"params": p}, {"params": q, "lr": 0.5}]
    opt = gpuopt.GD(groups, lr=0.25, weight_decay=0.1, weight_decay_mode="lr_ratio", backend=backend)
    assert [g["lr_max"] for g in opt.param_groups] == [0.25, 0.5]
    for group in opt.param_groups:
        group["lr"] /= 2
    opt.step([np.zeros(3), np.zeros(3)])
    assert p.tolist() == q.tolist() == [0.95] * 3


@pytest.mark.parametrize("rate", [0.0, schedules.constant(0.1)])
@pytest.mark.parametrize("mode", ["lr_ratio", "corrected"])
def test_a_rate_that_tells_no_largest_one_needs_lr_max(mode: str, rate: Any) -> None:
    for make in (gpuopt.AdamW, lambda p, **o: gpuopt.torch.AdamW([torch.zeros(3, requires_grad=True)], **o)):
        with pytest.raises(gpuopt.InputError, match=r"needs lr_max|AdamW: lr = "):
            make(np.ones(3), lr=rate, weight_decay_mode=mode)
    gpuopt.AdamW(np.ones(3), lr=rate, weight_decay_mode=mode, lr_max=0.1, backend="numpy").step(np.ones(3))


def test_a_mode_that_is_set_later() -> None:
    p = np.ones(3)
    opt = gpuopt.GD(p, lr=0.5, weight_decay=0.1, backend="numpy")
    opt.step(np.zeros(3))
    opt.param_groups[0]["weight_decay_mode"] = "corrected"
    with refused(opt, gpuopt.InputError, "param_groups[0]", "lr_max"):
        opt.step(np.zeros(3))
    opt.param_groups[0]["lr_max"] = 1.0
    opt.step(np.zeros(3))
    np.testing.assert_allclose(p, 0.95 * (1 - 0.025), rtol=1e-15)
    opt.param_groups[0]["weight_decay_mode"] = None
    opt.step(np.zeros(3))
    np.testing.assert_allclose(p, 0.95**2 * (1 - 0.025), rtol=1e-15)


@gpuopt.rule(state=("m",))
def plain(p, g, m, *, lr, beta1=0.9):
    """A rule with no decay of its own."""
    m = beta1 * m + g
    p = p - lr * m
    return p, m


@gpuopt.rule
def without_rate(p, g, *, gain):
    """A rule without lr."""
    p = p - gain * g
    return p


@BACKENDS
def test_a_rule_without_a_decay_has_one_by_the_mode(backend: str) -> None:
    p = np.ones(3)
    gpuopt.optimizer(plain, p, lr=0.5, weight_decay=0.1, weight_decay_mode="decoupled", backend=backend).step(
        np.zeros(3)
    )
    assert p.tolist() == [0.95] * 3
    gpuopt.optimizer(without_rate, p, gain=0.5, weight_decay=0.1, weight_decay_mode="coupled", backend=backend).step(
        0 * p
    )
    np.testing.assert_allclose(p, 0.95**2, rtol=1e-15)
    t = torch.ones(3, requires_grad=True)
    t.grad = torch.zeros(3)
    opt = gpuopt.torch.make_optimizer(plain)([t], lr=0.5, weight_decay=0.1, weight_decay_mode="proximal")
    opt.step()
    np.testing.assert_allclose(t.detach().numpy(), 1 / 1.05, rtol=1e-7)


@pytest.mark.parametrize(
    ("rule", "options", "words"),
    [
        (plain, {"lr": 0.1, "weight_decay": 0.1}, "Plain has no decay of its own: expected weight_decay_mode"),
        (plain, {"lr": 0.1, "weight_decay": schedules.constant(0.1)}, "Plain has no decay of its own"),
        (without_rate, {"gain": 0.1, "weight_decay_mode": "cautious"}, "WithoutRate has no lr: expected 'coupled'"),
        (plain, {"lr": 0.1, "weight_decay_mode": "l2"}, "expected one of (None, 'coupled', 'decoupled'"),
        (plain, {"lr": 0.1, "weight_decay_mode": "lr_ratio", "lr_max": 0.0}, "lr_max = 0.0: expected a number in (0, inf)"),
    ],
)  # fmt: skip
def test_errors(rule: Any, options: dict[str, Any], words: str) -> None:
    for make in (gpuopt.make_optimizer(rule), gpuopt.torch.make_optimizer(rule)):
        params: Any = [torch.zeros(3, requires_grad=True)] if "torch" in str(make.__mro__) else np.ones(3)
        with pytest.raises(gpuopt.InputError) as caught:
            make(params, **options)
        assert words in str(caught.value)


def test_mode_and_largest_rate_are_saved() -> None:
    def make(**options: Any) -> Any:
        return gpuopt.GD(np.ones(3), lr=0.5, weight_decay=0.1, backend="numpy", **options)

    opt = make(weight_decay_mode="lr_ratio")
    opt.param_groups[0]["lr"] = 0.1
    saved = json.loads(json.dumps(opt.state_dict(), default=lambda a: a.tolist()))
    again, plain_one = make(weight_decay_mode="cautious"), make()
    again.load_state_dict(saved)
    opt.step(np.zeros(3)), again.step(np.zeros(3))
    assert everything(opt) == everything(again)
    again.load_state_dict(plain_one.state_dict())
    assert again.param_groups[0]["weight_decay_mode"] is None


# ---------------------------------------------------------------------------------------------------- torch


@EACH_MODE
def test_torch_with_a_scheduler_and_torchs_checkpoint(mode: str) -> None:
    """lr_max is the rate of the constructor, also behind a checkpoint of torch's own class, which knows of none."""
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)
    p, q = start.clone().requires_grad_(), start.clone().requires_grad_()
    options = {"lr": 0.1, "weight_decay": WEIGHT_DECAY, "weight_decay_mode": mode}
    opt, theirs = gpuopt.torch.AdamW([p], **options), torch.optim.AdamW([q], lr=0.1, weight_decay=WEIGHT_DECAY)
    oracle: Any = Case("AdamW", {"lr": 0.1, "weight_decay": 0.0}).oracle([start.numpy()])
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 0.25, 1.0, 5)
    for step in range(8):
        if step == 4:
            saved = opt.state_dict()
            q.grad = torch.ones_like(q)
            theirs.step()
            foreign = {"state": saved["state"], "param_groups": theirs.state_dict()["param_groups"]}
            foreign["param_groups"][0]["lr"] = opt.param_groups[0]["lr"]
            opt.load_state_dict(foreign)
        rate = oracle.optimizer.param_groups[0]["lr"] = opt.param_groups[0]["lr"]
        g = gradients(step, [(9,)])[0]
        decayed_step(mode, oracle, [g], rate, WEIGHT_DECAY, 0.1)
        p.grad = torch.from_numpy(g)
        opt.step()
        schedule.step()
    assert difference(p.detach().numpy(), oracle.params[0]) < TOLERANCE


def test_torch_groups_of_different_modes_have_the_bits_of_arrays() -> None:
    params = parameters([(5, 7)] * len(MODES), np.float32)
    options = [{"weight_decay_mode": mode, "lr_max": 0.5} for mode in MODES]
    arrays = [{"params": p.copy(), **o} for p, o in zip(params, options, strict=True)]
    leaves = [torch.tensor(p, requires_grad=True) for p in params]
    tensors = [{"params": [p], **o} for p, o in zip(leaves, options, strict=True)]
    ours, theirs = gpuopt.Lion(arrays, lr=0.1, weight_decay=0.2), gpuopt.torch.Lion(tensors, lr=0.1, weight_decay=0.2)
    for step in range(3):
        grads = gradients(step, [(5, 7)] * len(MODES), np.float32)
        ours.step(grads)
        for p, g in zip(leaves, grads, strict=True):
            p.grad = torch.from_numpy(g)
        theirs.step()
    assert bits([p.detach().numpy() for p in leaves]) == bits([group["params"] for group in arrays])
