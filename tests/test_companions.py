"""Options that keep another parameter beside each: averaged and slow weights, against their formulas in NumPy, in float64."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from cases import Array
from gpuopt.source import program
from samples import bits, difference, gradients, parameters, refused

LR, STEPS = 0.05, 11
SHAPES = ((3, 50), (7,), (), (130, 127), (0, 3))
OPTIONS: dict[str, dict[str, Any]] = {
    "ema": {"ema_decay": 0.9},
    "tail": {"tail_ema": (4, 5)},
    "lookahead": {"lookahead": (3, 0.25)},
    "both": {"ema_decay": 0.9, "lookahead": (3, 0.25), "l1": 0.1},
}


def expected(
    ema_decay: float = 0.0, tail_ema: Any = None, lookahead: Any = None, l1: float = 0.0, lower: float = -np.inf
) -> tuple[list[Array], list[Array]]:
    """Gradient descent, its parameters and averages: timm's ModelEma, a tail from a step on, Zhang et al. 2019."""
    params = parameters(SHAPES)
    averages, slows = copy.deepcopy(params), copy.deepcopy(params)
    for t in range(1, STEPS + 1):
        for k, g in enumerate(gradients(t, SHAPES)):
            p = params[k] - LR * g
            p = np.sign(p) * np.maximum(np.abs(p) - LR * l1, 0)
            if lookahead and t % lookahead[0] == 0:
                p = slows[k] = slows[k] + lookahead[1] * (p - slows[k])
            params[k] = p = np.maximum(p, lower)
            if tail_ema:
                averages[k] = p if t < tail_ema[0] else averages[k] + (p - averages[k]) / tail_ema[1]
            else:
                averages[k] = ema_decay * averages[k] + (1 - ema_decay) * p
    return params, averages


def stepped(opt: Any, first: int = 1, last: int = STEPS) -> None:
    for t in range(first, last + 1):
        opt.step(gradients(t, SHAPES, opt.param_groups[0]["params"][0].dtype))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("option", OPTIONS)
def test_option_is_its_formula(option: str, backend: str) -> None:
    params = parameters(SHAPES)
    opt = gpuopt.GD(params, lr=LR, backend=backend, **OPTIONS[option])
    stepped(opt)
    known, averages = expected(**OPTIONS[option])
    assert max(difference(p, q) for p, q in zip(params, known, strict=True)) < 1e-12
    if option != "lookahead":
        found = opt.averaged_params()
        assert max(difference(p, q) for p, q in zip(found, averages, strict=True)) < 1e-12
    else:
        with pytest.raises(gpuopt.InputError, match="ema_decay"):
            opt.averaged_params()
    assert not hasattr(opt, "eval"), "trainers call it wherever there is one"


def test_bounds_hold_for_what_is_pulled_back() -> None:
    params = parameters(SHAPES)
    opt = gpuopt.GD(params, lr=LR, backend="numpy", bounds=[(-0.5, None)] * len(SHAPES), lookahead=(2, 0.5))
    stepped(opt)
    assert all(
        difference(p, q) < 1e-12 for p, q in zip(params, expected(lookahead=(2, 0.5), lower=-0.5)[0], strict=True)
    )
    assert min(p.min() for p in params if p.size) == -0.5


@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o)), "state_dict"])
def test_a_checkpoint_goes_on_bit_for_bit(way: Any) -> None:
    """In the middle between two synchronisations, and in a tail."""
    options: dict[str, Any] = {"lr": 0.01, "backend": "numpy", "lookahead": (4, 0.5), "tail_ema": (3, 4)}
    params = parameters(SHAPES, np.float32)
    opt = gpuopt.AdamW(params, **options)
    stepped(opt, 1, 6)
    if way == "state_dict":
        again = gpuopt.AdamW([p.copy() for p in params], **options)
        again.load_state_dict(opt.state_dict())
    else:
        again = way(opt)
    for each in (opt, again):
        stepped(each, 7, 13)
    assert bits(opt.param_groups[0]["params"]) == bits(again.param_groups[0]["params"])
    assert bits(opt.state_dict()) == bits(again.state_dict())
    assert {"ema", "slow"} < opt.state_dict()["state"][0].keys()
    assert opt.nbytes == 4 * 4 * sum(p.size for p in params)


def test_a_state_that_was_not_saved_is_missed() -> None:
    opt = gpuopt.GD(np.ones(3), lr=LR, ema_decay=0.5)
    opt.step(np.ones(3))
    saved = opt.state_dict()
    del saved["state"][0]["ema"]
    with refused(opt, gpuopt.InputError, "ema is missing"):
        opt.load_state_dict(saved)


def test_groups_choose() -> None:
    """Another decay, none at all, and one that follows the step; launches of groups without an average move no more than before."""
    p, q, r = np.ones(3), np.ones(3), np.ones(3)
    groups = [
        {"params": p, "ema_decay": lambda taken: 0.5 * taken},
        {"params": q, "ema_decay": None},
        {"params": r, "ema_decay": 0.25},
    ]
    opt = gpuopt.GD(groups, lr=0.5, ema_decay=0.9)
    for _ in range(2):
        opt.step([np.ones(3)] * 3)
    found = opt.averaged_params()
    assert [a[0] for a in found] == [0.5 * 0.5 + 0.5 * 0, 0.0, 0.25 * (0.25 + 0.75 * 0.5) + 0.75 * 0]
    assert "ema" not in opt.state_dict()["state"].get(1, {})


def test_averages_are_kept_in_full_where_parameters_are_not() -> None:
    """A step of 0.001 of the difference is nothing to 16 bits."""
    import ml_dtypes

    p = np.zeros(64, ml_dtypes.bfloat16)
    opt = gpuopt.GD(p, lr=1.0, ema_decay=0.999, backend="numpy")
    opt.step(np.full(64, -1.0, ml_dtypes.bfloat16))
    for _ in range(999):
        opt.step(np.zeros(64, ml_dtypes.bfloat16))
    average = opt.state_dict()["state"][0]["ema"]
    assert average.dtype == np.float32 and abs(average[0] - (1 - 0.999**1000)) < 1e-3
    assert opt.averaged_params().dtype == p.dtype


def test_costs_are_a_read_and_a_write() -> None:
    """No pass, and no read of anything else."""
    for name, options, bytes_ in (
        ("adamw", {}, 28),
        ("adamw", {"ema_decay": 0.9}, 36),
        ("adamw", {"tail_ema": (100, 10)}, 36),
        ("adamw", {"lookahead": (5, 0.5)}, 36),
        ("adamw", {"lookahead": (5, 0.5), "ema_decay": 0.9, "cautious": "unscaled"}, 44),
        ("lamb", {"ema_decay": 0.9}, 52),
    ):
        made = program(name, **options)
        assert (len(made.passes), made.traffic()) == (3 if name == "lamb" else 1, bytes_)


REFUSED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("GD", {"ema_decay": 0.9, "tail_ema": (3, 4)}, ["ema_decay = 0.9", "tail_ema = (3, 4)"]),
    ("GD", {"ema_decay": 1.0}, ["ema_decay = 1.0", "[0, 1)"]),
    ("GD", {"tail_ema": 3}, ["tail_ema = 3", "(start, length)"]),
    ("GD", {"tail_ema": (3.5, 4)}, ["whole number of steps"]),
    ("GD", {"tail_ema": (3, 0)}, ["tail_ema", "[1, inf)"]),
    ("GD", {"lookahead": (0, 0.5)}, ["lookahead", "[1, inf)"]),
    ("GD", {"lookahead": (5, 1.5)}, ["lookahead", "[0, 1]"]),
    ("GD", {"lookahead": (5, lambda step: 0.5)}, ["lookahead"]),
    ("ScheduleFreeSGD", {"ema_decay": 0.9}, ["ema_decay", "average of its own"]),
]


@pytest.mark.parametrize(("name", "options", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused(name: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(gpuopt.InputError) as caught:
        gpuopt.create(name.lower(), np.ones(3), lr=LR, **options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_group_cannot_ask_for_a_state_that_the_optimizer_has_not() -> None:
    opt = gpuopt.GD(np.ones(3), lr=LR)
    opt.param_groups[0]["lookahead"] = (5, 0.5)
    with pytest.raises(gpuopt.InputError, match=r"lookahead = .*: its state is made where the optimizer itself"):
        opt.step(np.ones(3))


@pytest.mark.parametrize("differentiable", [False, True])
def test_torch_goes_with_arrays(differentiable: bool) -> None:
    arrays = parameters(SHAPES)
    tensors = [torch.from_numpy(p.copy()) for p in arrays]
    options: dict[str, Any] = {"lr": 0.01, "ema_decay": 0.9, "lookahead": (3, 0.5)}
    opt, like = gpuopt.torch.AdamW(tensors, differentiable=differentiable, **options), gpuopt.AdamW(arrays, **options)
    again = None
    for t in range(1, STEPS + 1):
        for p, g in zip(tensors, gradients(t, SHAPES), strict=True):
            p.grad = torch.from_numpy(g)
        (again or opt).step()
        like.step(gradients(t, SHAPES))
        if t == 5:
            again = gpuopt.torch.AdamW(tensors, differentiable=differentiable, **options)
            again.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert again is not None and list(again.state[tensors[0]]) == ["step", "exp_avg", "exp_avg_sq", "ema", "slow"]
    for p, q in zip([*tensors, *again.averaged_params()], [*arrays, *like.averaged_params()], strict=True):
        assert difference(p.numpy(), q) < 1e-14
    assert again.nbytes == like.nbytes
