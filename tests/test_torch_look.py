"""Both ways to look at the tensors of a step, Python's getters and compiled code, see every change that matters, and agree."""

from __future__ import annotations

import collections
import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt.torch
from gpuopt.torch import native
from gpuopt.torch.look import Look, look, places
from gpuopt.torch.shown import ShownState, ShownStates
from torch_samples import furthest, gradients, parameters, train

ULPS = 16 * torch.finfo(torch.float32).eps
Params = list[torch.nn.Parameter]


def seen_by_getters(params: Params, states: list[torch.Tensor]) -> Callable[[], Look | None]:
    return lambda: look(params, states)


def seen_by_compiled(params: Params, states: list[torch.Tensor]) -> Callable[[], Look | None]:
    return native.Dump(params, states).look


WAYS = pytest.mark.parametrize("way", [seen_by_getters, seen_by_compiled])


def zoo() -> Params:
    """Tensors of every dtype, shape and memory order, with and without gradients."""
    flat = torch.arange(100.0)
    made = [
        torch.zeros(3, 4),
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(2, 0, 3),
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.zeros(4, 3).t(),
        flat[3:9],
        flat[9:10],
        torch.zeros(5, dtype=torch.bfloat16),
        torch.zeros(5, dtype=torch.float16),
        torch.zeros(5, dtype=torch.float64),
        torch.zeros(1, 1, 1, 1, 1, 1, 1, 2),
    ]
    params = [torch.nn.Parameter(t) for t in made]
    for k, p in enumerate(params):
        p.grad = None if k % 5 == 3 else torch.ones_like(p)
    return params


def test_compiled_code_is_used_here() -> None:
    """Or everything below would be true of nothing."""
    assert native.library() is not None


@WAYS
def test_addresses(way: Any) -> None:
    params, states = zoo(), [torch.zeros(3), torch.zeros(0)]
    found = way(params, states)()
    assert found.addresses.tolist() == [0 if p.grad is None else p.grad.data_ptr() for p in params]
    assert found.states == places(states) == np.array([s.data_ptr() for s in states]).tobytes()
    assert found.as_stored


def grad_moves(p: torch.nn.Parameter) -> None:
    p.grad = p.grad.clone()


def grad_values(p: torch.nn.Parameter) -> None:
    p.grad.fill_(7)


@WAYS
@pytest.mark.parametrize("change", [grad_moves, grad_values])
def test_what_does_not_change_the_layout(change: Any, way: Any) -> None:
    params = zoo()
    see = way(params, [])
    before, kept = see(), params[0].grad
    change(params[0])
    after = see()
    assert before.layout == after.layout
    assert (before.addresses != after.addresses).tolist() == [params[0].grad is not kept] + [False] * (len(params) - 1)


def data_moves(p: torch.nn.Parameter) -> None:
    p.data = p.data.clone()


def data_shrinks(p: torch.nn.Parameter) -> None:
    p.grad = None
    p.data = p.data[:2]
    p.grad = torch.ones(2, 4)


def data_turns(p: torch.nn.Parameter) -> None:
    p.grad = None
    p.data = p.data.view(4, 3).t()
    p.grad = torch.ones(3, 4)


def data_halves(p: torch.nn.Parameter) -> None:
    p.grad = None
    p.data = p.data.view(torch.bfloat16)[:, :4]
    p.grad = torch.ones(3, 4, dtype=torch.bfloat16)


def grad_turns(p: torch.nn.Parameter) -> None:
    p.grad = torch.ones(4, 3).t()


def grad_halves(p: torch.nn.Parameter) -> None:
    """torch allows it where it is told to."""
    p.grad_dtype = None
    p.grad = torch.ones(3, 4, dtype=torch.bfloat16)


def grad_goes(p: torch.nn.Parameter) -> None:
    p.grad = None


def swapped(p: torch.nn.Parameter) -> None:
    """The object stays, what it stands for does not; the state dict of a module can be loaded in this way."""
    other = torch.nn.Parameter(torch.zeros(3, 4))
    other.grad = torch.ones(3, 4)
    torch.utils.swap_tensors(p, other)


CHANGES = [data_moves, data_shrinks, data_turns, data_halves, grad_turns, grad_halves, grad_goes, swapped]


@WAYS
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_layout(change: Any, way: Any) -> None:
    params = [torch.nn.Parameter(torch.zeros(3, 4)) for _ in range(3)]
    for p in params:
        p.grad = torch.ones_like(p)
    see = way(params, [])
    before = see()
    change(params[1])
    assert before.layout != see().layout


@WAYS
def test_a_state_with_other_memory_is_seen(way: Any) -> None:
    params, states = zoo(), [torch.zeros(3), torch.zeros(4)]
    see = way(params, states)
    before = see()
    states[1].data = torch.zeros(4)
    assert before.layout == see().layout and before.states != see().states


@WAYS
def test_a_pending_negation_is_seen(way: Any) -> None:
    params = [torch.nn.Parameter(torch.zeros(())) for _ in range(3)]
    for p in params:
        p.grad = torch.ones(())
    see = way(params, [])
    assert see().as_stored
    params[1].grad = torch.complex(torch.ones(()), torch.ones(())).conj().imag
    assert params[1].grad.is_neg() and not see().as_stored


class Marked(torch.nn.Parameter):
    """A subclass, which may keep its data elsewhere."""


def with_gradient(p: torch.nn.Parameter, g: torch.Tensor) -> Params:
    p.grad = g
    return [p]


REFUSED = {
    "sparse": lambda: with_gradient(torch.nn.Parameter(torch.ones(3)), torch.ones(3).to_sparse()),
    "complex": lambda: with_gradient(torch.nn.Parameter(torch.ones(3) * 1j), torch.ones(3) * 1j),
    "subclass": lambda: with_gradient(Marked(torch.ones(3)), torch.ones(3)),
    "too many axes": lambda: with_gradient(torch.nn.Parameter(torch.ones([1] * 20)), torch.ones([1] * 20)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_compiled_code_leaves_to_python(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    params = REFUSED[case]()
    dump = native.Dump(params, [])
    assert dump.look() is None and not dump.usable
    assert capfd.readouterr() == ("", "")


def test_a_gradient_declared_otherwise_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that returns it in another way would crash the process."""
    monkeypatch.setattr(native, "DECLARED", "at::Tensor grad() const;")
    assert native.library.__wrapped__() is None
    monkeypatch.undo()
    monkeypatch.setattr(native, "FACTS", (*native.FACTS, "get_no_such_fact"))
    assert native.library.__wrapped__() is None


def test_training_goes_over_to_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the third step of many tensors; gradients come and go, move and turn all the while."""
    found, expected = (parameters([(3, 4)] * native.FROM) for _ in range(2))
    ours, theirs = (cls(p, lr=0.1) for cls, p in ((gpuopt.torch.AdamW, found), (torch.optim.AdamW, expected)))
    used = []
    for number in range(12):
        for opt, params in ((ours, found), (theirs, expected)):
            for k, (p, g) in enumerate(zip(params, gradients(params, number), strict=True)):
                p.grad = None if number == 6 and k == 4 else g.t().contiguous().t() if number == 8 else g
            opt.step()
        used.append(ours._dump is not None and ours._dump.usable)
    assert not any(used[:3]) and all(used[3:6]) and used[-1]
    assert furthest(found, expected) <= ULPS


EDITS: dict[str, Callable[[Any], Any]] = {
    "set": lambda s: s.__setitem__("a", 2),
    "delete": lambda s: s.__delitem__("a"),
    "or": lambda s: s.__ior__({"b": 3}),
    "clear": lambda s: s.clear(),
    "pop": lambda s: s.pop("a"),
    "popitem": lambda s: s.popitem(),
    "setdefault": lambda s: s.setdefault("b", 1),
    "update": lambda s: s.update(b=1),
}


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_is_told(edit: str) -> None:
    for cls in (ShownState, ShownStates):
        told: list[str] = []
        plain: dict[str, Any] = {"a": {}}
        shown = cls({"a": {}}, told)
        assert EDITS[edit](plain) == EDITS[edit](shown)
        assert plain == shown and len(told) == 1


def test_copies_and_pickles_of_states_are_plain() -> None:
    params = parameters()
    opt = gpuopt.torch.AdamW(params)
    train(opt, params, range(2))
    for shown in (opt.state, opt.state[params[0]]):
        assert isinstance(shown, ShownStates | ShownState)
        for made in (copy.copy(shown), shown.copy(), copy.deepcopy(shown), pickle.loads(pickle.dumps(shown))):
            assert type(made) in (dict, collections.defaultdict) and len(made) == len(shown)
    assert {type(s) for s in opt.state_dict()["state"].values()} == {dict}


def test_the_states_that_are_shown_stay_the_same_objects() -> None:
    """Wrappers keep `opt.state`, and tools the entry of a parameter."""
    params = parameters()
    opt = gpuopt.torch.AdamW(params)
    states, entry = opt.state, opt.state[params[0]]
    train(opt, params, range(2))
    params[1].grad = None  # launches are planned anew
    opt.step()
    assert opt.state is states and states[params[0]] is entry and entry["step"].item() == 3
    assert copy.deepcopy(opt).state.edits is not states.edits


def test_states_of_another_optimizer() -> None:
    """Its entries tell the optimizer that they are given to."""
    found, expected = parameters(), parameters()
    for cls, params in ((gpuopt.torch.AdamW, found), (torch.optim.AdamW, expected)):
        one, other = cls(params, lr=0.1), cls(params, lr=0.1)
        train(one, params, range(2))
        train(other, params, range(2, 3))
        for p in params:
            other.state[p] = one.state[p]
        train(other, params, range(3, 4))
        other.state[params[0]]["exp_avg"] = torch.ones(4, 3)
        train(other, params, range(4, 5))
    assert furthest(found, expected) <= ULPS
