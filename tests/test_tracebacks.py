"""A user's mistake ends in a traceback of the user's own lines: gpuopt's frames are one at most, wherever the mistake was made."""

import os
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch

HOME = os.path.dirname(gpuopt.__file__) + os.sep


@gpuopt.rule
def plain(p: Any, g: Any, *, lr: Any) -> Any:
    p = p - lr * g
    return p


def array() -> gpuopt.Optimizer:
    return gpuopt.AdamW([np.zeros(2)], backend="numpy")


def parameter() -> torch.nn.Parameter:
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    return p


def model() -> torch.nn.Module:
    return torch.nn.Linear(1, 1)


def own(params: Any, **options: Any) -> Any:
    return gpuopt.make_optimizer(plain)(params, **options)


def sparse_step() -> None:
    p = torch.nn.Parameter(torch.eye(2))
    p.grad = torch.eye(2).to_sparse()
    gpuopt.torch.AdamW([p]).step()


def hooked_step() -> None:
    p = torch.nn.Parameter(torch.eye(2))
    p.grad = torch.eye(2).to_sparse()
    opt = gpuopt.torch.AdamW([p])
    opt.register_step_pre_hook(lambda *_: None)
    opt.step()


def two_by_position(step: Any, lr: Any) -> Any:
    return {"a": step * lr}


def by_position(lr: Any, /) -> None:
    return None


def rule_of(function: Any) -> Any:
    return gpuopt.rule(state={"m": 1.0})(function)  # type: ignore[dict-item]


MISTAKES: dict[str, Callable[[], Any]] = {
    "class": lambda: gpuopt.AdamW([np.zeros(2)], lr="x"),
    "class, params": lambda: gpuopt.Lion([[1.0, 2.0]]),
    "class of own rule": lambda: own([np.zeros(2)], lr=-1.0),
    "optimizer": lambda: gpuopt.optimizer(plain, [np.zeros(2)], lr=-1.0),
    "optimizer, no rule": lambda: gpuopt.optimizer(len, [np.zeros(2)]),  # type: ignore[arg-type]
    "Optimizer": lambda: gpuopt.Optimizer(plain, [np.zeros(2)], lr=-1.0),
    "create": lambda: gpuopt.create("adamw", [np.zeros(2)], lr="x"),
    "create, name": lambda: gpuopt.create("adamq", [np.zeros(2)]),
    "make_optimizer": lambda: gpuopt.make_optimizer(len),  # type: ignore[arg-type]
    "step, shape": lambda: array().step([np.zeros(3)]),
    "step, dtype": lambda: array().step([np.zeros(2, np.int64)]),
    "add_param_group": lambda: array().add_param_group({"params": [np.zeros(2)], "lr": "x"}),
    "load_state_dict": lambda: array().load_state_dict({}),
    "kernel_source": lambda: gpuopt.kernel_source("adamq"),
    "rule": lambda: rule_of(plain.function),
    "prepare": lambda: plain.prepare(two_by_position),
    "require": lambda: plain.require(by_position),
    "torch, class": lambda: gpuopt.torch.AdamW([parameter()], state_format="no"),
    "torch, create": lambda: gpuopt.torch.create("lion", [parameter()], lr="x"),
    "torch, name": lambda: gpuopt.torch.create("adamq", [parameter()]),
    "torch, make_optimizer": lambda: gpuopt.torch.make_optimizer(len),  # type: ignore[arg-type]
    "torch, add_param_group": lambda: gpuopt.torch.AdamW([parameter()]).add_param_group(
        {"params": [parameter()], "lr": "x"}
    ),
    "torch, step": sparse_step,
    "torch, step with a hook": hooked_step,
    "torch, release_gradients": lambda: gpuopt.torch.release_gradients(
        model(),
        torch.optim.SGD([parameter()], lr=0.1),  # type: ignore[arg-type]
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_own_frames_do_not_fill_the_traceback(what: str) -> None:
    with pytest.raises(gpuopt.GpuoptError) as caught:
        MISTAKES[what]()
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert sum(f.filename.startswith(HOME) for f in frames) <= 1
    assert frames[0].filename == __file__
    assert caught.value.__cause__ is not None or caught.value.__suppress_context__


def test_an_error_of_the_user_keeps_its_frames() -> None:
    """What is raised in a user's own function, such as a closure, is passed on as it is."""

    def closure() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        gpuopt.torch.AdamW([parameter()]).step(closure)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "closure"
