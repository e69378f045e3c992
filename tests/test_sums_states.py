"""Rules that look at whole tensors: their states of one number, their hyperparameters, and what is said to an author whose rule
cannot mean anything.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuopt
import gpuopt.torch
from gpuopt import State, global_sum, rule, tensor_sum
from own_rules import load
from samples import HOST_BACKENDS, Array, bits, difference, gradients, parameters
from test_sums import measured, run

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
RULES = ("adammini", "lamb", "lars", "mars", "novograd", "prodigy", "stableadamw")


# ---------------------------------------------------------------------------------------------------- states of one number


@pytest.mark.parametrize("way", ["state_dict", "json", "pickle", "deepcopy"])
@pytest.mark.parametrize("name", ["novograd", "prodigy", "adammini"])
def test_states_of_one_number_are_saved_and_go_on(name: str, way: str) -> None:
    """A tensor that had no gradient since goes on with what is common to all, not with what it was loaded with."""
    shapes = ((3, 4), (7,), (5,))
    params = parameters(shapes)
    optimizer = gpuopt.create(name, params, lr=0.1, backend="numba")
    for step in range(3):
        optimizer.step(gradients(step, shapes))
    if way in ("pickle", "deepcopy"):
        again = copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    else:
        saved = optimizer.state_dict()
        again = gpuopt.create(name, [p.copy() for p in params], lr=0.1, backend="numpy")
        as_text = json.dumps(saved, default=np.ndarray.tolist)
        again.load_state_dict(json.loads(as_text) if way == "json" else saved)
    for turn in range(3, 8):
        grads: list[Any] = list(gradients(turn, shapes))
        grads[0] = grads[0] if turn == 7 else None
        for each in (optimizer, again):
            each.step(grads)
    found = [bits([each.param_groups[0]["params"], each.state_dict()["state"]]) for each in (optimizer, again)]
    assert found[0] == found[1]
    keys = [s.key for s in optimizer.rule.states if s.cell and s.when is None]
    assert keys and all(optimizer.state_dict()["state"][0][key].shape == () for key in keys)


@BACKENDS
def test_a_number_for_all_of_parameters_of_two_compute_types(backend: str) -> None:
    """One array for each: float32 would round what float64 has."""
    params = [np.ones(3), np.ones(3, np.float32), np.ones(4, np.float16)]
    grads = [np.full(3, 0.1), np.full(3, 0.1, np.float32), np.full(4, 0.1, np.float16)]
    found = run(measured, params, grads, backend, steps=2)
    assert [s["a"].dtype for s in found.values()] == ["float64", "float32", "float32"]
    exact = math.fsum(float(x) for g in grads for x in g)
    assert float(found[0]["a"]) == pytest.approx(exact, rel=1e-7) and found[1]["a"] == np.float32(found[0]["a"])
    assert found[2]["a"] == found[1]["a"] and [float(s["n"]) for s in found.values()] == [5.0] * 3


@BACKENDS
def test_a_step_that_fails_leaves_states_of_one_number_alone(backend: str) -> None:
    params = parameters(((3,), (4,)))
    optimizer = gpuopt.create("prodigy", params, backend=backend)
    optimizer.step(gradients(0, ((3,), (4,))))
    before = bits([params, optimizer.state_dict()])
    with pytest.raises(gpuopt.InputError):
        optimizer.step([np.ones(3), np.ones(5)])
    assert bits([params, optimizer.state_dict()]) == before


@BACKENDS
def test_groups_whose_flags_make_other_sums_are_refused(backend: str) -> None:
    @rule
    def chosen(p, g, *, lr, twice: bool = False):  # type: ignore[no-untyped-def]
        s = global_sum(g)
        if twice:
            s = s + global_sum(g * g)
        p = p - lr * s
        return p

    groups = [{"params": np.ones(3)}, {"params": np.ones(3), "twice": True}]
    optimizer = gpuopt.optimizer(chosen, groups, lr=0.1, backend=backend)
    with pytest.raises(gpuopt.InputError, match="groups of Chosen whose flags make other sums over all tensors"):
        optimizer.step([np.ones(3), np.ones(3)])
    lamb = gpuopt.LAMB([{"params": np.ones(3)}, {"params": np.ones(3), "max_grad_norm": None}], backend=backend)
    lamb.step([np.ones(3), np.ones(3)])  # one that asks for none is no other sum


# ---------------------------------------------------------------------------------------------------- hyperparameters


@BACKENDS
def test_lambs_own_clip_is_the_option_of_that_name(backend: str) -> None:
    """By its default, by group, by a schedule, and not at all with None, which is saved too."""

    def after(**options: Any) -> Array:
        p = np.ones(4)
        optimizer = gpuopt.LAMB(p, weight_decay=0.0, backend=backend, **options)
        for g in (10.0, 1.0):
            optimizer.step(np.full(4, g))
        return p

    assert bits(after()) == bits(after(max_grad_norm=1.0)) == bits(after(max_grad_norm=lambda step: 1.0))
    assert bits(after(max_grad_norm=None)) == bits(after(max_grad_norm=0.0)) != bits(after())
    assert difference(after(max_grad_norm=math.inf), after(max_grad_norm=None)) == 0
    optimizer = gpuopt.LAMB(np.ones(4), max_grad_norm=None, backend=backend)
    again = gpuopt.LAMB(np.ones(4), backend=backend)
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["max_grad_norm"] is None
    with pytest.raises(gpuopt.InputError, match=r"max_grad_norm = -1: expected a number in \[0, inf\]"):
        gpuopt.LAMB(np.ones(4), max_grad_norm=-1, backend=backend)


@BACKENDS
def test_adaptation_goes_with_the_decay_whoever_carries_it_out(backend: str) -> None:
    p, q = np.full(4, 2.0), np.full(4, 2.0)
    gpuopt.LAMB(p, lr=0.1, weight_decay=0.5, weight_decay_mode="decoupled", backend=backend).step(np.ones(4))
    q *= 1 - 0.1 * 0.5
    gpuopt.LAMB(q, lr=0.1, weight_decay=0.0, always_adapt=True, backend=backend).step(np.ones(4))
    assert difference(p, q) < 1e-15


@BACKENDS
@pytest.mark.parametrize("name", RULES)
def test_options_go_with_sums(name: str, backend: str) -> None:
    """Sums see the gradient that the rule sees: scaled, negated and clipped."""
    shapes = ((3, 4), (7,))
    first, second = parameters(shapes), parameters(shapes)
    plain = gpuopt.create(name, first, lr=0.01, backend=backend)
    scaled = gpuopt.create(name, second, lr=0.01, backend=backend, maximize=True, grad_scale=8.0, clip_value=0.5)
    for step in range(4):
        grads = gradients(step, shapes)
        plain.step([np.clip(g, -0.5, 0.5) for g in grads])
        scaled.step([-8 * g for g in grads])
    assert bits([first, plain.state_dict()["state"]]) == bits([second, scaled.state_dict()["state"]])


def test_prodigy_finds_a_rate() -> None:
    """From 1e-6 to within ten times the distance of the solution, which it then reaches."""
    p = np.zeros(20)
    target = np.linspace(-3, 3, 20)
    optimizer = gpuopt.Prodigy(p, backend="numba")
    for _ in range(1500):
        optimizer.step(p - target)
    assert 0.3 < optimizer.state_dict()["state"][0]["d"] < 30 and np.abs(p - target).max() < 0.1


# ---------------------------------------------------------------------------------------------------- authors' mistakes

BODY = "    p = p - lr * {} * g\n    return p\n"
MISTAKES = {
    "of rows": (BODY.format("row_sum(g)"), "row_sum needs a tensor of two or more axes: put it under `if matrix:`"),
    "size of rows": (
        BODY.format("(g / rows(g))"),
        "rows needs a tensor of two or more axes: put it under `if matrix:`",
    ),
    "of a number": (
        BODY.format("tensor_sum(lr)"),
        "tensor_sum of a value that is not one of each element: expected one, such as",
    ),
    "of a sum": (BODY.format("tensor_sum(tensor_sum(g))"), "tensor_sum of a value that is not one of each element"),
    "of a literal": (BODY.format("global_sum(1)"), "global_sum of a value that is not one of each element"),
    "in a branch": (
        "    if tensor_sum(g) > 0:\n        p = p - g\n    return p\n",
        "must be made of compile-time flags",
    ),
    "by name": (BODY.format("tensor_sum(x=g)"), "takes its arguments by position"),
    "of two": (BODY.format("tensor_sum(g, p)"), r"`tensor_sum` takes 1 argument\(s\), not 2"),
    "compared": ("    p = p - lr * (tensor_sum(g) > 0)\n    return p\n", "a comparison has no value in arithmetic"),
    "of numpy": (BODY.format("np.sum(g)"), r"`np.sum\(...\)` is not part of the rule language"),
}


@BACKENDS
@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_summed(case: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the line of the author's file, whatever the backend, before anything is written."""
    body, message = MISTAKES[case]
    text = f"from gpuopt import global_sum, row_sum, rows, tensor_sum\n\n\n@rule\ndef wrong(p, g, *, lr):\n{body}"
    p = np.ones(3)
    with pytest.raises(gpuopt.RuleSyntaxError, match=message) as caught:
        module = load(tmp_path, text, monkeypatch)
        gpuopt.optimizer(module.wrong, p, lr=0.1, backend=backend).step(np.ones(3))
    assert str(caught.value.filename).endswith("own_rules_script.py") and caught.value.lineno
    assert bits(p) == bits(np.ones(3))


def test_a_sum_in_prepare_has_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "from gpuopt import tensor_sum\n\n\n@rule\ndef wrong(p, g, *, lr, k):\n    p = p - lr * k * g\n    return p\n\n\n"
        "@wrong.prepare\ndef _(step, *, lr):\n    return dict(k=tensor_sum(lr))\n"
    )
    module = load(tmp_path, text, monkeypatch)
    with pytest.raises(gpuopt.GpuoptError, match="tensor_sum has a value only where an optimizer runs the rule"):
        gpuopt.optimizer(module.wrong, np.ones(3), lr=0.1, backend="numpy").step(np.ones(3))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"m": State("m", "m", shape="table")},
            "shape = 'table': expected one of parameter, scalar, global, row, column",
        ),
    ],
)
def test_shapes_of_states_that_there_are_not(state: Any, message: str) -> None:
    with pytest.raises(gpuopt.RuleSyntaxError, match=message):
        rule(state=state)


@BACKENDS
def test_a_state_of_one_number_is_not_set_to_an_array(backend: str) -> None:
    @rule(state={"m": State("m", "m", shape="scalar")})
    def wide(p, g, m, *, lr):  # type: ignore[no-untyped-def]
        m = m + g
        p = p - lr * m
        return p, m

    with pytest.raises(
        gpuopt.RuleSyntaxError, match="m is one number a tensor, and here it becomes one of each element"
    ):
        gpuopt.optimizer(wide, np.ones(3), lr=0.1, backend=backend).step(np.ones(3))


@BACKENDS
def test_a_number_for_all_is_not_what_one_tensor_gives(backend: str) -> None:
    """It would be that of whichever tensor comes first."""

    @rule(state={"m": State("m", "m", shape="global")})
    def one_of_many(p, g, m, *, lr):  # type: ignore[no-untyped-def]
        m = m + tensor_sum(g)
        p = p - lr * m
        return p, m

    with pytest.raises(
        gpuopt.RuleSyntaxError, match="m is one number for all tensors, and here it follows from one tensor"
    ):
        gpuopt.optimizer(one_of_many, np.ones(3), lr=0.1, backend=backend).step(np.ones(3))
