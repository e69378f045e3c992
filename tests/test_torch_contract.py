"""What torch's users rely on besides the numbers: names, refusals, closures, hooks, threads, compiled models.

Schedulers and AMP are in test_torch_tools, states and checkpoints in test_torch_state, layouts in test_torch_memory.
"""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import gpuopt
import gpuopt.torch
from gpuopt import rules
from gpuopt.errors import InputError
from gpuopt.launch.stream import override
from gpuopt.native.torch import library
from gpuopt.torch.tensors import TorchStreams
from torch_samples import bits, copied, create, everything, furthest, gradients, parameters, title, train

NAMES = gpuopt.torch.optimizers()
SHARED = [title(name) for name in NAMES if getattr(gpuopt.torch, title(name)).twin]
ULPS = 16 * torch.finfo(torch.float32).eps  # values of order 1, a handful of steps, rounded in another order


# ---------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", SHARED)
def test_signature_has_torchs_arguments(name: str) -> None:
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    ours = inspect.signature(getattr(gpuopt.torch, name)).parameters
    for key, parameter in theirs.items():
        assert (ours[key].kind, ours[key].default) == (parameter.kind, parameter.default), key
    positional = [k for k, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [k for k, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD] == positional


@pytest.mark.parametrize("name", NAMES)
def test_create_makes_the_class_of_that_name(name: str) -> None:
    opt = create(name, parameters())
    assert type(opt) is getattr(gpuopt.torch, title(name)) and isinstance(opt, torch.optim.Optimizer)
    assert title(name) in dir(gpuopt.torch)


def test_unknown_names_and_arguments_are_refused() -> None:
    assert type(gpuopt.torch.create("AdamW", parameters())) is gpuopt.torch.AdamW
    with pytest.raises(InputError, match="unknown optimizer 'adamz'"):
        gpuopt.torch.create("adamz", parameters())
    with pytest.raises(AttributeError, match="AdamZ"):
        _ = gpuopt.torch.AdamZ
    with pytest.raises(TypeError, match="AdamW has no argument 'beta3'"):
        gpuopt.torch.AdamW(parameters(), beta3=0.9)
    with pytest.raises(TypeError, match="GD needs lr"):
        gpuopt.torch.GD(parameters())
    with pytest.raises(TypeError, match="by position"):
        gpuopt.torch.AdamW(parameters(), 1e-3, (0.9, 0.99), 1e-8, 0.0, False, 1.0)


def test_another_algorithm_is_refused() -> None:
    key = "decoupled_weight_decay"
    opt = gpuopt.torch.AdamW(parameters())
    before = everything(opt)
    with pytest.raises(InputError, match=f"{key} = False"):
        opt.add_param_group({"params": parameters(), key: False})
    assert everything(opt) == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_adam_with_decoupled_decay(dtype: torch.dtype) -> None:
    """As torch's, and as AdamW; a checkpoint brings the flag along and switches it in the middle of training."""
    options = {"lr": 0.01, "weight_decay": 0.3}
    made = [parameters(dtype=dtype) for _ in range(4)]
    decoupled = {**options, "decoupled_weight_decay": True}
    opts = [
        gpuopt.torch.Adam(made[0], **decoupled),
        torch.optim.Adam(made[1], **decoupled),
        gpuopt.torch.AdamW(made[2], **options),
    ]
    for opt, params in zip(opts, made, strict=False):
        train(opt, params, range(5))
    bound = 1e-15 if dtype == torch.float64 else ULPS
    assert max(furthest(made[0], made[k]) for k in (1, 2)) <= bound
    following = gpuopt.torch.Adam(made[3], lr=0.5)
    for p, q in zip(made[3], made[0], strict=True):
        p.data.copy_(q)
    following.load_state_dict(copied(opts[1].state_dict()))
    train(following, made[3], [5])
    train(opts[1], made[1], [5])
    assert furthest(made[3], made[1]) <= bound
    for opt, params in ((following, made[3]), (opts[1], made[1])):
        opt.param_groups[0]["decoupled_weight_decay"] = False
        train(opt, params, [6])
    assert furthest(made[3], made[1]) <= bound


def test_named_parameters() -> None:
    model = nn.Linear(3, 2)
    opt, theirs = gpuopt.torch.AdamW(model.named_parameters()), torch.optim.AdamW(model.named_parameters())
    assert opt.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]
    model.weight.grad = torch.ones(2, 3).to_sparse()
    with pytest.raises(TypeError, match="gradient of weight: 2 sparse axes"):
        opt.step()


# ---------------------------------------------------------------------------------------------------- the step itself

NO_OPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weight_decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "maximize": {"maximize": True},
    "l1": {"l1": 0.1},
    "clip_value": {"clip_value": 0.5},
    "max_grad_norm": {"max_grad_norm": 1.0},
    "skip_nonfinite": {"skip_nonfinite": True},
    "capturable": {"capturable": True},
    "bfloat16 states": {"state_format": "bfloat16"},
    "numba": {"backend": "numba"},
}


@pytest.mark.parametrize("option", NO_OPS)
@pytest.mark.parametrize("name", NAMES)
def test_zero_gradients_with_lr_zero_change_no_parameter(name: str, option: str) -> None:
    """Tools for distributed checkpoints make such a step to have the states allocated."""
    known = inspect.signature(getattr(gpuopt.torch, title(name))).parameters
    given = {k: v for k, v in NO_OPS[option].items() if k in known}
    given = {k: v for k, v in given.items() if k != "weight_decay" or k in rules.get(name).hyperparameters}
    params = parameters()
    opt = create(name, params, **{"backend": "numpy", **given})
    before = bits(params)
    for group in opt.param_groups:
        group["lr"] = 0.0
    for p in params:
        p.grad = torch.zeros_like(p)
    opt.step()
    assert bits(params) == before
    train(opt, params, range(1, 2))
    once = any(
        s.init == "lr" and not s.cell for s in opt.rule.states
    )  # Rprop's lr is only what its step sizes begin with
    assert once or bits(params) == before, "lr = 0 moves nothing whatever the gradient"


def test_closure_runs_once_with_gradients_enabled() -> None:
    params, called = parameters(), []
    opt = gpuopt.torch.SGD(params, lr=0.1)

    def closure() -> torch.Tensor:
        called.append(torch.is_grad_enabled())
        opt.zero_grad()
        loss = sum((p * p).sum() for p in params)
        loss.backward()
        return loss

    with torch.no_grad():
        loss = opt.step(closure)
    assert called == [True] and loss.item() > 0
    assert all(torch.allclose(p, 0.8 * q) for p, q in zip(params, parameters(), strict=True))


def test_step_hooks_run_around_the_update() -> None:
    params = parameters()
    opt, seen = gpuopt.torch.SGD(params, lr=0.1), []
    pre = opt.register_step_pre_hook(lambda *_: seen.append(("pre", bits(params))))
    post = opt.register_step_post_hook(lambda *_: seen.append(("post", bits(params))))
    before = bits(params)
    train(opt, params, range(1))
    assert seen == [("pre", before), ("post", bits(params))] and bits(params) != before
    pre.remove()
    train(opt, params, range(1))
    post.remove()
    train(opt, params, range(1))
    assert len(seen) == 3


@pytest.mark.parametrize("register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook])
def test_hooks_of_all_optimizers_run(register: Any) -> None:
    params, seen = parameters(), []
    opt = gpuopt.torch.SGD(params, lr=0.1)

    def closure() -> float:
        return 7.0

    handle = register(lambda *given: seen.append(given))
    assert opt.step(closure) == opt.step(closure=closure) == 7.0
    handle.remove()
    assert opt.step(closure) == 7.0
    assert seen == [(opt, (opt, closure), {}), (opt, (opt,), {"closure": closure})]


def test_a_hook_may_change_what_step_is_given() -> None:
    params, called = parameters(), []
    opt = gpuopt.torch.SGD(params, lr=0.1)
    opt.register_step_pre_hook(lambda opt, args, kwargs: ((opt, lambda: called.append(1)), {}))
    train(opt, params, range(1))
    assert called == [1]


def test_a_step_that_calls_ours_has_its_hooks_run_once() -> None:
    class Twice(gpuopt.torch.SGD):  # type: ignore[name-defined, misc]
        def step(self, closure: Any = None) -> Any:
            super().step()
            return super().step(closure)

    found, expected, seen = parameters(), parameters(), []
    opt, usual = Twice(found, lr=0.1), gpuopt.torch.SGD(expected, lr=0.1)
    opt.register_step_pre_hook(lambda *_: seen.append(1))
    train(opt, found, [0])
    train(usual, expected, [0, 0])
    assert seen == [1] and bits(found) == bits(expected)


def test_hooks_run_where_a_tool_has_wrapped_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, seen = gpuopt.torch.SGD.step, []
    monkeypatch.setattr(gpuopt.torch.SGD, "step", lambda self, *given: (seen.append("tool"), usual(self, *given))[1])
    monkeypatch.setattr(gpuopt.torch.SGD.step, "hooked", True, raising=False)
    params = parameters()
    opt = gpuopt.torch.SGD(params, lr=0.1)
    opt.register_step_pre_hook(lambda *_: seen.append("hook"))
    train(opt, params, range(1))
    assert seen == ["tool", "hook"]


def test_profilers_see_a_step_under_torchs_name() -> None:
    params = parameters()
    opt = gpuopt.torch.AdamW(params)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(opt, params, range(2))
    assert [e.name for e in profile.events()].count("Optimizer.step#AdamW.step") == 2


@pytest.mark.usefixtures("native")
def test_nothing_is_recorded_where_nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    params, recorded = parameters(), []
    opt = gpuopt.torch.AdamW(params)
    usual = torch.autograd.profiler.record_function
    monkeypatch.setattr("torch.autograd.profiler.record_function", lambda name: (recorded.append(name), usual(name))[1])
    train(opt, params, range(2))
    assert not recorded
    monkeypatch.setattr(library, "trouble", lambda: "a torch that does not tell")
    assert library.listener()()


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad(to_none: bool) -> None:
    params = parameters()
    opt = gpuopt.torch.AdamW(params)
    train(opt, params, range(2))
    opt.zero_grad(set_to_none=to_none)
    assert all(p.grad is None if to_none else not p.grad.any() for p in params)
    before = everything(opt)
    opt.step()
    assert (everything(opt) == before) is to_none, "a gradient of zeros is a step, a missing one is not"


def test_gradients_are_never_modified() -> None:
    options = dict(max_grad_norm=0.1, clip_value=0.05, maximize=True, l1=0.01, weight_decay=0.1)
    params = parameters()
    opt = gpuopt.torch.AdamW(params, **options)
    for number in range(3):
        given = gradients(params, number)
        for p, g in zip(params, given, strict=True):
            p.grad = g
        before = bits(given)
        opt.step()
        assert bits(given) == before and all(p.grad is g for p, g in zip(params, given, strict=True))


def test_gradient_accumulation_as_torch() -> None:
    def accumulated(cls: Any) -> Any:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        opt = cls(model.parameters(), lr=0.1)
        for _ in range(3):
            opt.zero_grad()
            for part in range(4):
                (model(torch.full((2, 3), 0.1 * part)).square().sum() / 4).backward()
            opt.step()
        return list(model.parameters())

    assert furthest(accumulated(gpuopt.torch.SGD), accumulated(torch.optim.SGD)) <= ULPS


@pytest.mark.parametrize("shapes", [[(130, 127), (5,)], [(3,)] * 300], ids=["two tensors", "many"])
def test_two_optimizers_in_two_threads(shapes: list[tuple[int, ...]]) -> None:
    def run(_: int) -> Any:
        params = parameters(shapes)
        train(gpuopt.torch.AdamW(params), params, range(20))
        return bits(params)

    alone = run(0)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(4))) == [alone] * 4


@pytest.mark.filterwarnings("ignore:.*record function.*")
def test_compiled_models_and_compiled_steps() -> None:
    """The step is no graph of torch's: a compiled function that calls it runs it as it is."""

    def run(compiled: bool) -> Any:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        opt = gpuopt.torch.AdamW(model.parameters())
        forward = torch.compile(model, backend="aot_eager") if compiled else model
        step = torch.compile(lambda: opt.step(), backend="eager") if compiled else opt.step
        for _ in range(3):
            opt.zero_grad()
            forward(torch.ones(2, 3)).sum().backward()
            step()
        return bits(list(model.parameters()))

    assert run(True) == run(False)


def test_the_stream_is_asked_for_by_the_number_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch takes for the current device may be another one than where the step is: it sets devices late."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=100 + device))
    with TorchStreams():
        current = override.get()
        assert current is not None and [current(0), current(3)] == [100, 103]
    assert override.get() is None


FLAGS = [
    ("sgd", "nesterov"),
    ("rmsprop", "centered"),
    ("adam", "amsgrad"),
    ("adagrad", "maximize"),
    ("adamw", "maximize"),
]


@pytest.mark.parametrize("name, flag", FLAGS)
def test_flags_may_be_numpys(name: str, flag: str) -> None:
    """As they come out of a table of settings."""
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    results = []
    for made in (bool, np.bool_):
        params, arrays = parameters(), [np.ones(3)]
        opt = create(name, params, lr=0.1, **momentum, **{flag: made(True)})
        train(opt, params, range(2))
        opt.param_groups[0][flag] = made(False)
        train(opt, params, range(2, 4))
        own = gpuopt.create(name, arrays, lr=0.1, backend="numpy", **momentum, **{flag: made(True)})
        own.step([np.ones(3)])
        results.append((params, arrays))
    (params, arrays), (others, twins) = results
    assert furthest(params, others) == 0 and np.array_equal(arrays, twins)
