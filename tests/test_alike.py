"""New gradient arrays at every step: what is looked at of those that are alike, and what must not be taken for alike."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt.errors import DtypeError, GpuoptError, InputError
from samples import HOST_BACKENDS, everything, refused

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
SHAPES = [(30, 4), (7,), (), (0,), (5, 6, 2)]


def fresh(seed: int, order: Callable[[Any], Any] = np.ascontiguousarray) -> list[Any]:
    source = np.random.default_rng(seed)
    return [order(np.asarray(source.normal(size=shape), np.float32)) for shape in SHAPES]


def made(backend: str, **options: Any) -> Any:
    return gpuopt.AdamW(fresh(0), lr=0.1, backend=backend, **options)


def whole(opt: Any) -> Any:
    return everything(opt)


ORDERS: dict[str, Callable[[Any], Any]] = {
    "C": lambda a: a.copy(),
    "F": lambda a: np.array(a, order="F"),
    "reversed": lambda a: a[::-1].copy()[::-1] if a.ndim else a.copy(),
    "a view at an odd place": lambda a: np.concatenate([[0], a.ravel()]).astype(np.float32)[1:].reshape(a.shape),
}


@BACKENDS
@pytest.mark.parametrize("order", ORDERS)
def test_the_bits_are_those_of_gradients_in_one_place(order: str, backend: str) -> None:
    """Steps with new arrays, with the same ones again, and with new ones after that."""
    params, kept = [ORDERS[order](p) for p in fresh(0)], fresh(1)
    ours, usual = gpuopt.AdamW(params, lr=0.1, backend=backend), made(backend)
    seeds = [1, 2, 3, 3, 3, 4, 5]
    held: dict[int, list[Any]] = {}
    for seed in seeds:
        ours.step(held.setdefault(seed, [ORDERS[order](g) for g in fresh(seed)]))
        for place, g in zip(kept, fresh(seed), strict=True):
            place[...] = g
        usual.step(kept)
    for p, q in zip(params, usual.param_groups[0]["params"], strict=True):
        assert np.array_equal(p, q)
    assert ours._engine._alike is not None


def calls_of_a_step(library: Any, **options: Any) -> dict[str, int]:
    """Python's calls and calls of C in a step with new gradients for 150 tensors."""
    params = [library.zeros(40, np.float32) for _ in range(150)]
    opt = gpuopt.AdamW(params, lr=0.1, **options)
    given = [[library.ones(40, np.float32) for _ in params] for _ in range(5)]
    for grads in given[:4]:
        opt.step(grads)
    counts = {"call": 0, "c_call": 0}

    def count(frame: Any, event: str, argument: Any) -> None:
        counts[event] = counts.get(event, 0) + 1

    sys.setprofile(count)
    try:
        opt.step(given[4])
    finally:
        sys.setprofile(None)
    return counts


def test_new_arrays_that_are_alike_cost_their_addresses() -> None:
    """With a look at every gradient there are thousands of calls."""
    counts = calls_of_a_step(np)
    assert counts["call"] < 150 and counts["c_call"] < 150, counts


@pytest.mark.gpu
def test_new_arrays_of_cupy_cost_their_addresses() -> None:
    """Of each gradient its `data`; a launch takes a hundred calls more."""
    import cupy

    counts = calls_of_a_step(cupy, backend="cupy")
    assert counts["call"] < 300 and counts["c_call"] < 300, counts


@BACKENDS
@pytest.mark.parametrize(
    ("odd", "error", "words"),
    [
        (lambda g, p: g.astype(np.float64), DtypeError, "float64"),
        (lambda g, p: g.astype(np.int32), DtypeError, "int32"),
        (lambda g, p: g.astype(">f4"), DtypeError, "byte order"),
        (lambda g, p: np.ma.array(g), DtypeError, "masked"),
        (lambda g, p: g.ravel(), InputError, "shape"),
        (lambda g, p: g.tolist(), GpuoptError, "gradient of params[0]"),
        (lambda g, p: np.frombuffer(b"x" + g.tobytes(), np.float32, g.size, 1).reshape(g.shape), InputError, "address"),
        (lambda g, p: p, InputError, "shares memory"),
        (lambda g, p: p[...], InputError, "shares memory"),
    ],
)
def test_what_is_not_alike_is_looked_at(odd: Callable[..., Any], error: Any, words: str, backend: str) -> None:
    """And refused as at the first step, nothing changed; the steps behind it go on."""
    opt, usual = made(backend), made(backend)
    for seed in (1, 2, 3):
        opt.step(fresh(seed))
        usual.step(fresh(seed))
    grads = fresh(4)
    grads[0] = odd(grads[0], opt.param_groups[0]["params"][0])
    with refused(opt, error, words):
        opt.step(grads)
    for seed in (5, 6):
        opt.step(fresh(seed))
        usual.step(fresh(seed))
    assert whole(opt) == whole(usual)


@BACKENDS
def test_missing_gradients_and_numbers_in_between(backend: str) -> None:
    opt, usual = made(backend), made(backend)
    for seed in range(8):
        grads = fresh(seed)
        if seed in (2, 5):
            grads[seed % 4] = None
        if seed == 3:
            grads[2] = np.float32(0.5)
        for one in (opt, usual):
            one._engine._alike = one._engine._alike if one is opt else None
            one.step([None if g is None else g if g.shape == () else g.copy() for g in grads])
    assert whole(opt) == whole(usual)


@BACKENDS
def test_gradients_of_16_bits_for_some(backend: str) -> None:
    """A dtype that goes with the parameter's, from one step on."""
    p, q = np.ones(9, np.float32), np.ones(9, np.float32)
    ours, usual = (gpuopt.GD([a], lr=0.5, backend=backend) for a in (p, q))
    for dtype in (np.float32, np.float32, np.float16, np.float16, np.float32):
        ours.step([np.full(9, 0.25, dtype)])
        usual.step([np.full(9, 0.25, np.float32)])
    assert p.tobytes() == q.tobytes()


def test_a_gradient_may_be_resized_between_steps() -> None:
    """What was only glanced at is not remembered: an array that comes again is looked at."""
    w = np.zeros(4, np.float32)
    opt = gpuopt.GD([w], lr=1.0)
    for _ in range(3):
        g = np.ones(4, np.float32)
        opt.step([g])
    g[:] = 2
    opt.step([g])
    opt.step([g])
    assert w.tolist() == [-7.0] * 4
