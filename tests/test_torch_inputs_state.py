"""PyTorch's own inputs for its optimizers, ours beside torch's: state dicts, checkpoints, hooks, copies, wrong arguments."""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gpuopt.torch
from torch_inputs import CLASSES, INFOS, OURS, Case, cases, check, closure_of, detached, layer, snapshot
from torch_samples import create

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
        return snapshot(opt, params)[:2], [
            sorted(map(str, group.items())) for group in opt.state_dict()["param_groups"]
        ]

    check(scenario, cases(info))


def keys_of(info: Any) -> set[str]:
    opt, params, _ = trained(info.optim_cls, Case(info, {}, ""), 1)
    return {key for p in params for key, value in opt.state[p].items() if value is not None}


@CLASSES
def test_checkpoints_of_a_class_with_the_same_states(info: Any) -> None:
    """Adam's in AdamW goes on as AdamW's, AdamW's in Adam brings its flag along; with and without the keys that are newer."""
    others = [other for other in INFOS if keys_of(other) == keys_of(info) and "step" in keys_of(info)]

    def scenario(cls: Any, case: Case, other: Any, old: bool) -> Any:
        source = other.optim_cls if cls is info.optim_cls else OURS[other.name]
        opt, params, step = trained(source, Case(other, {}, ""))
        saved, into = copy.deepcopy(opt.state_dict()), case.make(cls, params)
        for group in saved["param_groups"] if old else []:
            group.pop("decoupled_weight_decay", None)
        into.load_state_dict(saved)
        step(into, *params)
        return snapshot(into, params)

    for other in others:
        for old in (True, False):
            check(partial(scenario, other=other, old=old), cases(info))


@pytest.mark.parametrize("name", gpuopt.torch.optimizers())
def test_options_that_a_checkpoint_does_not_have(name: str) -> None:
    """Those that torch's class has are as it says, ours as they are given here; a rule that torch has not keeps its own, and so
    does Adafactor, of which torch has no older checkpoints.
    """
    options: dict[str, Any] = {"maximize": True, "clip_value": 0.5}
    opt = create(name, [torch.nn.Parameter(torch.ones(2, 2))], **options)
    saved = opt.state_dict()
    for key in options:
        del saved["param_groups"][0][key]
    opt.load_state_dict(saved)
    assert opt.param_groups[0]["maximize"] is (opt.twin in ("", "adafactor"))
    assert opt.param_groups[0]["clip_value"] == 0.5


@CLASSES
def test_saved_and_read_again(info: Any) -> None:
    def scenario(cls: Any, case: Case) -> Any:
        opt, *_ = trained(cls, case)
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
        return [[n for n, v in opt.state[p].items() if v is not None] for p in params], all(
            map(len, opt.state.values())
        )

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
