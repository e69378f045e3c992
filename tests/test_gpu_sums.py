"""Rules that ask for sums on a GPU: launches that wait for each other, CUDA graphs, skipped steps, many chunks. Marked `gpu`.

Their bits at every dtype are in test_bits_gpu.py.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import arrays, backends
from gpuopt.compiler.parts import Pass, PerTensor
from gpuopt.launch import sums
from graphs import BACKENDS, NORMS, captured, device_array, new_stream, stepped
from summing_rules import HYPER, RULES

pytestmark = pytest.mark.gpu
# Of parameters and gradients: two launches a step.
DTYPES = ("float32", "bfloat16")
SIZES = (300, 5, 9000, 0, 33, 77, 1, 64)


def numbers(seed: int) -> list[Any]:
    from gpuopt.formats.dtypes import numpy_dtype

    rng = np.random.default_rng(seed)
    return [rng.standard_normal(n).astype(numpy_dtype(DTYPES[k % 2])) for k, n in enumerate(SIZES)]


def there(array: Any) -> Any:
    import cupy

    raw = cupy.asarray(array.view(f"u{array.itemsize}"))
    return raw if array.dtype.kind == "u" else raw.view(array.dtype)


def mixed(backend: str, name: str = "distant") -> tuple[list[bytes], list[Any]]:
    """Parameters and states of one number after two steps on parameters of several dtypes."""
    place = np.copy if backend == "numpy" else there
    params = [place(a) for a in numbers(0)]
    opt = gpuopt.optimizer(RULES[name], params, backend=backend, **HYPER[name])
    for seed in (1, 2):
        opt.step([place(a) for a in numbers(seed)])
    states = [arrays.number(s[key]) for s in opt.state_dict()["state"].values() for key in ("distance", "numerator")]
    return [(p if backend == "numpy" else p.get()).tobytes() for p in params], states


@pytest.mark.parametrize("backend", BACKENDS)
def test_launches_of_several_dtypes_wait_for_each_other(backend: str) -> None:
    """A sum over all tensors is one of all launches, though each has kernels of its own."""
    assert mixed(backend) == mixed("numpy")


def matrices(first: int, second: int) -> list[Any]:
    return [device_array(first, 300).reshape(15, 20), device_array(second, 9000).reshape(90, 100)]


@pytest.mark.parametrize(
    ("name", "backend", "options"),
    [
        pytest.param(name, backend, options, id=f"{name}-{backend}-{'options' if options else 'plain'}", marks=marks)
        for name, backend, usual in (  # sums of the gradients, or not: each backend and each kind of sums meets both
            ("trusting", "cupy", {}),
            ("distant", "numba-cuda", NORMS),
            ("distant", "cupy", {}),
            ("lined", "numba-cuda", {}),
            ("lined", "cupy", NORMS),
        )
        for options in ({}, NORMS)
        for marks in ([] if options == usual else [pytest.mark.long],)
    ],
)
def test_graphs_and_eager_steps_in_turn(name: str, backend: str, options: Any) -> None:
    """A graph has passes of its own: steps between its replays, with other gradients, leave them alone."""
    stream, hyper = new_stream(), {**HYPER[name], **options}
    params = [matrices(0, 9) for _ in range(2)]
    one = gpuopt.optimizer(RULES[name], params[0], backend=backend, capturable=True, **hyper)
    usual = gpuopt.optimizer(RULES[name], params[1], backend=backend, **hyper)
    grads = [matrices(k, k + 10) for k in range(1, 5)]
    for opt in (one, usual):
        stepped(stream, opt, grads[0])
    graphs = [captured(stream, lambda g=g: one.step(g)) for g in grads[:2]]
    for replayed, eager in ((1, 2), (0, 3), (1, 3)):
        graphs[replayed].launch(stream)
        stepped(stream, usual, grads[replayed])
        for opt in (one, usual):
            stepped(stream, opt, grads[eager])
    stream.synchronize()
    assert all(a.get().tobytes() == b.get().tobytes() for a, b in zip(*params, strict=True))
    assert one.state_dict()["state"][0]["step"] == usual.state_dict()["state"][0]["step"] == 7


@pytest.mark.parametrize(("name", "backend"), [("trusting", "numba-cuda"), ("distant", "cupy")])
def test_a_skipped_step_leaves_states_of_one_number(name: str, backend: str) -> None:
    import cupy

    found = []
    for bad in (False, True):
        param, grad = device_array(0, 300), device_array(1, 300)
        opt = gpuopt.optimizer(RULES[name], [param], backend=backend, skip_nonfinite=True, **HYPER[name])
        opt.step([grad])
        if bad:
            broken = grad.copy()
            broken[299] = cupy.nan
            opt.step([broken])
            assert opt.skipped == 1
        opt.step([grad])
        cells = [arrays.number(v) for v in opt.state_dict()["state"][0].values() if np.ndim(v) == 0]
        found.append((param.get().tobytes(), cells))
    assert found[0] == found[1] and len(found[0][1]) > 1


KINDS = ("tensor_sum", "tensor_max")
CHUNKS = (1, 0, 257, 2, 700)  # of a tensor: more than a block has threads


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_chunks_than_threads_are_joined_in_one_order(backend: str) -> None:
    """The kernel alone: arrays of as many chunks would take long."""
    import cupy

    begins = np.cumsum([0, *CHUNKS])
    partials = np.random.default_rng(0).standard_normal((begins[-1], len(KINDS)))
    partials[300, 0] = partials[400, 1] = np.nan
    expected = [
        [sums.tensor_total(partials[a:b, k], kind) for k, kind in enumerate(KINDS)] for a, b in pairwise(begins)
    ]
    runtime = backends.get(backend, "cuda:0").runtime
    step = PerTensor(Pass((), (), (), (), 0, KINDS), None, "float32", len(KINDS))
    table, there_ = (
        cupy.zeros((len(CHUNKS), 9), np.int64),
        [cupy.asarray(begins.astype(np.int64)), cupy.asarray(partials)],
    )
    totals = cupy.zeros((len(CHUNKS), len(KINDS)))
    cupy.cuda.Device().synchronize()
    pointers = (there_[0].data.ptr, 0, there_[1].data.ptr, totals.data.ptr, totals.data.ptr)
    given = runtime.packed((table.data.ptr, table.shape[1], len(CHUNKS), *pointers))
    runtime.launch(runtime.per_tensor_kernel(step), 2, given, runtime.stream(0))
    runtime.wait()
    assert np.array_equal(totals.get(), np.array(expected), equal_nan=True)
