"""PyTorch's own inputs for its optimizers, ours beside torch's: hooks and closures, wrong arguments."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.common_optimizers import OptimizerErrorEnum

from torch_inputs import CLASSES, Case, cases, check, mixed, snapshot

# ---------------------------------------------------------------------------------------------------- hooks


def add_note(opt: Any) -> None:
    opt.state["test"] = 1


def take_note(opt: Any, saved: dict[str, Any]) -> dict[str, Any]:
    saved["had"] = saved["state"].pop("test", None)
    return saved


@pytest.mark.parametrize("pre", [True, False])
@pytest.mark.parametrize("post", [True, False])
@CLASSES
def test_hooks_of_state_dict(info: Any, pre: bool, post: bool) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        opt = case.make(cls, [torch.rand(2, 3, requires_grad=True)])
        if pre:
            opt.register_state_dict_pre_hook(add_note)
        if post:
            opt.register_state_dict_post_hook(take_note)
        made = opt.state_dict()
        return list(made), made.get("had"), made["state"].get("test")

    check(scenario, cases(info, differentiable=True))


def to_2(opt: Any, saved: dict[str, Any]) -> None:
    saved["param_groups"][0]["lr"] = 0.002


def to_3(opt: Any, saved: dict[str, Any]) -> dict[str, Any]:
    mine = copy.deepcopy(saved)
    mine["param_groups"][0]["lr"] = 0.003
    return mine


def look_at(opt: Any) -> None:
    opt.state["rate"], opt.state["seen"] = opt.param_groups[0]["lr"], True


@pytest.mark.parametrize(
    "hooks", [[to_2], [to_3], [to_2, to_3], [to_3, to_2], []], ids=lambda h: "-".join(f.__name__ for f in h)
)
@pytest.mark.parametrize("prepend", [True, False])
@CLASSES
def test_hooks_of_load_state_dict(info: Any, hooks: Any, prepend: bool) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        opt = case.make(cls, [torch.rand(2, 3, requires_grad=True)])
        saved, seen = opt.state_dict(), []
        for hook in hooks:
            opt.register_load_state_dict_pre_hook(hook, prepend=prepend)
        opt.load_state_dict(saved)
        seen.append(opt.param_groups[0]["lr"])
        opt.register_load_state_dict_post_hook(look_at, prepend=prepend)
        opt.load_state_dict(opt.state_dict())
        return [*seen, opt.param_groups[0]["lr"], opt.state["rate"], opt.state["seen"]]

    check(scenario, cases(info, differentiable=True))


@CLASSES
def test_hooks_of_step(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        params, order = [torch.tensor([1.0, 1.0])], []
        opt, other = case.make(cls, params), cls(params, lr=0.1)

        def note(what: str) -> Any:
            return lambda opt, args, kwargs: order.append((what, len(args), len(kwargs)))

        handles = [
            register_optimizer_step_pre_hook(note("before all")),
            register_optimizer_step_post_hook(note("after all")),
        ]
        for each in (opt, other):
            handles += [each.register_step_pre_hook(note("before")), each.register_step_post_hook(note("after"))]
        try:
            opt.step()
            other.step(lambda: 1)
            opt.step(closure=lambda: 2)
        finally:
            for handle in handles:
                handle.remove()
        opt.step()
        return order

    check(scenario, cases(info, differentiable=True))


@CLASSES
def test_a_pre_hook_may_change_the_arguments(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        opt = case.make(cls, [torch.tensor([1.0, 1.0])])
        opt.register_step_pre_hook(lambda opt, args, kwargs: ((lambda: 7,), {}))
        result = opt.step()
        opt.register_step_pre_hook(lambda opt, args, kwargs: 3)
        return result, opt.step()

    check(scenario, cases(info), fails=True)


# ---------------------------------------------------------------------------------------------------- wrong arguments


def errors(info: Any) -> list[Any]:
    return info.optim_error_inputs_func(device="cpu", dtype=torch.float32)


@CLASSES
def test_torchs_error_inputs(info: Any) -> None:
    """As torch gives them, which is None for params in many, and with parameters that are right."""

    for k, error in enumerate(errors(info)):

        def scenario(cls: Any, case: Case, k: int = k, at: Any = error.error_on) -> Any:
            wrong = errors(info)[k].optimizer_error_input
            params = [torch.nn.Parameter(torch.ones(2, 2))] if case.tags else wrong.params
            opt = cls(params, **case.kwargs)
            if at is OptimizerErrorEnum.STEP_ERROR:
                opt.step()

        wrong = error.optimizer_error_input
        if any(isinstance(p, torch.Tensor) and p.is_complex() for p in wrong.params or ()):
            continue  # torch's Adafactor takes no complex numbers
        made = [Case(info, wrong.kwargs, wrong.desc, {"right"})] if wrong.params is None else []
        made += [Case(info, wrong.kwargs, wrong.desc)] if not made or not mixed(made[0]) else []
        check(scenario, made, fails=True)


def wrong_params() -> dict[str, Any]:
    """Values for `params`, right and wrong ones."""
    p, q = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    return {
        "a parameter": p,
        "None": None,
        "nothing": [],
        "an empty group": [{"params": []}],
        "numbers": [1.0],
        "text": "weight",
        "a set": {p, q},
        "a group with a set": [{"params": {p, q}}],
        "a group without parameters": [{"lr": 0.1}],
        "a group with one": [{"params": p}],
        "no leaf": [p * 2],
        "twice": [p, p],
        "in two groups": [{"params": [p]}, {"params": [q, p]}],
        "names and none": [("a", p), q],
        "groups with names and without": [{"params": [("a", p)]}, {"params": [q]}],
        "a generator": (x for x in (p, q)),
        "a tuple": (p, q),
        "a dict": {"a": p},
        "a dict of names": {"params": [p]},
        "arrays": [p.detach().numpy()],
        "names": [("a", p), ("b", q)],
        "the same name twice": [("a", p), ("a", q)],
        "whole numbers": [torch.ones(2, 2, dtype=torch.int64)],
        "no gradients": [torch.ones(2, 2)],
    }


@pytest.mark.parametrize("what", wrong_params())
@CLASSES
def test_params_of_every_kind(info: Any, what: str) -> None:
    def made(cls: Any, case: Case) -> Any:
        return [list(g) for g in case.make(cls, wrong_params()[what]).param_groups]

    def added(cls: Any, case: Case) -> Any:
        opt = case.make(cls, [torch.nn.Parameter(torch.ones(2, 2))])
        opt.add_param_group({"params": wrong_params()[what]})
        return [list(g) for g in opt.param_groups]

    def as_group(cls: Any, case: Case) -> Any:
        opt = case.make(cls, [torch.nn.Parameter(torch.ones(2, 2))])
        opt.add_param_group(wrong_params()[what])
        return [list(g) for g in opt.param_groups]

    for scenario in (made, added, as_group):
        check(scenario, [Case(info, {}, "default")], fails=True)


NUMBERS = {
    "-1": -1.0,
    "0": 0.0,
    "1": 1.0,
    "2": 2.0,
    "whole": 1,
    "nan": float("nan"),
    "inf": float("inf"),
    "None": None,
    "text": "0.1",
    "a tensor": torch.tensor(0.5, dtype=torch.float64),
    "a tensor of one": torch.tensor([0.5], dtype=torch.float64),
    "two": torch.tensor([0.1, 0.2]),
    "none": torch.tensor([]),
    "a list": [0.1],
}


@pytest.mark.parametrize("name", NUMBERS)
@CLASSES
def test_rates_of_every_kind(info: Any, name: str) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        p = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
        opt = case.make(cls, [p])
        p.grad = torch.full((2, 2), 0.5, dtype=torch.float64)
        opt.step()
        return snapshot(opt, [p])[:2]

    tags = {"infinite"} if name in ("inf", "nan") else set()
    check(scenario, [Case(info, {"lr": NUMBERS[name]}, name, tags)], fails=True)


@CLASSES
def test_steps_of_a_parameter_that_is_there_twice(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        p = torch.nn.Parameter(torch.ones(2, 2))
        p.grad = torch.ones(2, 2)
        case.make(cls, [p, p]).step()

    check(scenario, [c for c in cases(info, "twice") if not c.kwargs.get("foreach")], fails=True)


@CLASSES
def test_closures(info: Any) -> None:
    """Called once with gradients on, whatever is around; what it returns is returned, and what it raises stops the step."""

    def scenario(cls: Any, case: Case) -> Any:
        p, seen = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64)), []
        opt = case.make(cls, [p])

        def closure() -> Any:
            seen.append(torch.is_grad_enabled())
            opt.zero_grad()
            loss = p.square().sum()
            loss.backward()
            return loss

        with torch.no_grad():
            seen.append(opt.step(closure).detach())
            seen.append(torch.is_grad_enabled())
        try:
            opt.step(lambda: 1 / 0)
        except ZeroDivisionError:
            seen.append("raised")
        for value in (None, 1, "text", torch.ones(3)):
            result = opt.step(lambda value=value: value)
            seen.append(result is value)
        return seen, snapshot(opt, [p])

    check(scenario, cases(info))
