"""State of `gpuopt.torch`: checkpoints to and from torch and resumed runs, dtypes, hooks, copies, groups, outside changes."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch

import gpuopt.torch
from gpuopt.errors import InputError
from torch_samples import bits, copied, create, everything, furthest, gradients, parameters, train

pytestmark = pytest.mark.usefixtures("looks")

NAMES = gpuopt.torch.optimizers()
ULPS = 16 * torch.finfo(torch.float32).eps


def through_a_file(state_dict: dict[str, Any]) -> Any:
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def successor(opt: Any, params: Any, state_dict: Any, **options: Any) -> tuple[Any, Any]:
    """Another optimizer of the class on copies of the parameters, with this state."""
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    made = create(opt.rule.name, copies, **options)
    made.load_state_dict(state_dict)
    return made, copies


# ---------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("name", NAMES)
def test_resumed_run_has_the_same_bits(name: str) -> None:
    params = parameters()
    opt = create(name, params, backend="numpy")
    train(opt, params, range(3))
    again, copies = successor(opt, params, through_a_file(opt.state_dict()), backend="numpy")
    assert everything(again) == everything(opt)
    for o, p in ((opt, params), (again, copies)):
        train(o, p, range(3, 6))
    assert everything(again) == everything(opt)


def test_states_keep_the_dtypes_that_state_format_says() -> None:
    for kept, params in ((torch.float32, parameters(dtype=torch.bfloat16)), (torch.bfloat16, parameters())):
        opt = gpuopt.torch.AdamW(params, state_format=str(kept).removeprefix("torch."))
        train(opt, params, range(2))
        assert opt.state[params[0]]["exp_avg"].dtype is kept
        again, copies = successor(opt, params, through_a_file(opt.state_dict()), state_format=opt._given.state_format)
        assert all(state[k].dtype is kept for state in again.state.values() for k in ("exp_avg", "exp_avg_sq"))
        assert everything(again) == everything(opt)
        for o, p in ((opt, params), (again, copies)):
            train(o, p, range(2, 4))
        assert everything(again) == everything(opt), "and the next steps use them so"


def test_float32_states_become_float64_for_a_model_made_double() -> None:
    params = parameters()
    opt = gpuopt.torch.AdamW(params)
    train(opt, params, range(2))
    wide = [torch.nn.Parameter(p.detach().double()) for p in params]
    again = gpuopt.torch.AdamW(wide)
    again.load_state_dict(copied(opt.state_dict()))
    train(again, wide, range(2, 4))
    assert again.state[wide[0]]["exp_avg"].dtype is torch.float64
    train(opt, params, range(2, 4))
    assert furthest([p.float() for p in wide], params) <= ULPS


def test_load_hooks_change_and_see_what_is_loaded() -> None:
    params = parameters(dtype=torch.bfloat16)
    opt, seen = gpuopt.torch.AdamW(params), []
    train(opt, params, range(1))
    saved = copied(opt.state_dict())

    def change(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        changed = copied(given)
        changed["state"][0]["exp_avg"].fill_(7)
        return changed

    opt.register_load_state_dict_pre_hook(change)
    opt.register_load_state_dict_post_hook(lambda o: seen.append(o.state[params[0]]["exp_avg"].clone()))
    opt.load_state_dict(saved)
    assert len(seen) == 1 and seen[0].dtype is torch.float32 and bool((seen[0] == 7).all())


def test_state_dict_hooks() -> None:
    params = parameters()
    opt, called = gpuopt.torch.AdamW(params), []
    train(opt, params, range(1))
    opt.register_state_dict_pre_hook(lambda o: called.append("pre"))
    opt.register_state_dict_post_hook(lambda o, d: {**d, "note": 1})
    assert opt.state_dict()["note"] == 1 and called == ["pre"]


@pytest.mark.parametrize(
    "wrong", [torch.zeros(2), torch.zeros(3, 4), torch.zeros(13, 3)], ids=lambda t: str(tuple(t.shape))
)
def test_state_of_another_shape_is_refused_before_anything_is_written(wrong: torch.Tensor) -> None:
    params = parameters()
    opt = gpuopt.torch.AdamW(params)
    train(opt, params, range(1))
    saved = copied(opt.state_dict())
    saved["state"][0]["exp_avg"] = wrong
    before = everything(opt)
    words = r"exp_avg of param_groups\[0\]\['params'\]\[0\]: shape .* expected \(4, 3\)"
    with pytest.raises(InputError, match=words):
        opt.load_state_dict(saved)
    assert everything(opt) == before
    opt.state[params[0]]["exp_avg"] = wrong  # or put there by hand: the next step says so
    before = everything(opt)
    with pytest.raises(InputError, match=words):
        opt.step()
    assert everything(opt) == before


# ---------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("name", NAMES)
def test_deepcopy_and_pickle_go_on_alike(name: str) -> None:
    params = parameters()
    mask = {params[0]: torch.arange(12).view(4, 3) % 2 == 0}
    opt = create(name, params, backend="numpy", mask=mask, l1=0.01)
    train(opt, params, range(2))
    copies = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    train(opt, params, range(2, 4))
    for made in copies:
        own = made.param_groups[0]["params"]
        assert type(made) is type(opt) and all(p is not q for p, q in zip(own, params, strict=True))
        train(made, own, range(2, 4))
        assert everything(made) == everything(opt) and made.backend == "numpy"


# ---------------------------------------------------------------------------------------------------- groups


def test_add_param_group_in_the_middle_of_training() -> None:
    def run(cls: Any) -> Any:
        params, more = parameters(), parameters([(6,), (2, 3)])
        opt = cls(params, lr=0.01)
        train(opt, params, range(2))
        opt.add_param_group({"params": more, "lr": 0.1, "weight_decay": 0.3})
        if cls is gpuopt.torch.AdamW:
            opt.init_state()
            assert opt.state[more[0]]["step"].item() == 0
        train(opt, params + more, range(2, 5))
        return params + more, opt

    (found, ours), (expected, theirs) = run(gpuopt.torch.AdamW), run(torch.optim.AdamW)
    assert furthest(found, expected) <= ULPS
    steps = [s["step"].item() for s in ours.state_dict()["state"].values()]
    assert steps == [s["step"].item() for s in theirs.state_dict()["state"].values()] == [5, 5, 5, 5, 3, 3]


def test_a_group_that_cannot_be_used_changes_nothing() -> None:
    opt = gpuopt.torch.AdamW(parameters())
    before = everything(opt)
    with pytest.raises(InputError, match=r"param_groups\[1\]: lr = -1"):
        opt.add_param_group({"params": parameters(), "lr": -1.0})
    assert everything(opt) == before


@pytest.mark.parametrize("steps", [0, 3])
def test_a_rate_that_cannot_be_is_refused_at_any_step(steps: int) -> None:
    params = parameters()
    opt = gpuopt.torch.AdamW(params)
    train(opt, params, range(steps))
    opt.param_groups[0]["lr"] = float("nan")
    before = bits([list(params), opt.state_dict()["state"]])
    with pytest.raises(InputError, match=r"param_groups\[0\]: lr = nan"):
        train(opt, params, range(1))
    assert bits([list(params), opt.state_dict()["state"]]) == before


def test_an_empty_group_and_frozen_parameters_are_no_trouble() -> None:
    params = parameters()
    opt = gpuopt.torch.AdamW([{"params": []}, {"params": params}])
    params[0].requires_grad_(False)
    frozen = bits(params[0])
    train(opt, params[1:], range(2))
    assert bits(params[0]) == frozen and params[0] not in opt.state
    params[0].requires_grad_(True)
    train(opt, params, range(2, 3))
    assert [opt.state[p]["step"].item() for p in params] == [1, 3, 3, 3]


def test_missing_gradients_leave_parameter_and_step_alone() -> None:
    params, others = parameters(), parameters()
    opt, theirs = gpuopt.torch.AdamW(params), torch.optim.AdamW(others)
    for number in range(8):
        for mine in (params, others):
            for k, (p, g) in enumerate(zip(mine, gradients(mine, number), strict=True)):
                p.grad = None if (number + k) % 3 == 0 else g
        opt.step()
        theirs.step()
    assert furthest(params, others) <= ULPS
    found, expected = (o.state_dict()["state"] for o in (opt, theirs))
    assert [found[k]["step"] for k in range(4)] == [expected[k]["step"] for k in range(4)]


# ---------------------------------------------------------------------------------------------------- init_state


@pytest.mark.parametrize("name", NAMES)
def test_init_state_allocates_with_step_zero_and_changes_no_result(name: str) -> None:
    params, plain = parameters(), parameters()
    opt, usual = create(name, params, backend="numpy"), create(name, plain, backend="numpy")
    before = bits(params)
    opt.init_state()
    assert bits(params) == before
    for p in params:
        state = opt.state.get(p, {})
        flags = opt.rule.shaped(opt.rule.flags(opt.param_groups[0]), tuple(p.shape))
        shapes = {
            s.key: opt.rule.shape_of(s, tuple(p.shape), opt.param_groups[0]) for s in opt.rule.active_states(flags)
        }
        assert {key: tuple(value.shape) for key, value in state.items() if key != "step"} == shapes
        assert "step" not in state or state["step"].item() == 0
    train(opt, params, range(3))
    train(usual, plain, range(3))
    assert everything(opt) == everything(usual)


# ---------------------------------------------------------------------------------------------------- outside changes


def reset_all(opt: Any, params: Any) -> None:
    opt.state.clear()


def replace_one(opt: Any, params: Any) -> None:
    opt.state[params[0]]["exp_avg"] = torch.full((4, 3), 0.5)


def update_one(opt: Any, params: Any) -> None:
    opt.state[params[0]].update(exp_avg=torch.full((4, 3), 0.5))


def move_all(opt: Any, params: Any) -> None:
    """As tools do that keep states elsewhere between steps."""
    for state in opt.state.values():
        for key in ("exp_avg", "exp_avg_sq"):
            left, state[key].data = state[key].data, state[key].data.clone()
            left.fill_(1e6)


def replace_entry(opt: Any, params: Any) -> None:
    opt.state[params[0]] = {}


def rewrite_step(opt: Any, params: Any) -> None:
    for p in params:
        opt.state[p]["step"].fill_(1.0)


def move_step(opt: Any, params: Any) -> None:
    for p in params:
        opt.state[p]["step"].data = torch.tensor(1.0)


CHANGES = [reset_all, replace_one, update_one, move_all, replace_entry, rewrite_step, move_step]


@pytest.mark.parametrize("steps", [3, 5])
@pytest.mark.parametrize("change", CHANGES)
def test_states_changed_from_outside_are_used_as_torch_does(change: Any, steps: int) -> None:
    found, expected = parameters(), parameters()
    for cls, params in ((gpuopt.torch.AdamW, found), (torch.optim.AdamW, expected)):
        opt = cls(params, lr=0.1)
        train(opt, params, range(steps))
        change(opt, params)
        train(opt, params, range(steps, steps + 2))
    assert furthest(found, expected) <= ULPS


def all_in_place(group: Any, others: Any) -> None:
    group["params"][:] = others


def one_in_place(group: Any, others: Any) -> None:
    group["params"][-1] = others[-1]


def as_a_tuple(group: Any, others: Any) -> None:
    group["params"] = tuple(others)


def one_fewer(group: Any, others: Any) -> None:
    del group["params"][0]


@pytest.mark.parametrize("change", [all_in_place, one_in_place, as_a_tuple, one_fewer])
def test_a_parameter_list_changed_from_outside_is_used(change: Any) -> None:
    def run(cls: type[torch.optim.Optimizer]) -> Any:
        params, others = parameters(), parameters()
        opt = cls(params, lr=0.1, momentum=0.9)
        train(opt, params, range(4))
        change(opt.param_groups[0], others)
        for number in range(4, 8):
            train(opt, [*params, *others], [number])
        return [*params, *others]

    assert furthest(run(gpuopt.torch.SGD), run(torch.optim.SGD)) <= ULPS


@pytest.mark.parametrize("steps", [0, 4])
def test_a_parameter_list_that_no_longer_fits_its_names(steps: int) -> None:
    """As after a parameter was added to a group made from `named_parameters()`."""

    def run(cls: type[torch.optim.Optimizer]) -> Any:
        params, more = parameters(), parameters()[:1]
        opt = cls([(str(k), p) for k, p in enumerate(params)], lr=0.1, momentum=0.9)
        train(opt, params, range(steps))
        opt.param_groups[0]["params"].extend(more)
        train(opt, [*params, *more], range(steps, steps + 4))
        del opt.param_groups[0]["params"][:3]
        train(opt, [*params, *more], range(steps + 4, steps + 8))
        return [*params, *more]

    assert furthest(run(gpuopt.torch.SGD), run(torch.optim.SGD)) <= ULPS
