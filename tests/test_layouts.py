"""Memory order: any dense array works, in any order of axes and any direction; a gradient laid out otherwise is copied."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuopt
from gpuopt.formats.dtypes import numpy_dtype
from samples import HOST_BACKENDS, Array, bits, gradients, parameters

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
SHAPE = (3, 4, 5)
STEPS = 3


def with_odd_stride(a: Array) -> Array:
    """The same values in an array whose axis of length one has a stride that means nothing."""
    return np.lib.stride_tricks.as_strided(
        a.copy(), a.shape, [8888 if n == 1 else s for n, s in zip(a.shape, a.strides, strict=True)]
    )


# name -> the same values in another memory order; the first group leaves no gaps, so that parameters may have it
DENSE: dict[str, Callable[[Array], Array]] = {
    "C": lambda a: a.copy(),
    "Fortran": np.asfortranarray,
    "permuted": lambda a: a.transpose(1, 2, 0).copy().transpose(2, 0, 1),
    "reversed": lambda a: a[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
    "one axis reversed": lambda a: a[:, ::-1].copy()[:, ::-1],
    "permuted and reversed": lambda a: a.transpose(2, 0, 1)[::-1].copy()[::-1].transpose(1, 2, 0),
    "odd stride": lambda a: with_odd_stride(a[:, None])[:, 0],
    "offset": lambda a: np.concatenate([[9.0] * 3, a.ravel()]).astype(a.dtype)[3:].reshape(a.shape),
}
GAPPED: dict[str, Callable[[Array], Array]] = {
    "every second": lambda a: np.repeat(a, 2, axis=2)[:, :, ::2],
    "every second, reversed": lambda a: np.repeat(a[::-1], 2, axis=0)[::2][::-1],
    "columns": lambda a: np.concatenate([a, a], axis=1)[:, : a.shape[1]],
}


def run(backend: str, p: Array, layouts: list[Callable[[Array], Array]]) -> Any:
    optimizer = gpuopt.AdamW([p], lr=0.1, backend=backend)
    for step in range(STEPS):
        g = layouts[step % len(layouts)](gradients(step, [SHAPE], p.dtype)[0])
        kept = g.tobytes()
        optimizer.step([g])
        assert g.tobytes() == kept
    state = {k: np.asarray(v) for k, v in optimizer.state_dict()["state"][0].items()}
    return bits([p.copy(order="C"), {k: v.copy(order="C") for k, v in state.items()}])


@BACKENDS
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_every_layout_of_parameter_and_gradient(dtype: str, backend: str) -> None:
    start = parameters([SHAPE], numpy_dtype(dtype))[0]
    expected = run(backend, start.copy(), [DENSE["C"]])
    for name, layout in DENSE.items():
        for grad_name, grad_layout in (DENSE | GAPPED).items():
            p = layout(start)
            base = p.base if p.base is not None else p
            assert run(backend, p, [grad_layout]) == expected, (name, grad_name)
            assert np.shares_memory(p, base)


@BACKENDS
def test_a_gradient_may_change_its_layout(backend: str) -> None:
    start = parameters([SHAPE])[0]
    expected = run(backend, start.copy(), [DENSE["C"]])
    for layouts in (["C", "Fortran", "C"], ["Fortran", "permuted", "C"], ["every second", "C", "reversed"]):
        assert run(backend, start.copy(), [(DENSE | GAPPED)[name] for name in layouts]) == expected


@BACKENDS
def test_a_broadcast_gradient_is_copied(backend: str) -> None:
    """Expanded parameters are refused (test_inputs); an expanded gradient has the values that it shows."""
    p, q = np.ones((3, 4)), np.ones((3, 4))
    row = np.arange(4.0)
    gpuopt.GD(p, lr=1.0, backend=backend).step(np.broadcast_to(row, (3, 4)))
    gpuopt.GD(q, lr=1.0, backend=backend).step(np.tile(row, (3, 1)))
    assert bits(p) == bits(q)


@BACKENDS
def test_new_gradient_arrays_every_step(backend: str) -> None:
    """Their memory is freed and used again between steps; nothing may read an address of before."""
    shapes = [(1000,), (17,), (40, 30)]
    params, kept = parameters(shapes), parameters(shapes)
    fresh, reused = gpuopt.Adam(params, lr=0.1, backend=backend), gpuopt.Adam(kept, lr=0.1, backend=backend)
    buffers = [np.empty(s) for s in shapes]
    for step in range(6):
        fresh.step([g.copy() for g in gradients(step, shapes)])
        gc.collect()
        garbage = [np.full(s, np.nan) for s in shapes]
        for buffer, g in zip(buffers, gradients(step, shapes), strict=True):
            buffer[...] = g
        reused.step(buffers)
        del garbage
    assert bits(params) == bits(kept)


@BACKENDS
def test_some_gradients_stay_and_some_move(backend: str) -> None:
    """And two tensors may exchange theirs, and share one."""
    shapes = [(50,), (50,), (50,)]
    params, expected = parameters(shapes), parameters(shapes)
    optimizer, plain = gpuopt.Adam(params, lr=0.1, backend=backend), gpuopt.Adam(expected, lr=0.1, backend="numpy")
    a, b, c = gradients(0, shapes)
    for grads in ([a, b, c], [a, b.copy(), c], [b, a, c], [b, b, b], [a, b, c], [None, a, b], [c, b, a]):
        optimizer.step(grads)
        plain.step([None if g is None else g.copy() for g in grads])
    assert bits(params) == bits(expected)


@BACKENDS
def test_a_gradient_changed_in_place_is_read_anew(backend: str) -> None:
    for order in ("C", "F"):
        p = np.zeros((2, 3))
        g = np.ones((2, 3), order=order)  # type: ignore[call-overload]
        optimizer = gpuopt.GD(p, lr=1.0, backend=backend)
        optimizer.step(g)
        g[...] = 10
        optimizer.step(g)
        assert p.tolist() == [[-11.0] * 3] * 2


@BACKENDS
@pytest.mark.parametrize("which", ["parameter", "gradient"])
def test_an_array_in_use_cannot_be_resized_in_place(which: str, backend: str) -> None:
    """`resize(refcheck=False)` would move an array under everybody's feet; NumPy refuses as long as a View pins it.

    In a process of its own, since a step over memory that was freed corrupts the heap.
    """
    script = (
        "import numpy as np, gpuopt\n"
        "p, g = np.zeros(8), np.ones(8)\n"
        f"optimizer = gpuopt.GD([p], lr=1.0, backend={backend!r})\n"
        "optimizer.step([g])\n"
        "h = g.copy()\n"
        f"try: {'p' if which == 'parameter' else 'g'}.resize((100_000,), refcheck=False)\n"
        "except ValueError as error: print(p.shape, g.shape, error)\n"
        "optimizer.step([h])\n"
        "g.resize((100_000,), refcheck=False)\n"  # no longer in use
        "print(p[0], p[7], g.shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith("(8,) (8,) cannot resize an array"), done.stdout + done.stderr
    assert done.stdout.endswith("-2.0 -2.0 (100000,)\n"), done.stdout + done.stderr


@BACKENDS
def test_red_zones(backend: str) -> None:
    """Parameters, gradients and masks inside larger buffers, at odd offsets: nothing around them is touched."""

    @settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @given(
        sizes=st.lists(st.integers(0, 70), min_size=1, max_size=4),
        offsets=st.lists(st.integers(0, 15), min_size=8, max_size=8),
        dtype=st.sampled_from(["float32", "bfloat16"]),
    )
    def check(sizes: list[int], offsets: list[int], dtype: str) -> None:
        made = numpy_dtype(dtype)
        lengths = [n for n in sizes for _ in range(2)]  # a parameter and its gradient
        buffers = [np.full(n + 40, 7, made) for n in lengths]
        views = [buffer[o : o + n] for buffer, o, n in zip(buffers, offsets, lengths, strict=False)]
        params, grads = views[::2], views[1::2]
        for view in views:
            view[...] = 1
        masks = [np.ones(len(p) + 16, bool)[o : o + len(p)] for o, p in zip(offsets, params, strict=False)]
        optimizer = gpuopt.SGD(params, lr=0.5, mask=masks, backend=backend)
        optimizer.step(grads)
        assert all((p == 0.5).all() for p in params) and all((g == 1).all() for g in grads)
        for buffer, view in zip(buffers, views, strict=True):
            assert (buffer == 7).sum() == buffer.size - view.size

    check()


@BACKENDS
def test_empty_tensors_anywhere(backend: str) -> None:
    """First, in the middle, last, side by side: no effect on the others, but they count steps and have states."""
    full = [(5,), (3, 4), (1,)]
    expected = parameters(full)
    plain = gpuopt.Adam(expected, lr=0.1, backend=backend)
    for step in range(2):
        plain.step(gradients(step, full))
    for where in ([0], [1], [3], [0, 0], [1, 3], [0, 2, 5], [0, 1, 2, 3, 4]):
        params, grads = parameters(full), [gradients(step, full) for step in range(2)]
        for k in where:
            for tensors in (params, *grads):
                tensors.insert(k, np.empty((0, 3) if k % 2 else (0,)))
        optimizer = gpuopt.Adam(params, lr=0.1, backend=backend)
        for g in grads:
            optimizer.step(g)
        assert bits([p for p in params if p.size]) == bits(expected)
        state = optimizer.state_dict()["state"]
        assert [state[k]["step"] for k in range(len(params))] == [2] * len(params)
        assert [state[k]["exp_avg"].shape for k in range(len(params))] == [p.shape for p in params]
