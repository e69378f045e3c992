"""Rules of a user's own: names that are taken, pickles, and mistakes, each of which is one error that says what to do."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from gpuopt import State, rule
from gpuopt.optim.reserved import meaning
from own_rules import load, moved, scaled
from samples import HOST_BACKENDS

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)


# ---------------------------------------------------------------------------------------------------- collisions


@pytest.mark.parametrize("name", ["step", "p", "g"])
def test_a_state_that_every_rule_has_is_refused(name: str) -> None:
    with pytest.raises(gpuopt.RuleSyntaxError, match=name) as caught:
        rule(state={"m": name} if name == "step" else {name: "m"})
    assert caught.value.filename == __file__


STATES = {
    "one key twice": {"m": "x", "v": "x"},
    "number": {"m": 1.0},
    "another name": {"m": State("v", "v")},
    "string": "m",
    "twice": ("m", "m"),
    "a number": 3,
    "begins as": {"m": State("m", "m", init=None)},  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", STATES)
def test_states_that_say_nothing_are_refused(name: str) -> None:
    with pytest.raises(gpuopt.RuleSyntaxError, match="state") as caught:
        rule(state=STATES[name])  # type: ignore[call-overload]
    assert caught.value.filename == __file__


def test_no_option_of_ours_or_torchs_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [p.name for p in inspect.signature(gpuopt.Optimizer).parameters.values() if p.kind is not p.VAR_KEYWORD]
    names += [
        *gpuopt.torch.OPTIONS,
        "foreach",
        "fused",
        "capturable",
        "differentiable",
        "initial_lr",
        "max_lr",
        "params",
    ]
    assert {name for name in names if meaning(name) is None} == {"max_grad_norm"}, (
        "a rule's own is the option of that name"
    )
    for name in (*{*names} - {"max_grad_norm"}, "betas"):
        text = f"@rule\ndef r(p, g, *, lr, {name}=1.0):\n    p = p - lr * g\n    return p\n"
        with pytest.raises(gpuopt.RuleSyntaxError, match=f"`{name}` is"):
            load(tmp_path, text, monkeypatch)
        with pytest.raises(gpuopt.RuleSyntaxError, match=f"`{name}` is"):
            scaled().prepare(eval(f"lambda step, *, {name}: dict(k=1.0)"))


@pytest.mark.parametrize("name", ["self", "cls", "beta1x", "title", "grads", "closure_"])
def test_other_names_are_free(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"@rule\ndef r(p, g, *, lr, {name}):\n    p = p - lr * {name} * g\n    return p\n"
    made = load(tmp_path, text, monkeypatch).r
    assert [moved(made, backend, **{name: 3.0}) for backend in HOST_BACKENDS] == [3.0, 3.0]
    w = np.zeros(1)
    gpuopt.make_optimizer(made)(w, lr=1.0, **{name: 2.0}).step(np.ones(1))
    p = torch.nn.Parameter(torch.zeros(1))
    p.grad = torch.ones(1)
    gpuopt.torch.make_optimizer(made)([p], lr=1.0, **{name: 2.0}).step()
    assert (w[0], p.item()) == (-2.0, -2.0)


# ---------------------------------------------------------------------------------------------------- pickles


@rule(state=("m",))
def at_the_top(p, g, m, *, lr=0.1):
    """Found under its own name."""
    m = m + g
    p = p - lr * m
    return p, m


renamed = rule(state=("m",))(at_the_top.function)
Made = gpuopt.make_optimizer(at_the_top)
MadeForTorch = gpuopt.torch.make_optimizer(at_the_top)


class Derived(Made):  # type: ignore[misc, valid-type]
    """A subclass of a class of ours."""


class Holder:
    """A rule that is an attribute of a class."""

    @rule
    def inside(p, g, *, lr=0.1):
        p = p - lr * g
        return p


def optimizers() -> dict[str, Any]:
    return {
        "rule": gpuopt.optimizer(at_the_top, [np.ones(2)]),
        "another name": gpuopt.optimizer(renamed, [np.ones(2)]),
        "in a class": gpuopt.optimizer(Holder.inside, [np.ones(2)]),
        "made": Made([np.ones(2)]),
        "derived": Derived([np.ones(2)]),
        "ours": gpuopt.AdamW([np.ones(2)]),
        "made for torch": MadeForTorch([torch.nn.Parameter(torch.ones(2))]),
        "made anew": gpuopt.make_optimizer(renamed)([np.ones(2)]),
        "ours for torch": gpuopt.torch.AdamW([torch.nn.Parameter(torch.ones(2))]),
    }


@pytest.mark.parametrize("name", optimizers())
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_optimizers_and_classes_of_own_rules_pickle(name: str, protocol: int) -> None:
    optimizer = optimizers()[name]
    again = pickle.loads(pickle.dumps(optimizer, protocol))
    assert type(again) is type(optimizer) and again.rule is optimizer.rule
    assert type(copy.deepcopy(optimizer)) is type(optimizer)
    assert pickle.loads(pickle.dumps(type(optimizer), protocol)) is type(optimizer)


def local_rule() -> Any:
    @rule
    def local(p, g, *, lr=0.1):
        p = p - lr * g
        return p

    return local


@pytest.mark.parametrize("make", [gpuopt.optimizer, lambda r, p: gpuopt.make_optimizer(r)(p)])
def test_a_rule_that_cannot_be_found_refuses_when_saving(make: Callable[..., Any]) -> None:
    optimizer = make(local_rule(), [np.ones(2)])
    with pytest.raises(pickle.PicklingError, match=r"rule `local` cannot be pickled.*under a name") as caught:
        pickle.dumps(optimizer)
    assert isinstance(caught.value, gpuopt.GpuoptError)
    assert copy.deepcopy(optimizer).rule is optimizer.rule


# ---------------------------------------------------------------------------------------------------- mistakes


def body(p, g, *, lr, k):
    p = p - lr * k * g
    return p


def with_prepare(function: Any) -> Any:
    made = scaled()
    made.prepare(function)
    return made


def with_require(function: Any) -> Any:
    made = scaled()
    made.require(function)
    return made


def no_return(step, *, lr):
    lr = lr * 2


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "state of a bare decorator": (lambda: rule(at_the_top.function), r"`m` is no state.*@rule\(state="),
    "lambda": (lambda: rule(lambda p, g, *, lr: p - lr * g), "plain `def` function, this is a lambda"),
    "partial": (lambda: rule(functools.partial(body, k=2.0)), "plain `def` function, this is an object of type partial"),
    "plain function": (lambda: body, r"the function `body`: expected a rule, made by @gpuopt.rule"),
    "name": (lambda: "adamw", r"gpuopt.create\('adamw'"),
    "class": (lambda: Made, "expected a rule"),
    "no key": (lambda: with_prepare(lambda step, *, lr: {} if step else {"k": 1.0}), r"returned no 'k': expected dict\(k=...\)"),
    "wrong key": (lambda: with_prepare(lambda step, *, lr: dict(K=1.0)), r"returned no 'k'|needs k \(prepare returns K, not k\)"),
    "None": (lambda: with_prepare(lambda step, *, lr: None), r"returned None: expected dict\(k=...\)"),
    "list": (lambda: with_prepare(lambda step, *, lr: [1.0]), r"returned \[1.0\]: expected dict\(k=...\)"),
    "text": (lambda: with_prepare(lambda step, *, lr: {"k": "1.0"}), "returned k = '1.0': expected a number"),
    "nan": (lambda: with_prepare(lambda step, *, lr: {"k": math.nan}), "returned k = nan: expected a number"),
    "array": (lambda: with_prepare(lambda step, *, lr: {"k": np.ones(3)}), "returned k = array.*: expected a number"),
    "own hyperparameter": (lambda: with_prepare(lambda step, *, lr: {"lr": lr, "k": 1.0}), "returned 'lr', which is a hyper"),
    "no return": (lambda: with_prepare(no_return), "prepare returns nothing"),
    "by position": (lambda: with_prepare(lambda step, lr: dict(k=1.0)), r"by name.*`def _\(step, \*, lr\):`"),
    "no step": (lambda: with_prepare(lambda *, lr: dict(k=1.0)), "takes `step` first"),
    "rest": (lambda: with_prepare(lambda step, **rest: dict(k=1.0)), "each of them named"),
    "no function": (lambda: with_prepare(3.0), "prepare is a function such as"),
    "require unknown": (lambda: with_require(lambda *, gian: None), "require asks for 'gian'"),
    "require rest": (lambda: with_require(lambda **rest: None), "each of them named"),
    "init": (lambda: rule(state={"m": State("m", "m", init="start")})(at_the_top.function), "no hyperparameter of this rule"),
    "when": (lambda: rule(state={"m": State("m", "m", when="on")})(at_the_top.function), "no flag of this rule"),
}  # fmt: skip


@BACKENDS
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_error_that_says_what_to_do(name: str, backend: str) -> None:
    make, words = MISTAKES[name]
    with pytest.raises(gpuopt.GpuoptError, match=words) as caught:
        moved(make(), backend, **({"k": 1.0} if name.startswith("require") else {}))
    assert caught.value.__cause__ is None
    if isinstance(caught.value, SyntaxError):
        assert Path(str(caught.value.filename)).parent == Path(__file__).parent, "where the rule or the function is"


def test_a_prepare_that_is_compiled_says_which_value_is_no_number() -> None:
    made = scaled()

    @made.prepare
    def _(step, *, lr):
        return dict(k=gpuopt.sqrt(-lr))

    for backend in HOST_BACKENDS:
        with pytest.raises(gpuopt.InputError, match="returned k = nan: expected a number"):
            moved(made, backend)


def test_a_traceback_shows_the_authors_line_with_a_caret_and_little_of_gpuopt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(gpuopt.RuleSyntaxError) as caught:
        load(tmp_path, "@rule\ndef r(p, g, *, lr):\n    β = g; p = p - β ** 2\n    return p\n", monkeypatch)
    shown = traceback.format_exception(caught.value)
    ours = str(Path(gpuopt.__file__).parent)
    assert sum(ours in entry for entry in shown) == 1
    lines = "".join(shown).splitlines()
    at = next(k for k, line in enumerate(lines) if line.strip() == "β = g; p = p - β ** 2" and "^" in lines[k + 1])
    assert lines[at][lines[at + 1].index("^") : lines[at + 1].rindex("^") + 1] == "β ** 2"
