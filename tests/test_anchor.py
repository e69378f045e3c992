"""Decay towards an anchor, in every mode, against formulas in NumPy: L2-SP, Li, Grandvalet & Davoine 2018, and its kin."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from cases import Array
from gpuopt.optim.decay import MODES
from gpuopt.source import program
from samples import difference

LR, DECAY, PEAK, SHAPE = 0.1, 0.5, 0.2, (5, 7)
OPTIONS: dict[str, Any] = {"lr": LR, "weight_decay": DECAY, "lr_max": PEAK}
SHRINKS = {"decoupled": LR * DECAY, "lr_ratio": LR * DECAY / PEAK, "corrected": LR * LR * DECAY / PEAK}


def expected(mode: str, p: Array, a: Array, g: Array) -> Array:
    """A step of gradient descent."""
    if mode == "coupled":
        return p - LR * (g + DECAY * (p - a))
    if mode in SHRINKS:
        return a + (1 - SHRINKS[mode]) * (p - a) - LR * g
    if mode == "proximal":
        return (p - LR * g + LR * DECAY * a) / (1 + LR * DECAY)
    return p - LR * g - LR * DECAY * (p - a) * ((p - a) * g >= 0)


@pytest.mark.parametrize("kind", ["initial", "arrays"])
@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_its_formula(mode: str, backend: str, kind: str) -> None:
    """In torch too; a checkpoint in between keeps where it began."""
    rng = np.random.default_rng(0)
    p, other = rng.standard_normal((2, *SHAPE))
    q, a = p.copy(), p.copy() if kind == "initial" else other
    t = torch.nn.Parameter(torch.from_numpy(p.copy()))
    options = {**OPTIONS, "weight_decay_mode": mode}
    given: Any = kind if kind == "initial" else [other]
    opt = gpuopt.GD([p], backend=backend, anchor=given, **options)
    like = gpuopt.torch.SGD([t], anchor=kind if kind == "initial" else {t: torch.from_numpy(other)}, **options)
    for step in range(4):
        g = rng.standard_normal(SHAPE)
        t.grad = torch.from_numpy(g.copy())
        opt.step([g])
        like.step()
        q = expected(mode, q, a, g)
        if step == 1:
            saved = copy.deepcopy(opt.state_dict())
            opt = gpuopt.GD([p], backend=backend, anchor=given, **options)
            opt.load_state_dict(saved)
    assert difference(p, q) < 1e-14 and difference(t.detach().numpy(), q) < 1e-14
    assert ("anchor" in opt.state_dict()["state"][0]) is (kind == "initial")


def test_groups_and_tensors_choose() -> None:
    params = [np.ones(3) for _ in range(3)]
    groups = [{"params": params[0]}, {"params": params[1], "anchor": None}, {"params": params[2], "lr": 0.0}]
    opt = gpuopt.GD(groups, anchor="initial", weight_decay_mode="decoupled", **OPTIONS)
    opt.step([np.zeros(3)] * 3)
    assert [p[0] for p in params] == [1, 0.95, 1]
    p, q = np.ones(3), np.ones(3)
    opt = gpuopt.GD([p, q], anchor=[np.full(3, 3.0), None], weight_decay_mode="decoupled", **OPTIONS)
    opt.step([np.zeros(3)] * 2)
    assert difference(p, np.full(3, 1.1)) < 1e-15 and q[0] == 0.95


def test_what_it_takes() -> None:
    """The parameter's own bytes once, and a read more."""
    import ml_dtypes

    p = np.ones(64, ml_dtypes.bfloat16)
    opt = gpuopt.GD(p, anchor="initial", weight_decay_mode="decoupled", **OPTIONS)
    opt.step(np.ones(64, ml_dtypes.bfloat16))
    assert opt.nbytes == 2 * 64 and opt.state_dict()["state"][0]["anchor"].dtype == p.dtype
    decay = {"weight_decay": 0.1, "weight_decay_mode": "decoupled"}
    assert [program("adamw", anchor=a, **decay).traffic() for a in (None, "initial", True)] == [28, 32, 32]


def test_what_cannot_be_is_refused() -> None:
    p, decoupled = np.ones((3, 4)), {"weight_decay_mode": "decoupled"}
    for options, words in (
        ({"anchor": "initial"}, "expected a weight_decay_mode with it"),
        ({"anchor": [p]}, "expected a weight_decay_mode with it"),
        ({"anchor": "middle", **decoupled}, "anchor = 'middle': expected one of"),
        (
            {"anchor": [np.ones(4)], **decoupled},
            r"anchor of params.0.: float64 \(4,\) on cpu: expected float64 \(3, 4\)",
        ),
        ({"anchor": [1.0], **decoupled}, "anchor of params"),
    ):
        with pytest.raises(gpuopt.GpuoptError, match=words):
            gpuopt.AdamW([p], lr=0.1, **options)  # type: ignore[arg-type]
    t = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(gpuopt.InputError, match="expected a weight_decay_mode with it"):
        gpuopt.torch.AdamW([t], anchor={t: torch.zeros(3)})
    opt = gpuopt.AdamW([p], anchor="initial", weight_decay_mode="decoupled")
    with pytest.raises(gpuopt.InputError, match="expected one of the two"):
        opt.add_param_group({"params": np.ones(3)}, anchor=np.zeros(3))
