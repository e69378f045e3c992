"""`skip_nonfinite`: one NaN or infinity anywhere and the whole step, step counts included, has not happened."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gpuopt
from cases import Array, TorchOracle
from gpuopt.formats.dtypes import numpy_dtype
from samples import HOST_BACKENDS, bits, everything, gradients, parameters

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
# Sums are taken over chunks of 8,192 elements by 256 accumulators: sizes that fill neither, one beyond each, and none.
SHAPES = [(5,), (8193,), (0,), (), (33, 257)]
SIZES = [math.prod(s) for s in SHAPES]
BAD = [math.nan, math.inf, -math.inf]
EDGES = [(0, 0), (0, 4), (1, 0), (1, 255), (1, 8191), (1, 8192), (3, 0), (4, 8191), (4, 8192), (4, 33 * 257 - 1)]


def make(backend: str, dtype: str = "float32", **options: Any) -> tuple[Any, list[Array]]:
    params = parameters(SHAPES, numpy_dtype(dtype))
    options = {"lr": 0.1, "weight_decay": 0.1, "skip_nonfinite": True} | options
    return gpuopt.AdamW(params, backend=backend, **options), params


def spoiled(step: int, tensor: int, position: int, value: float, dtype: str = "float32") -> list[Array]:
    grads = gradients(step, SHAPES, numpy_dtype(dtype))
    grads[tensor].reshape(-1)[position] = value
    return grads


positions = st.integers(0, len(SIZES) - 1).filter(lambda k: SIZES[k]).flatmap(
    lambda k: st.tuples(st.just(k), st.integers(0, SIZES[k] - 1))
)  # fmt: skip


@BACKENDS
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_any_position_leaves_everything_untouched(backend: str, dtype: str) -> None:
    """And the next finite step gives what it would have given without the bad one."""
    optimizer, params = make(backend, dtype)
    twin, twins = make(backend, dtype)
    state = {"step": 0, "skipped": 0}

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(where=positions, value=st.sampled_from(BAD))
    def check(where: tuple[int, int], value: float) -> None:
        before = everything(optimizer)
        optimizer.step(spoiled(state["step"], *where, value, dtype))
        assert everything(optimizer) == before
        state["skipped"] += 1
        assert optimizer.skipped == state["skipped"]
        good = gradients(state["step"], SHAPES, numpy_dtype(dtype))
        optimizer.step(good)
        twin.step(good)
        state["step"] += 1
        assert bits(params) == bits(twins)

    for where in reversed(EDGES):
        check = example(where=where, value=BAD[where[1] % 3])(check)
    optimizer.step(gradients(99, SHAPES, numpy_dtype(dtype)))  # so that states exist
    twin.step(gradients(99, SHAPES, numpy_dtype(dtype)))
    check()
    assert bits(optimizer.state_dict()) == bits(twin.state_dict())


@BACKENDS
def test_the_first_step_may_be_the_bad_one(backend: str) -> None:
    optimizer, params = make(backend)
    twin, twins = make(backend)
    before = bits(params)
    optimizer.step(spoiled(0, 4, 17, math.inf))
    assert bits(params) == before
    assert {entry["step"] for entry in optimizer.state_dict()["state"].values()} <= {0}
    for step in range(3):
        optimizer.step(gradients(step, SHAPES, np.float32))
        twin.step(gradients(step, SHAPES, np.float32))
    assert bits(params) == bits(twins)
    assert bits(optimizer.state_dict()) == bits(twin.state_dict())


@BACKENDS
def test_a_schedule_is_not_asked_for_a_skipped_step(backend: str) -> None:
    asked: list[int] = []

    def schedule(taken: int) -> float:
        asked.append(taken)
        return 0.1

    optimizer, _ = make(backend, lr=schedule)
    optimizer.step(gradients(0, SHAPES, np.float32))
    optimizer.step(spoiled(1, 0, 1, math.nan))
    optimizer.step(gradients(2, SHAPES, np.float32))
    assert list(dict.fromkeys(asked)) == [0, 1]


@BACKENDS
@pytest.mark.parametrize(
    "options", [{"max_grad_norm": 1.0}, {"clip_value": 0.1}, {"grad_scale": 4.0}, {"maximize": True}], ids=str
)
def test_with_other_options(options: dict[str, Any], backend: str) -> None:
    """Clipping by value would make an infinity finite again: the gradient is judged as it came."""
    optimizer, params = make(backend, **options)
    optimizer.step(gradients(0, SHAPES, np.float32))
    before = everything(optimizer)
    for value in BAD:
        optimizer.step(spoiled(1, 1, 8192, value))
    assert everything(optimizer) == before
    optimizer.step(gradients(1, SHAPES, np.float32))
    assert everything(optimizer) != before and all(np.isfinite(p).all() for p in params)


@BACKENDS
def test_all_dtypes_and_groups_are_skipped_together(backend: str) -> None:
    dtypes = ["float64", "float32", "bfloat16", "float16"]
    params = [parameters([(300,)], numpy_dtype(d))[0] for d in dtypes]
    optimizer = gpuopt.Adam([{"params": p} for p in params], skip_nonfinite=True, backend=backend)
    good = [gradients(0, [(300,)], numpy_dtype(d))[0] for d in dtypes]
    optimizer.step(good)
    before = everything(optimizer)
    for k in range(4):
        bad = [g.copy() for g in good]
        bad[k][299] = math.nan
        optimizer.step(bad)
        assert everything(optimizer) == before
    assert optimizer.skipped == 4


@BACKENDS
def test_a_missing_gradient_is_finite(backend: str) -> None:
    optimizer, _ = make(backend)
    some: list[Any] = gradients(0, SHAPES, np.float32)
    some[1] = None
    optimizer.step(some)
    assert optimizer.skipped == 0
    assert [optimizer.state_dict()["state"].get(k, {"step": 0})["step"] for k in range(5)] == [1, 0, 1, 1, 1]


@BACKENDS
def test_large_finite_gradients_are_no_reason_to_skip(backend: str) -> None:
    """Their squares overflow; the check must not look at those."""
    optimizer, _ = make(backend)
    optimizer.step([np.full(s, np.finfo(np.float32).max, np.float32) for s in SHAPES])
    assert optimizer.skipped == 0


@BACKENDS
@pytest.mark.parametrize("skip_nonfinite", [False, True])
def test_found_inf_skips_like_a_bad_gradient(skip_nonfinite: bool, backend: str) -> None:
    """The flag a gradient scaler sets; zero lets the step pass."""
    optimizer, _ = make(backend, skip_nonfinite=skip_nonfinite, grad_scale=2.0)
    optimizer.step(gradients(0, SHAPES, np.float32))
    for flag, skipped in ((np.zeros(1, np.float32), 0), (np.ones(1, np.float32), 1), (np.float32(0), 1), (None, 1)):
        before = everything(optimizer)
        optimizer.settings.found_inf = flag
        optimizer.step(gradients(1, SHAPES, np.float32))
        assert (everything(optimizer) == before) == (flag is not None and bool(flag != 0))
        assert optimizer.skipped == skipped


@BACKENDS
@pytest.mark.parametrize("shapes", [[(0,)], [(0, 3), (2, 0)]], ids=str)
def test_nothing_at_all_is_finite(shapes: list[tuple[int, ...]], backend: str) -> None:
    params = [np.zeros(s) for s in shapes]
    optimizer = gpuopt.Adam(params, skip_nonfinite=True, max_grad_norm=1.0, backend=backend)
    for _ in range(2):
        optimizer.step([np.zeros(s) for s in shapes])
    assert [entry["step"] for entry in optimizer.state_dict()["state"].values()] == [2] * len(shapes)


@BACKENDS
@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Adagrad"])
def test_without_it_nan_and_infinity_propagate_as_in_torch(name: str, backend: str) -> None:
    """Every element is torch's after two steps, an infinity the same infinity."""
    params = parameters([(9,), (3,)])
    oracle = TorchOracle(name, params, lr=0.1)
    optimizer = getattr(gpuopt, name)(params, lr=0.1, backend=backend)
    for step in range(2):
        grads = gradients(step, [(9,), (3,)])
        grads[0][[1, 4, 8]] = BAD
        optimizer.step(grads)
        oracle.step(grads)
    for p, q in zip(params, oracle.params, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-12)
