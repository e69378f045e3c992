"""Whole steps of the device backend on host memory, its kernels compiled by g++: the bits of the host (shim.backend)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import arrays, rules
from gpuopt.errors import DtypeError, InputError
from gpuopt.optim.optimizer import Optimizer
from gpuopt.source import program
from launches import OnGpu, one_of_its_kind
from shim.arena import Case, assert_same, parameters_of, same
from shim.backend import Backend, installed
from shim.variants import richest
from summing_rules import HYPER, RULES

pytestmark = pytest.mark.once
PARAMETERS = ("float64", "float32", "float16", "bfloat16")
MIXED = [0, 5, 33, 1000, 3, 4097, 8, 10_000, 0]


@pytest.fixture(scope="module")
def shim() -> Iterator[Backend]:
    """The backend, for all of this file."""
    with installed() as backend:
        yield backend


def counts(made: Optimizer) -> list[int]:
    """The step count of every tensor."""
    made.skipped  # noqa: B018 waits for the device
    return [parameter.counter.step for parameter in parameters_of(made)]


# Of rules that are one launch, three stand for the others, whose updates and rows are compared in test_bits and test_bits_device;
# those whose products want the step count refuse to be stepped where a device has it.
MADE = {name: program(name, **richest(name)) for name in rules.NAMES}
KEPT = [
    name for name in rules.NAMES if name in ("adam", "adamw", "sgd") or (MADE[name].cuts and not MADE[name].counted)
]
WHOLE = {f"{name}-float32": Case(name, richest(name), "float32", MIXED) for name in KEPT}
WHOLE |= {f"adamw-{dtype}": Case("adamw", richest("adamw"), dtype, MIXED) for dtype in PARAMETERS}
WHOLE |= {
    f"{name}-state16": Case(name, richest(name), dtype, MIXED, state_format="bfloat16")
    for name, dtype in (("adamw", "float32"), ("lion", "bfloat16"), ("rmsprop", "float16"))
}
WHOLE |= {
    f"{name}-{dtype}": Case(RULES[name], HYPER[name], dtype, MIXED)
    for name, dtype in (
        *(("trusting", "float16"), ("distant", "float64"), ("distant", "float32")),
        *(("lined", "float32"), ("lined", "bfloat16")),
    )
}


@pytest.mark.parametrize("case", WHOLE.values(), ids=WHOLE.keys())
def test_steps_of_the_device_backend(shim: Backend, case: Case) -> None:
    """Three groups, two step counts each, clip and check: the kernels decide as the host does."""
    groups = [{"lr": 0.01}, {"lr": 0.02}, {"lr": 0.03}]
    seen = [range(9), range(0, 9, 2), range(9)]
    options = {"max_grad_norm": 0.5, "grad_scale": 2.0, "skip_nonfinite": True}
    whole = replace(case, odd=0, steps=3, groups=groups, seen=seen, options=options)
    expected, reference = whole.run("numpy")
    found, made = whole.run("shim-device")
    assert_same(expected, found)
    assert reference.skipped == made.skipped == 0
    assert counts(made) == counts(reference)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, str], OnGpu]:
    """Makes numbers on a GPU."""
    monkeypatch.setattr(arrays, "KINDS", arrays.KINDS)
    monkeypatch.setattr(arrays, "_by_type", {})
    arrays.register(one_of_its_kind())
    return OnGpu


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.5}, {"skip_nonfinite": True}], ids=str)
def test_a_rate_on_the_gpu_is_read_there(
    shim: Backend, on_gpu: Callable[[float, str], OnGpu], dtype: str, options: dict[str, Any]
) -> None:
    """At every step anew, and the host asks for it once, to check it."""
    rates, beta = [on_gpu(0.5, dtype), on_gpu(0.25, dtype)], on_gpu(0.5, dtype)
    gradient = np.linspace(-1, 1, 33, dtype=np.float32)
    found, expected = (np.ones((2, 33), np.float32) for _ in range(2))
    first = {"betas": (0.5, 0.75)}
    there = gpuopt.AdamW(
        [{"params": [found[0]], "lr": rates[0]}, {"params": [found[1]], "betas": (beta, 0.75)}],
        lr=rates[1],
        **first,
        backend="shim-device",
        **options,
    )
    here = gpuopt.AdamW(
        [{"params": [expected[0]], "lr": 0.5}, {"params": [expected[1]]}], lr=0.25, **first, backend="numpy", **options
    )
    asked = []
    for step in range(5):
        for opt in (here, there):
            opt.step([[gradient], [gradient]])
        asked.append([number.asked for number in (*rates, beta)])
        for group, rate in zip(here.param_groups, rates, strict=True):
            group["lr"] = rate.memory[0] = (step + 1) / 8
    assert same(found, expected)
    assert asked == [asked[0]] * 5
    assert counts(there) == [5, 5]


def test_what_cannot_be_a_rate_on_the_gpu(on_gpu: Callable[[float, str], OnGpu]) -> None:
    with pytest.raises(DtypeError, match=r"lr: float16 .*expected one float32 or float64"):
        gpuopt.AdamW(np.ones(3), lr=on_gpu(0.5, "float16"), backend="numpy")
    with pytest.raises(DtypeError, match="betas: float16"):
        gpuopt.AdamW(np.ones(3), betas=(0.9, on_gpu(0.5, "float16")), backend="numpy")
    with pytest.raises(InputError, match=r"lr = .*expected a number in"):
        gpuopt.AdamW(np.ones(3), lr=on_gpu(-1.0, "float32"), backend="numpy")


def test_a_schedule_is_asked_once_a_step(shim: Backend) -> None:
    """Where the rows are made on the device too."""
    asked: list[int] = []
    opt = gpuopt.GD(np.ones(3), lr=lambda t: asked.append(t) or 0.1, max_grad_norm=1.0, backend="shim-device")
    for _ in range(3):
        opt.step(np.ones(3))
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("option", ["capturable", "skip_nonfinite"])
def test_counts_change_sides_with_the_options(shim: Backend, option: str) -> None:
    """Step counts live on the device only as long as something there decides."""
    found, expected = np.ones(33, np.float32), np.ones(33, np.float32)
    made = [gpuopt.Adam(p, lr=0.1, backend=b) for p, b in ((found, "shim-device"), (expected, "numpy"))]
    for number in range(8):
        for opt in made:
            setattr(opt._engine.settings, option, number in (2, 3, 6))
            opt.step(np.full(33, 1.0 + number, np.float32))
    assert same(found, expected)
    assert counts(made[0]) == counts(made[1]) == [8]


def test_an_empty_tensor_counts_its_steps_on_the_device_too(shim: Backend) -> None:
    """Even where no other tensor has missed the same gradients, so that no kernel touches anything for its sake."""
    seen = [[0, 1], [1], [0, 1]]
    case = Case(
        "adamw", richest("adamw"), "float32", [5, 0], odd=0, steps=3, seen=seen, options={"skip_nonfinite": True}
    )
    found = {}
    for backend in ("numpy", "shim-device"):
        made = case.run(backend)[1]
        found[backend] = counts(made)
    assert found == {"numpy": [2, 3], "shim-device": [2, 3]}


@pytest.mark.parametrize("backend", ["numpy", "numba", "shim", "shim-device"])
@pytest.mark.parametrize(("name", "bad"), [("adamw", np.nan), ("adamw", np.inf), ("lamb", -np.inf), ("lamb", np.nan)])
def test_a_bad_gradient_anywhere_changes_nothing(shim: Backend, backend: str, name: str, bad: float) -> None:
    """Parameters, states and step counts, also where passes that sum store states; the next good step goes on as if the bad one had
    not been.
    """
    hyper = richest(name) | {"weight_decay": 0.1}  # without which LAMB has one pass
    case = Case(name, hyper, "float32", MIXED, odd=0, options={"skip_nonfinite": True})
    arenas = {role: arena.copy() for role, arena in case.start.items()}
    made = case.optimizer(arenas, backend)
    grads = arenas["g"].arrays
    made.step([grads])
    before = {role: arena.memory.copy() for role, arena in arenas.items()}
    for tensor, element in ((1, 0), (2, 32), (5, 4096), (7, 9999)):
        kept = grads[tensor][element]
        grads[tensor][element] = bad
        made.step([grads])
        grads[tensor][element] = kept
        assert all((arena.memory == before[role]).all() for role, arena in arenas.items())
    assert made.skipped == 4
    made.step([grads])
    assert made.skipped == 4
    assert counts(made) == [2] * len(MIXED)
    assert_same(case.run("numpy")[0], arenas)


@pytest.mark.parametrize("backend", ["numpy", "numba", "shim", "shim-device"])
def test_gradients_whose_squares_overflow_are_finite(shim: Backend, backend: str) -> None:
    """The check for bad gradients neither skips the step nor spoils it, though their norm is infinite in float32."""
    plain, checked = (np.ones(9, np.float32) for _ in range(2))
    grad = np.full(9, 1e25, np.float32)
    for params, more in ((plain, {}), (checked, {"skip_nonfinite": True})):
        opt = gpuopt.GD(params, lr=1e-25, maximize=True, backend=backend, **more)
        opt.step(grad)
        assert opt.skipped == 0
    assert same(plain, checked) and np.allclose(plain, 2)
