"""Rules of one's own whose names or titles are those of optimizers of torch or of gpuopt: the rule alone says what they do."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from gpuopt import rules
from gpuopt.rules.language import Rule
from torch_samples import bits, furthest

# Names of torch's optimizers, of such as gpuopt does not have too, and of what else `torch.optim` holds.
TITLES = ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam", "LBFGS", "Optimizer", "Lion", "lr_scheduler"]


def made(title: str) -> Rule:
    """A rule that shares nothing but the title, and its function's name: gain grows with the step, so steps must be counted."""

    def function(p, g, m, *, lr=0.5, momentum=0.25, gain):  # type: ignore[no-untyped-def]
        m = m * momentum + g
        p = p - lr * gain * m
        return p, m

    function.__name__ = title.lower()
    result = gpuopt.rule(state=("m",), title=title)(function)

    @result.prepare
    def _(step, *, lr_decay=0.0):  # type: ignore[no-untyped-def]
        return dict(gain=step / (1 + lr_decay))

    return result


def run(opt: Any, p: Any, steps: range) -> None:
    for step in steps:
        grad = np.array([0.5, -1.0, 0.25 * step])
        if isinstance(p, torch.Tensor):
            p.grad = torch.from_numpy(grad)
            opt.step()
        else:
            opt.step([grad])


@pytest.mark.parametrize("title", TITLES)
def test_own_rules_keep_their_own_defaults(title: str) -> None:
    rule = made(title)
    cls = gpuopt.torch.make_optimizer(rule)
    array, p = np.ones(3), torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    arrays, opt = gpuopt.make_optimizer(rule)([array]), cls([p])
    assert list(inspect.signature(cls).parameters)[:4] == ["params", "lr", "momentum", "lr_decay"]
    assert {k: opt.defaults[k] for k in ("lr", "momentum", "lr_decay")} == {
        "lr": 0.5,
        "momentum": 0.25,
        "lr_decay": 0.0,
    }
    assert not {"foreach", "fused", "betas", "eps", "amsgrad"} & opt.defaults.keys()
    assert not opt.state, "no state before the first step"
    run(arrays, array, range(3))
    run(opt, p, range(3))
    assert np.array_equal(p.detach().numpy(), array)


@pytest.mark.parametrize("title", TITLES)
def test_own_rules_count_their_steps_in_checkpoints(title: str) -> None:
    cls = gpuopt.torch.make_optimizer(made(title))
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    opt = cls([p])
    run(opt, p, range(2))
    assert list(opt.state[p]) == ["step", "m"]
    q = torch.nn.Parameter(p.detach().clone())
    again = cls([q])
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    run(opt, p, range(2, 4))
    run(again, q, range(2, 4))
    assert furthest([q], [p]) == 0.0 and bits(again.state_dict()) == bits(opt.state_dict())


@pytest.mark.parametrize("name", rules.NAMES)
def test_gpuopts_own_are_torchs_twins(name: str) -> None:
    rule = rules.get(name)
    cls = gpuopt.torch.make_optimizer(rule)
    theirs = getattr(torch.optim, rule.title, None)
    assert cls.twin == (name if theirs and name != "muon" else ""), (
        "torch multiplies in bfloat16, and steps matrices only"
    )
    assert inspect.signature(cls) == inspect.signature(getattr(gpuopt.torch, rule.title))
    assert pickle.loads(pickle.dumps(rule)) is rule


def test_arguments_without_a_default_come_first() -> None:
    @gpuopt.rule()
    def mixed(p, g, *, lr=0.5, gain, beta1, beta2=0.5, rate):  # type: ignore[no-untyped-def]
        p = p - lr * gain * (beta1 + beta2) * rate * g
        return p

    @mixed.prepare
    def _(step, *, speed):  # type: ignore[no-untyped-def]
        return dict(rate=speed * step)

    cls = gpuopt.torch.make_optimizer(mixed)
    assert list(inspect.signature(cls).parameters)[:5] == ["params", "gain", "betas", "speed", "lr"]
    p = torch.nn.Parameter(torch.zeros(1))
    p.grad = torch.ones(1)
    cls([p], 2.0, (0.25, 0.75), 3.0).step()
    assert p.item() == -3.0
    with pytest.raises(TypeError, match="Mixed needs betas"):
        cls([p], gain=1.0, speed=1.0)
