"""PyTorch's own inputs for its optimizers, ours beside torch's: state dicts, checkpoints, hooks, copies, wrong arguments."""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.common_optimizers import OptimizerErrorEnum
from torch.utils._python_dispatch import TorchDispatchMode

from torch_inputs import CLASSES, OURS, Case, cases, check, closure_of, detached, layer, mixed, snapshot

NAMED = pytest.mark.parametrize("named", [(a, b) for a in (True, False) for b in (True, False)], ids=str)


def given(params: Any, named: bool) -> Any:
    return [(f"name{k}", p) for k, p in enumerate(params)] if named else params


def trained(cls: Any, case: Case, steps: int = 3, named: bool = False) -> Any:
    """An optimizer after some steps, its parameters, and what makes a step."""
    weight, bias, x = layer()
    opt = case.make(cls, given([weight, bias], named))
    closure = closure_of(opt, weight, bias, x)
    for _ in range(steps):
        closure()
        opt.step()
    return opt, [weight, bias], lambda other, w, b: (closure_of(other, w, b, x)(), other.step())


def twin(params: Any) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


@NAMED
@CLASSES
def test_going_on_from_a_state_dict(info: Any, named: tuple[bool, bool]) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        opt, params, step = trained(cls, case, 10, named[0])
        copies = twin(params)
        other = case.make(cls, given(copies, named[1]))
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
        seen = []
        for _ in range(10):
            step(opt, *params)
            step(other, *copies)
            seen.append(all(torch.equal(p, q) for p, q in zip(params, copies, strict=True)))
        names = [group.get("param_names") for o in (opt, other) for group in o.state_dict()["param_groups"]]
        other.param_groups.extend(opt.param_groups)
        last = {k: v for k, v in other.state_dict()["param_groups"][-1].items() if k != "param_names"}
        return seen, names, snapshot(opt, params), [str(last[k]) for k in last if k != "params"], last["params"]

    check(scenario, cases(info))


@CLASSES
def test_older_state_dicts(info: Any) -> None:
    """Without the flags that torch added later."""

    def scenario(cls: Any, case: Case) -> Any:
        opt, params, step = trained(cls, case)
        old = copy.deepcopy(opt.state_dict())
        for group in old["param_groups"]:
            for flag in info.not_og_supported_flags:
                group.pop(flag, None)
        opt.load_state_dict(old)
        step(opt, *params)
        return snapshot(opt, params)[:2], [sorted(map(str, group.items())) for group in opt.state_dict()["param_groups"]]

    check(scenario, cases(info))


@CLASSES
def test_saved_and_read_again(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        opt, params, _ = trained(cls, case)
        file, made = io.BytesIO(), opt.state_dict()
        torch.save(made, file)
        read = [torch.load(io.BytesIO(file.getvalue()), weights_only=only) for only in (True, False)]
        read += [pickle.loads(pickle.dumps(made)), copy.deepcopy(made)]
        return [[[detached(list(s.values())) for s in r["state"].values()], list(r)] for r in (made, *read)]

    check(scenario, cases(info))


@CLASSES
def test_an_optimizer_is_copied_and_pickled(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        opt, params, step = trained(cls, case)
        seen = []
        for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
            seen.append({k for k in vars(opt) if k[0] != "_"} == {k for k in vars(other) if k[0] != "_"})
            copies = other.param_groups[0]["params"]
            step(other, *copies)
            seen.append(snapshot(other, copies))
        public = {k for k in vars(info.optim_cls([torch.zeros(2)])) if k[0] != "_"}
        return public <= set(vars(opt)), seen, snapshot(opt, params)

    check(scenario, cases(info))


@CLASSES
def test_a_step_count_that_is_no_tensor(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        opt, params, step = trained(cls, case)
        saved = copy.deepcopy(opt.state_dict())
        for state in saved["state"].values():
            if "step" in state:
                state["step"] = state["step"].item()
        opt.load_state_dict(saved)
        step(opt, *params)
        return snapshot(opt, params)

    check(scenario, cases(info))


@pytest.mark.parametrize("flag", ["fused", "capturable"])
@CLASSES
def test_a_checkpoint_of_other_flags(info: Any, flag: str) -> None:
    """As one that was made on a GPU; what is loaded is not changed, and the step count stays on the CPU."""

    def scenario(cls: Any, case: Case) -> Any:
        opt, params, step = trained(cls, case)
        saved = copy.deepcopy(opt.state_dict())
        copies, kept = twin(params), copy.deepcopy(saved)
        other = case.make(cls, copies)
        other.load_state_dict(saved)
        untouched = repr(saved) == repr(kept)
        if flag == "capturable" and cls is OURS.get(info.name):
            other.param_groups[0][flag] = True
        step(other, *copies)
        devices = {str(s["step"].device) for s in other.state.values() if "step" in s}
        return untouched, sorted(devices), snapshot(other, copies)

    check(scenario, cases(info))


@CLASSES
def test_order_and_types_of_a_state_dict(info: Any) -> None:
    """Entries in another order, in an OrderedDict, and others' entries beside them."""

    def scenario(cls: Any, case: Case) -> Any:
        opt, params, step = trained(cls, case)
        saved = copy.deepcopy(opt.state_dict())
        saved["state"] = OrderedDict(reversed(list(saved["state"].items())))
        saved["state"]["note"] = {"mine": [1, 2], "tensor": torch.ones(2)}
        opt.load_state_dict(OrderedDict(reversed(list(saved.items()))))
        step(opt, *params)
        note = opt.state.pop("note")
        return snapshot(opt, params), note["mine"], note["tensor"]

    check(scenario, cases(info))


@CLASSES
def test_state_is_there_after_a_step(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        opt, params, _ = trained(cls, case, 1)
        return [[n for n, v in opt.state[p].items() if v is not None] for p in params], all(map(len, opt.state.values()))

    check(scenario, cases(info))


@CLASSES
def test_a_frozen_parameter_has_no_state_of_its_own(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        weight, bias, x = layer()
        weight.requires_grad_(False)
        opt, before = case.make(cls, [weight, bias]), weight.detach().clone()
        for _ in range(3):
            closure_of(opt, weight, bias, x)()
            opt.step()
        return torch.equal(weight, before), snapshot(opt, [weight, bias])

    check(scenario, cases(info))


class Made(TorchDispatchMode):
    """The bytes of all tensors that torch's operations make."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {a.data_ptr() for a in args if isinstance(a, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.data_ptr() not in known:
            self.nbytes += result.nbytes
        return result


@CLASSES
def test_a_step_makes_no_tensors(info: Any) -> None:
    """Torch allows its implementations one to five of the parameters' size."""
    for case in cases(info):
        params = [torch.rand(16, 8) for _ in range(10)]
        opt = case.make(OURS[info.name], params)
        for _ in range(5):
            for p in params:
                p.grad = torch.rand_like(p)
            with Made() as made:
                opt.step()
        assert made.nbytes == 0, case.kwargs


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


@pytest.mark.parametrize("hooks", [[to_2], [to_3], [to_2, to_3], [to_3, to_2], []], ids=lambda h: "-".join(f.__name__ for f in h))
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

        handles = [register_optimizer_step_pre_hook(note("before all")), register_optimizer_step_post_hook(note("after all"))]
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

    check(scenario, [Case(info, {"lr": NUMBERS[name]}, name)], fails=True)
