"""What torch's own optimizers do besides arithmetic, `gpuopt.torch` does too: autograd is told, state dicts refer to the live
tensors, loading is strict, arguments are checked as torch checks them.
"""

from __future__ import annotations

import copy
import warnings
from collections import UserList
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from gpuopt.errors import InputError
from gpuopt.native.torch import watch
from torch_samples import create, default_dtype, everything, furthest, gradients, pair, parameters, title, train

NAMES = gpuopt.torch.optimizers()
BOTH = [name for name in NAMES if getattr(gpuopt.torch, title(name)).twin]
ULPS = 64 * torch.finfo(torch.float32).eps
MANY = [(3,)] * (2 * watch.FROM)  # tensors that compiled code looks at, once steps repeat


def state_of(name: str, **options: Any) -> dict[str, Any]:
    """A checkpoint after two steps of torch's optimizer."""
    _, (opt, params) = pair(name, **options)
    train(opt, params, range(2))
    return copy.deepcopy(opt.state_dict())


# ---------------------------------------------------------------------------------------------------- autograd


@pytest.mark.parametrize("shapes", [[(4, 3), (5,)], MANY], ids=["few", "many"])
@pytest.mark.parametrize("name", NAMES)
def test_version_counters_of_what_was_written(name: str, shapes: Any) -> None:
    params = parameters(shapes)
    opt = create(name, params)
    train(opt, params, range(2))
    states = [v for s in opt.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    for number in range(2, 8):
        before = [t._version for t in (*params, *states)]
        given = gradients(params, number)
        for p, g in zip(params, given, strict=True):
            p.grad = g
        read = [g._version for g in given]
        opt.step()
        assert all(t._version > b for t, b in zip((*params, *states), before, strict=True))
        assert [g._version for g in given] == read


def test_a_skipped_step_and_a_frozen_parameter_raise_no_counter() -> None:
    params = parameters([(3,), (3,)])
    opt = gpuopt.torch.AdamW(params, skip_nonfinite=True)
    params[0].grad = torch.ones(3)
    opt.step()
    assert (params[0]._version, params[1]._version) == (1, 0)
    params[0].grad = torch.full((3,), torch.nan)
    opt.step()
    assert (params[0]._version, params[1]._version) == (1, 0)


def test_backward_through_an_older_graph_raises() -> None:
    for name in BOTH:
        for opt, params in pair(name):
            x = torch.ones(4, requires_grad=True)
            loss = (x @ params[0]).sum() + params[1].square().sum()
            loss.backward(retain_graph=True)
            opt.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


# ---------------------------------------------------------------------------------------------------- state dicts

COUNTED = [name for name in BOTH if name != "sgd"]


@pytest.mark.parametrize("shapes", [[(4, 3), (5,)], MANY], ids=["few", "many"])
@pytest.mark.parametrize("name", COUNTED)
def test_step_tensors_are_each_parameters_own_and_live(name: str, shapes: Any) -> None:
    made = pair(name, shapes)
    for opt, params in made:
        train(opt, params, range(5))
        kept = opt.state_dict()
        steps = [opt.state[p]["step"] for p in params]
        assert len({s.data_ptr() for s in steps}) == len(params)
        assert all(kept["state"][k]["step"] is step for k, step in enumerate(steps))
        train(opt, params, range(5, 6))
        assert {float(s) for s in steps} == {6.0}
        assert all(opt.state[p]["step"] is s for p, s in zip(params, steps, strict=True))
        steps[1].fill_(40)
        assert [float(s) for s in steps[:2]] == [6, 40]
        train(opt, params, range(6, 9))
        assert [float(s) for s in steps] == [9, 43, *[9.0] * (len(params) - 2)]
        assert all(kept["state"][0][k] is v for k, v in opt.state[params[0]].items())
    assert furthest(made[0][1], made[1][1]) <= ULPS


@pytest.mark.parametrize("name", COUNTED)
def test_going_back_to_a_state_dict_that_was_kept(name: str) -> None:
    made = pair(name)
    for opt, params in made:
        train(opt, params, range(1))
        kept = opt.state_dict()
        train(opt, params, range(1, 6))
        opt.load_state_dict(kept)
        train(opt, params, range(6, 8))
    assert furthest(made[0][1], made[1][1]) <= ULPS
    assert [float(s["step"]) for s in made[0][0].state.values()] == [8.0, 8.0]


def put(entry: dict[str, Any]) -> None:
    for key, value in entry.items():
        if key != "step":
            entry[key] = torch.full_like(value, 0.5)


def of_a_state_dict(opt: Any, params: Any) -> Any:
    return opt.state_dict()["state"].values()


def of_a_state_dict_that_hooks_saw(opt: Any, params: Any) -> Any:
    seen: list[Any] = []
    opt.register_state_dict_post_hook(lambda _, made: seen.append(made))
    opt.state_dict()
    return seen[0]["state"].values()


def of_the_optimizer(opt: Any, params: Any) -> Any:
    return [opt.state[p] for p in params]


def of_ones_own(opt: Any, params: Any) -> Any:
    for p in params:
        opt.state[p] = dict(opt.state[p])
    return opt.state.values()


def of_a_dict_in_its_place(opt: Any, params: Any) -> Any:
    opt.state = {p: dict(state) for p, state in opt.state.items()}
    return opt.state.values()


@pytest.mark.parametrize("shapes", [[(4, 3), (5,)], MANY], ids=["few", "many"])
@pytest.mark.parametrize(
    "entries", [of_a_state_dict, of_a_state_dict_that_hooks_saw, of_the_optimizer, of_ones_own, of_a_dict_in_its_place]
)
@pytest.mark.parametrize("name", BOTH)
def test_entries_are_the_optimizers_own_and_live(name: str, entries: Any, shapes: Any) -> None:
    """Whatever is put into one, at once or after steps, is used."""
    made = pair(name, shapes, torch.float64, **({"momentum": 0.9} if name == "sgd" else {}))
    for opt, params in made:
        with default_dtype(torch.float64):
            train(opt, params, range(5))
        held = [*entries(opt, params)]
        for number in range(5, 8):
            assert all(opt.state[p] is entry and type(entry) is dict for p, entry in zip(params, held, strict=True))
            put(held[number % len(held)])
            with default_dtype(torch.float64):
                train(opt, params, range(number, number + 2))
    assert furthest(made[0][1], made[1][1]) <= 1e-12


@pytest.mark.parametrize("whole", [True, False])
def test_two_optimizers_with_the_same_states(whole: bool) -> None:
    """Each uses what the other has put there."""
    made = []
    for module in (gpuopt.torch, torch.optim):
        params = parameters([(4, 3), (5,)], torch.float64)
        first, second = module.AdamW(params, lr=0.1), module.AdamW(params, lr=0.01, amsgrad=True)
        for opt in (first, second):
            train(opt, params, range(2))
        if whole:
            first.state = second.state
        else:
            for p in params:
                first.state[p] = second.state[p]
        for opt in (second, first, second):
            train(opt, params, range(4))
        put(first.state[params[0]])
        for opt in (first, second):
            train(opt, params, range(3))
        assert all(first.state[p] is second.state[p] for p in params)
        made.append((params, [float(second.state[p]["step"]) for p in params]))
    assert furthest(made[0][0], made[1][0]) <= 1e-12 and made[0][1] == made[1][1]


# ---------------------------------------------------------------------------------------------------- loading


def lacking() -> list[Any]:
    cases = []
    for name in BOTH:
        options = {"momentum": 0.9} if name == "sgd" else {}
        for key in state_of(name, **options)["state"][0]:
            if name != "sgd":  # without its buffer, SGD's next step is its first, in torch too
                cases.append(pytest.param(name, key, id=f"{name}-{key}"))
    return cases


@pytest.mark.parametrize(("name", "key"), lacking())
def test_a_checkpoint_without_a_state_is_refused(name: str, key: str) -> None:
    saved = state_of(name)
    place = max(k for k, entry in saved["state"].items() if key in entry)
    del saved["state"][place][key]
    opt, params = pair(name)[0]
    train(opt, params, range(1))
    before = everything(opt)
    with pytest.raises(InputError, match=rf"param_groups\[0\]\['params'\]\[{place}\].*'{key}' is missing"):
        opt.load_state_dict(saved)
    assert everything(opt) == before


@pytest.mark.parametrize("other", BOTH)
@pytest.mark.parametrize("name", BOTH)
def test_a_checkpoint_of_another_optimizer_is_refused(name: str, other: str) -> None:
    options = {"momentum": 0.9} if other == "sgd" else {}
    saved, opt = state_of(other, **options), pair(name)[0][0]
    alike = name == other or {name, other} <= {"adam", "adamw", "radam"}  # the same averages under the same names
    before = everything(opt)
    if alike:
        opt.load_state_dict(saved)
    else:
        with pytest.raises(InputError):
            opt.load_state_dict(saved)
        assert everything(opt) == before


@pytest.mark.parametrize("state_format", ["float32", "bfloat16"])
@pytest.mark.parametrize("saved", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kept", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_states_are_loaded_into_the_dtype_of_state_format(saved: Any, kept: Any, state_format: str) -> None:
    source = state_of("adamw", dtype=saved)
    params = parameters(((4, 3), (5,)), kept)
    opt = gpuopt.torch.AdamW(params, state_format=state_format)
    opt.load_state_dict(copy.deepcopy(source))
    expected = torch.float64 if kept is torch.float64 else getattr(torch, state_format)
    for index, p in enumerate(params):
        for key in ("exp_avg", "exp_avg_sq"):
            assert opt.state[p][key].dtype is expected
            assert torch.equal(opt.state[p][key], source["state"][index][key].to(expected))
    train(opt, params, range(1))
    assert opt.state[params[0]]["exp_avg"].dtype is expected


@pytest.mark.parametrize("state_format", ["float32", "bfloat16"])
@pytest.mark.parametrize("saved", [np.float64, np.float32, np.float16])
def test_the_array_api_loads_into_the_dtype_of_state_format(saved: Any, state_format: str) -> None:
    first, second = (
        gpuopt.AdamW([np.ones(3, d)], lr=0.1, backend="numpy", **o)
        for d, o in ((saved, {}), (np.float32, {"state_format": state_format}))
    )
    first.step([np.ones(3, saved)])
    second.load_state_dict(first.state_dict())
    found = second.state_dict()["state"][0]
    assert {found[k].dtype.name for k in ("exp_avg", "exp_avg_sq")} == {state_format}
    for key in ("exp_avg", "step"):
        broken = first.state_dict()
        del broken["state"][0][key]
        with pytest.raises(InputError, match=key):
            second.load_state_dict(broken)


# ---------------------------------------------------------------------------------------------------- arguments


def test_masks_by_name_and_unknown_keys() -> None:
    params = parameters([(3,), (3,)])
    mask, named = torch.tensor([True, False, True]), [("one", params[0]), ("two", params[1])]
    opt = gpuopt.torch.SGD(named, lr=0.1, mask={"two": mask})
    train(opt, params, range(2))
    assert params[1][1] == 0 and params[0][1] != 0
    stranger = torch.nn.Parameter(torch.zeros(3))
    for given, key in ((named, "three"), (named, stranger), (params, "one"), (params, 0), (params, params[0].detach())):
        with pytest.raises(InputError, match=r"mask: .* is no parameter of this optimizer"):
            gpuopt.torch.SGD(given, lr=0.1, mask={key: mask})


class Listing:
    """A sequence of none of the usual types."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, k: int) -> Any:
        return self.items[k]


BETAS = [
    UserList([0.8, 0.9]),
    np.array([0.8, 0.9]),
    [0.8, 0.9],
    Listing(0.8, 0.9),
    (np.float64(0.8), 0.9),
]


@pytest.mark.parametrize("betas", BETAS, ids=lambda b: type(b).__name__)
@pytest.mark.parametrize("name", ["adam", "adamw", "lion"])
def test_any_sequence_of_numbers_is_betas(name: str, betas: Any) -> None:
    found, expected = parameters(), parameters()
    for params, given in ((found, betas), (expected, (0.8, 0.9))):
        opt = create(name, params, betas=given)
        train(opt, params, range(2))
        opt.param_groups[0]["betas"] = given
        train(opt, params, range(2, 4))
    assert furthest(found, expected) == 0
    arrays = [np.ones(3), np.ones(3)]
    for array, given in zip(arrays, (betas, (0.8, 0.9)), strict=True):
        gpuopt.AdamW([array], lr=0.1, betas=given, backend="numpy").step([np.ones(3)])
    assert np.array_equal(*arrays)


@pytest.mark.parametrize("betas", ["09", {0.8: 1, 0.9: 1}, [0.8], np.ones((2, 2)), 0.9, [0.9, 1.5]], ids=str)
def test_what_is_no_sequence_of_betas_is_refused(betas: Any) -> None:
    with pytest.raises(InputError, match="betas"):
        gpuopt.torch.AdamW(parameters(), betas=betas)


def test_foreign_values_in_state_are_left_alone() -> None:
    params = parameters([(3,), (3,)])
    opt = gpuopt.torch.AdamW(params)
    opt.state["note"], opt.state["count"] = {"a": 1}, 3
    train(opt, params, range(2))
    opt.state[params[0]]["mine"] = 7
    opt.state[params[1]]["trace"] = trace = torch.ones(2)
    train(opt, params, range(2, 5))
    assert opt.state["note"] == {"a": 1} and opt.state["count"] == 3
    again = gpuopt.torch.AdamW(parameters([(3,), (3,)]))
    for made in (opt, copy.deepcopy(opt), again):
        if made is again:
            again.load_state_dict(copy.deepcopy(opt.state_dict()))
        first, second = (made.state[p] for p in made.param_groups[0]["params"])
        assert first["mine"] == 7 and torch.equal(second["trace"], trace) and trace._version == 0
        assert float(first["step"]) == 5 and made.state["count"] == 3


def raised(make: Callable[[Any], Any], module: Any) -> type | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(module)
    except Exception as error:
        return type(error)
    return None


def of_two() -> list[torch.nn.Parameter]:
    return parameters([(3,), (3,)])


def again(module: Any) -> None:
    params = of_two()
    module.AdamW(params).add_param_group({"params": params[:1]})


WRONG: dict[str, Callable[[Any], Any]] = {
    "lr of two": lambda m: m.AdamW(of_two(), lr=torch.tensor([0.1, 0.2])),
    "duplicate added": again,
    "negative lr": lambda m: m.AdamW(of_two(), lr=-1.0),
    "negative eps": lambda m: m.AdamW(of_two(), eps=-1.0),
    "beta of one": lambda m: m.AdamW(of_two(), betas=(1.0, 0.9)),
    "a tensor": lambda m: m.AdamW(torch.zeros(3)),
    "a leafless one": lambda m: m.AdamW([torch.nn.Parameter(torch.zeros(3)) * 2]),
    "no parameters": lambda m: m.AdamW([]),
    "nothing": lambda m: m.AdamW(None),
    "numbers": lambda m: m.AdamW([1.0]),
    "a group that is none": lambda m: m.AdamW(of_two()).add_param_group([1]),
    "a set": lambda m: m.AdamW([{"params": set(of_two())}]),
    "lr before no parameters": lambda m: m.AdamW([], lr=-1.0),
    "lr before numbers": lambda m: m.AdamW([1.0], lr=-1.0),
    "nesterov without momentum": lambda m: m.SGD(of_two(), lr=0.1, nesterov=True),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_raise_what_torch_raises(case: str) -> None:
    expected, found = raised(WRONG[case], torch.optim), raised(WRONG[case], gpuopt.torch)
    assert expected is not None and found is not None and issubclass(found, expected), (expected, found)
