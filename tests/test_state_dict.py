"""`state_dict` and `load_state_dict`: continuing from a saved state gives the bits of a run that was never interrupted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuopt
from cases import CASES, Case
from covering import REPRESENTATIVES
from gpuopt.formats.dtypes import numpy_dtype
from samples import HOST_BACKENDS, Array, Scarce, bits, gradients, parameters, refused

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
SHAPES = [(3, 4), (7,), (), (0,), (20, 50)]
# One row of the table for each optimizer is enough: the one with most options, whose states are all there.
FULL = {case.optimizer: case for case in CASES}
FULL["Adam"] = Case("Adam", {"lr": 0.01, "amsgrad": True})
FULL["RMSprop"] = Case("RMSprop", {"lr": 0.01, "centered": True, "momentum": 0.9})
FULL["SGD"] = Case("SGD", {"lr": 0.01, "momentum": 0.9, "dampening": 0.5})
DTYPES = ["float32", "bfloat16", "float64", "float16", "float32"]


def tensors(step: int | None = None) -> list[Array]:
    """The parameters, or the gradients of a step, of several dtypes."""
    made = parameters(SHAPES) if step is None else gradients(step, SHAPES)
    return [a.astype(numpy_dtype(d)) for a, d in zip(made, DTYPES, strict=True)]


def make(case: Case, backend: str, params: list[Array]) -> Any:
    return getattr(gpuopt, case.optimizer)(
        [{"params": params[:2]}, {"params": params[2:], "l1": 0.1}], backend=backend, **case.options
    )


def step(optimizer: Any, k: int) -> None:
    grads: list[Any] = tensors(k)
    if k == 1:
        grads[1] = None
    optimizer.step([grads[:2], grads[2:]])


# Every rule goes on where it was with NumPy; to and from Numba some do: states are the same arrays, and Numba has NumPy's bits.
TRIPS = [("numpy", "numpy"), ("numba", "numba"), ("numpy", "numba"), ("numba", "numpy")]
OFTEN = [name for name in FULL if name.lower() in (*REPRESENTATIVES, "lamb", "adafactor")]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        pytest.param(name, *trip, marks=[] if trip == TRIPS[0] or name in OFTEN else pytest.mark.long)
        for name in FULL
        for trip in TRIPS
    ],
)
def test_round_trip_in_the_middle_of_training(name: str, first: str, second: str) -> None:
    """With a tensor that missed a gradient, hyperparameters that were changed, and onto another backend too."""
    params = tensors()
    interrupted, whole = make(FULL[name], first, params), make(FULL[name], first, whole_params := tensors())
    for optimizer in (interrupted, whole):
        for k in range(3):
            step(optimizer, k)
        optimizer.param_groups[0]["lr"] = 0.007
    saved = interrupted.state_dict()
    frozen = bits(saved)
    for k in range(3, 5):
        step(whole, k)
    params = [p.copy() for p in params]
    resumed = make(FULL[name], second, params)
    resumed.load_state_dict(saved)
    for k in range(3, 5):
        step(resumed, k)
    assert bits(params) == bits(whole_params)
    assert bits(resumed.state_dict()) == bits(whole.state_dict())
    assert bits(saved) == frozen, "what was saved belongs to the caller: no step changes it"


@BACKENDS
def test_loading_replaces_what_was_there(backend: str) -> None:
    """Also in an optimizer that has run: its own states and counts are forgotten, tensors without an entry start anew."""
    early = make(FULL["Adam"], backend, tensors())
    grads: list[Any] = tensors(0)
    early.step([[grads[0], None], [None, None, None]])
    params, others = tensors(), tensors()
    busy, fresh = make(FULL["Adam"], backend, params), make(FULL["Adam"], backend, others)
    for k in range(3):
        step(busy, k)
    for p, q in zip(params, others, strict=True):
        p[...] = q
    for optimizer in (busy, fresh):
        optimizer.load_state_dict(early.state_dict())
        step(optimizer, 3)
    assert bits([params, busy.state_dict()]) == bits([others, fresh.state_dict()])
    assert [busy.state_dict()["state"][k]["step"] for k in range(5)] == [2, 1, 1, 1, 1]


def test_the_form_of_a_state_dict() -> None:
    """Plain dicts, lists, numbers, strings and arrays, under torch's names."""
    optimizer = make(FULL["Adam"], "numpy", tensors())
    step(optimizer, 0)
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups", "rule", "version"}
    assert set(saved["state"]) == set(range(5))
    assert set(saved["state"][0]) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1], [2, 3, 4]]
    assert saved["param_groups"][0]["betas"] == (0.9, 0.999)

    def plain(tree: Any) -> bool:
        if isinstance(tree, dict):
            return all(isinstance(k, (str, int)) and plain(v) for k, v in tree.items())
        if isinstance(tree, (list, tuple)):
            return all(map(plain, tree))
        return tree is None or type(tree) in (int, float, bool, str, np.ndarray)

    assert plain(saved)
    saved["state"][0]["exp_avg"][...] = 99
    saved["param_groups"][0]["lr"] = 99
    assert not (optimizer.state_dict()["state"][0]["exp_avg"] == 99).any() and optimizer.param_groups[0]["lr"] != 99


@pytest.mark.parametrize("value", [None, 0.5])
def test_every_hyperparameter_is_loaded(value: float | None) -> None:
    """Also one that is None in the saved state and a number here."""
    saved = gpuopt.SGD(
        np.ones(3), clip_value=value, l1=0.1, maximize=True, nesterov=True, momentum=0.8, backend="numpy"
    ).state_dict()
    optimizer = gpuopt.SGD(np.ones(3), clip_value=2.0, lr=0.3, backend="numpy")
    optimizer.load_state_dict(saved)
    group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    assert group == {k: v for k, v in saved["param_groups"][0].items() if k != "params"}
    assert group["clip_value"] == value


def test_a_schedule_stays_the_callers() -> None:
    def schedule(taken: int) -> float:
        return 0.1

    saved = gpuopt.GD(np.ones(3), lr=schedule, backend="numpy").state_dict()
    assert saved["param_groups"][0]["lr"] is None
    optimizer = gpuopt.GD(np.ones(3), lr=0.5, backend="numpy")
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.5


@BACKENDS
def test_states_take_the_memory_order_of_the_parameter(backend: str) -> None:
    start = parameters([(4, 6)])[0]
    results = []
    for order in ("C", "F"):
        p = np.array(start, order=order)  # type: ignore[call-overload]
        optimizer = gpuopt.Adam(p, lr=0.1, backend=backend)
        optimizer.step(gradients(0, [(4, 6)])[0])
        saved = optimizer.state_dict()
        other = gpuopt.Adam(q := np.array(p, order="F" if order == "C" else "C"), lr=0.1, backend=backend)
        other.load_state_dict(saved)
        for one in (optimizer, other):
            one.step(gradients(1, [(4, 6)])[0])
        results += [bits(np.ascontiguousarray(a)) for a in (p, q)]
    assert results == [results[0]] * 4


@BACKENDS
def test_states_come_in_the_format_of_this_optimizer(backend: str) -> None:
    """Saved by one that keeps bfloat16, loaded into one that keeps float32, and from a run in float64."""
    saved = {}
    for dtype, format in (("float32", "bfloat16"), ("float64", "float32")):
        optimizer = gpuopt.Adam(parameters([(9,)], dtype)[0], state_format=format, backend=backend)
        optimizer.step(gradients(0, [(9,)], dtype)[0])
        saved[dtype] = optimizer.state_dict()
    for dtype, state in saved.items():
        optimizer = gpuopt.Adam(parameters([(9,)], np.float32)[0], backend=backend)
        optimizer.load_state_dict(state)
        found, expected = optimizer.state_dict()["state"][0], state["state"][0]
        for key in ("exp_avg", "exp_avg_sq"):
            assert bits(found[key]) == bits(expected[key].astype(np.float32)), dtype
        optimizer.step(gradients(1, [(9,)], np.float32)[0])
        assert optimizer.state_dict()["state"][0]["exp_avg"].dtype == np.float32


# ---------------------------------------------------------------------------------------------------- bad states


def change(path: list[Any], value: Any) -> Callable[[dict[str, Any]], None]:
    """A function that sets (or, for `...`, deletes) what lies at the path."""

    def apply(saved: dict[str, Any]) -> None:
        inner: Any = saved
        for key in path[:-1]:
            inner = inner[key]
        if value is ...:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value

    return apply


BAD: dict[str, tuple[Callable[[dict[str, Any]], None], tuple[str, ...]]] = {
    "another rule": (change(["rule"], "sgd"), ("'sgd'", "expected 'adamw'")),
    "no rule": (change(["rule"], ...), ("None", "expected 'adamw'")),
    "another version": (change(["version"], 99), ("99", "expected")),
    "no groups": (change(["param_groups"], ...), ("param_groups",)),
    "no state": (change(["state"], ...), ("state",)),
    "fewer groups": (lambda d: d["param_groups"].pop(), ("[2]", "expected [2, 3]")),
    "fewer tensors": (change(["param_groups", 1, "params"], [2, 3]), ("[2, 2]", "expected [2, 3]")),
    "a tensor too many": (change(["state", 5], {"step": 1}), ("5",)),
    "an unknown state": (change(["state", 1, "momentum_buffer"], np.ones(7)), ("momentum_buffer", "exp_avg")),
    "a missing state": (change(["state", 1, "exp_avg_sq"], ...), ("exp_avg_sq",)),
    "another shape": (change(["state", 4, "exp_avg"], np.ones((20, 49))), ("exp_avg", "(20, 49)", "(20, 50)")),
    "integers": (change(["state", 4, "exp_avg"], np.ones((20, 50), int)), ("exp_avg", "int64", "floating")),
    "complex": (change(["state", 4, "exp_avg"], np.ones((20, 50), complex)), ("exp_avg", "complex", "real")),
    "a list of text": (change(["state", 1, "exp_avg"], ["0"] * 7), ("exp_avg", "floating")),
    "lists of unequal lengths": (change(["state", 1, "exp_avg"], [[0.0], 0.0]), ("exp_avg", "list")),
    "a list too short": (change(["state", 1, "exp_avg"], [0.0] * 6), ("exp_avg", "(6,)", "(7,)")),
    "a negative step": (change(["state", 4, "step"], -1), ("step", "-1")),
    "half a step": (change(["state", 4, "step"], 0.5), ("step", "0.5")),
    "no step": (change(["state", 4, "step"], ...), ("step",)),
    "a bad lr": (change(["param_groups", 1, "lr"], -1.0), ("param_groups[1]", "lr", "-1.0", "[0, inf)")),
    "bad betas": (change(["param_groups", 0, "betas"], (0.9, 1.0)), ("param_groups[0]", "betas", "[0, 1)")),
    "an unknown option": (change(["param_groups", 0, "momentum"], 0.9), ("param_groups[0]", "momentum")),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_state_dict_changes_nothing(what: str) -> None:
    alter, words = BAD[what]
    optimizer = make(Case("AdamW"), "numpy", tensors())
    step(optimizer, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    alter(saved)
    step(optimizer, 2)
    with refused(optimizer, gpuopt.GpuoptError, *words):
        optimizer.load_state_dict(saved)
    step(optimizer, 3)


def test_memory_that_runs_out_while_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any allocation: nothing is changed, and loading again works."""
    saver = make(Case("AdamW"), "numpy", tensors())
    step(saver, 0)
    saved = saver.state_dict()
    scarce = Scarce(monkeypatch)

    def stepped() -> Any:
        optimizer = make(Case("AdamW"), "numpy", tensors())
        step(optimizer, 1)
        return optimizer

    optimizer = stepped()
    before = scarce.calls
    optimizer.load_state_dict(saved)
    allocations = scarce.calls - before
    assert allocations >= 10
    for k in range(1, allocations + 1):
        optimizer = stepped()
        scarce.fails_at = scarce.calls + k
        with refused(optimizer, MemoryError):
            optimizer.load_state_dict(saved)
        optimizer.load_state_dict(saved)
        assert bits(optimizer.state_dict()) == bits(saved)


@pytest.mark.parametrize("what", [None, [], "state", {}, {"state": {}}], ids=str)
def test_what_is_no_state_dict(what: Any) -> None:
    optimizer = make(Case("AdamW"), "numpy", tensors())
    with refused(optimizer, gpuopt.InputError, "state_dict"):
        optimizer.load_state_dict(what)
