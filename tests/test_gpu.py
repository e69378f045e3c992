"""The GPU backends on a GPU, against the CPU: bits, streams, graphs, many tensors. Marked `gpu`; needs CuPy and Numba CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuopt
from covering import Axis, each
from gpuopt import rules
from gpuopt.formats.dtypes import PARAMETER_DTYPES, numpy_dtype
from gpuopt.optim.between import averages
from launches import FULL, OPTIONS, exact_on_device

pytestmark = pytest.mark.gpu
WITH: dict[str, dict[str, Any]] = {"plain": {}, "options": {**OPTIONS, "skip_nonfinite": True}}
WAYS = ("adamw", "lamb", "prodigy", "adafactor")
SHAPES = ((), (1,), (7, 5), (257,), (0,), (4099,), (3, 1, 129), (17001,))


def values(dtype: str, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape)).astype(numpy_dtype(dtype)) for shape in SHAPES]


def to_cupy(array: Any) -> Any:
    import cupy

    return cupy.asarray(array)


def to_numba(array: Any) -> Any:
    from numba import cuda

    return cuda.to_device(array)


def to_host(array: Any) -> Any:
    return array.get() if hasattr(array, "get") else array.copy_to_host()


def trained(name: str, backend: str, dtype: str, place: Callable[[Any], Any], options: dict[str, Any]) -> Any:
    """Parameters and state after 5 steps, one of them with a NaN where steps may be skipped."""
    params = [place(a) for a in values(dtype, 0)]
    options = {**FULL.get(name, {}), **options}
    if not exact_on_device(name):
        options = {k: v for k, v in options.items() if k not in ("max_grad_norm", "skip_nonfinite")}
    if options.pop("mask", False):
        options["mask"] = [place(np.asarray(a.astype(np.float64) > -1)) for a in values(dtype, 9)]
    if options.pop("bounds", False) and not averages(rules.get(name)):
        options["bounds"] = [(-1.5, place(abs(a))) for a in values(dtype, 10)]
    opt = gpuopt.create(name, params, **{"lr": 0.01, "backend": backend} | options)
    for step in range(5):
        grads = values(dtype, step + 1)
        if options.get("skip_nonfinite") and step == 2:
            grads[-1][12345] = np.nan
        opt.step([place(g) for g in grads])
    return opt, params


def assert_same(left: tuple[Any, Any], right: tuple[Any, Any]) -> None:
    for a, b in zip(left[1], right[1], strict=True):
        assert a.tobytes() == to_host(b).tobytes()
    one, two = left[0].state_dict()["state"], right[0].state_dict()["state"]
    for index, state in one.items():
        assert state["step"] == two[index]["step"]
        for key in state:
            assert key == "step" or state[key].tobytes() == to_host(two[index][key]).tobytes(), key


def of_ways(dtypes: Axis) -> list[Any]:
    """Every rule, but outside of --long one for each way to make a step: without sums, with sums over a tensor, over all of them,
    and over rows and columns. Arithmetic, flags and dtypes of every rule are compared in test_bits_gpu.py, on the same walks.
    """
    found = each(rules.NAMES, dtypes, WITH, single=True)
    return [p if p.values[0] in WAYS else pytest.param(*p.values, marks=pytest.mark.long) for p in found]


@pytest.mark.parametrize(("name", "dtype", "options"), of_ways(PARAMETER_DTYPES))
def test_cupy_gives_the_bits_of_numpy(name: str, dtype: str, options: str) -> None:
    given = WITH[options]
    assert_same(trained(name, "numpy", dtype, lambda a: a, given), trained(name, "cupy", dtype, to_cupy, given))


@pytest.mark.parametrize(
    ("name", "dtype", "options", "backend"),
    each(
        ("adamw",),  # of every rule: test_bits_gpu.py
        ("float32", "bfloat16"),
        WITH,
        ("cupy", "numba-cuda"),
    ),
)
def test_states_are_rounded_at_random_with_the_bits_of_numpy(name: str, backend: str, dtype: str, options: str) -> None:
    given = {**WITH[options], "state_format": "bfloat16", "seed": 2**63 + 5}
    assert_same(trained(name, "numpy", dtype, lambda a: a, given), trained(name, backend, dtype, to_cupy, given))


@pytest.mark.parametrize(("name", "dtype", "options"), of_ways(("float64", "float32", "float16")))
def test_numba_cuda_gives_the_bits_of_numpy(name: str, dtype: str, options: str) -> None:
    left = trained(name, "numpy", dtype, lambda a: a, WITH[options])
    assert_same(left, trained(name, "numba-cuda", dtype, to_numba, WITH[options]))


def test_many_tensors_in_one_launch() -> None:
    import cupy

    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 300, 1500)
    host = [rng.standard_normal(n).astype(np.float32) for n in sizes]
    device = [cupy.asarray(a) for a in host]
    grads = [rng.standard_normal(n).astype(np.float32) for n in sizes]
    for params, given, backend in ((host, grads, "numpy"), (device, [cupy.asarray(g) for g in grads], "cupy")):
        opt = gpuopt.AdamW(params, backend=backend)
        for _ in range(3):
            opt.step(given)
        assert opt.launches == 1
    assert all(a.tobytes() == b.get().tobytes() for a, b in zip(host, device, strict=True))


@pytest.mark.parametrize("backend", ("cupy", "numba-cuda"))
@pytest.mark.parametrize(("count", "unit"), [(100, 32), (300, 64), (1000, 128), (2048, 256)])
def test_threads_of_a_tile_follow_its_packs(backend: str, count: int, unit: int) -> None:
    import cupy

    rng = np.random.default_rng(0)
    host = [rng.standard_normal(count).astype(np.float32) for _ in range(3)]
    device, grads = [cupy.asarray(a) for a in host], [rng.standard_normal(count).astype(np.float32) for _ in host]
    for params, given, name in ((host, grads, "numpy"), (device, [cupy.asarray(g) for g in grads], backend)):
        opt = gpuopt.AdamW(params, backend=name)
        for _ in range(2):
            opt.step(given)
    assert opt._engine._launches[0][1][0].private["device_launch"].unit == unit
    assert all(a.tobytes() == b.get().tobytes() for a, b in zip(host, device, strict=True))


@pytest.mark.parametrize("backend", ("cupy", "numba-cuda"))
@pytest.mark.parametrize("dtype", PARAMETER_DTYPES)
def test_norms_of_whole_chunks_and_their_rest(dtype: str, backend: str) -> None:
    import cupy

    rng = np.random.default_rng(0)
    host, grads = ([rng.standard_normal(n).astype(numpy_dtype(dtype)) for n in (16384, 8192 + 5)] for _ in range(2))
    device = [cupy.asarray(a) for a in host]
    odd = [cupy.concatenate([g[:1], g])[1:] for g in map(cupy.asarray, grads)]  # not on 16 bytes
    for params, given, name in ((host, grads, "numpy"), (device, [odd[0], cupy.asarray(grads[1])], backend)):
        gpuopt.GD(params, lr=1.0, max_grad_norm=1.0, backend=name).step(given)
    assert all(a.tobytes() == b.get().tobytes() for a, b in zip(host, device, strict=True))


def test_more_rows_than_a_kernel_argument_holds() -> None:
    import cupy

    host = [np.full(3, float(k), np.float64) for k in range(300)]
    device = [cupy.asarray(a) for a in host]
    for params, backend in ((host, "numpy"), (device, "cupy")):
        groups = [{"params": [p], "lr": 1e-3 * (k + 1)} for k, p in enumerate(params)]
        opt = gpuopt.AdamW(groups, backend=backend)
        for _ in range(3):
            opt.step([[p * 0.5] for p in params])
        assert opt.launches == 1
    assert all(a.tobytes() == b.get().tobytes() for a, b in zip(host, device, strict=True))


def test_launch_waits_for_work_on_the_current_stream() -> None:
    import cupy

    spin = cupy.RawKernel(
        'extern "C" __global__ void spin(float* g, long long cycles) {'
        " long long t = clock64(); while (clock64() - t < cycles); g[threadIdx.x] = 1.0f; }",
        "spin",
    )
    param, grad = cupy.zeros(32, cupy.float32), cupy.zeros(32, cupy.float32)
    opt = gpuopt.GD([param], lr=1.0, backend="cupy")
    opt.step([grad])
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    for k in range(20):
        with stream:
            grad.fill(0)
            spin((1,), (32,), (grad, np.int64(20_000_000)))
            opt.step([grad])
        stream.synchronize()
        assert np.all(param.get() == -(k + 1))


def test_step_makes_one_launch_and_no_allocation() -> None:
    import cupy

    params = [cupy.ones(1000, cupy.float32) for _ in range(150)]
    grads = [cupy.ones(1000, cupy.float32) for _ in params]
    opt = gpuopt.AdamW(params, backend="cupy")
    opt.step(grads)
    backend = opt._engine._launches[0][0]
    launched: list[Any] = []
    launch = backend.runtime.launch
    backend.runtime.launch = lambda *a: (launched.append(a), launch(*a))
    pool = cupy.get_default_memory_pool()
    used = pool.used_bytes()
    try:
        opt.step(grads)
    finally:
        del backend.runtime.launch
    assert len(launched) == 1
    assert pool.used_bytes() == used


def captured(opt: Any, grads: Any) -> tuple[Any, Any]:
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        opt.step(grads)
        graph = stream.end_capture()
    return stream, graph


@pytest.mark.parametrize("options", ({}, {"max_grad_norm": 1.0, "skip_nonfinite": True}), ids=("plain", "options"))
def test_graph_replays_equal_eager_steps(options: dict[str, Any]) -> None:
    import cupy

    start = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    grad = cupy.asarray(np.random.default_rng(1).standard_normal(5000).astype(np.float32))
    eager, replayed = cupy.asarray(start), cupy.asarray(start)
    one = gpuopt.AdamW([eager], backend="cupy", capturable=True, **options)
    for _ in range(101):
        one.step([grad])
    two = gpuopt.AdamW([replayed], backend="cupy", capturable=True, **options)
    two.step([grad])
    cupy.cuda.Device().synchronize()
    stream, graph = captured(two, [grad])
    for _ in range(100):
        graph.launch(stream)
    stream.synchronize()
    assert eager.get().tobytes() == replayed.get().tobytes()
    assert two.state_dict()["state"][0]["step"] == 101


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_rate_on_the_gpu_is_read_at_every_replay(dtype: str) -> None:
    import cupy

    grad = cupy.asarray(np.random.default_rng(1).standard_normal(5000).astype(np.float32))
    eager, replayed = cupy.ones(5000, cupy.float32), cupy.ones(5000, cupy.float32)
    rate = cupy.full((), 0.5, dtype)
    one = gpuopt.AdamW([eager], lr=0.5, backend="cupy")
    two = gpuopt.AdamW([replayed], lr=rate, backend="cupy", capturable=True)
    one.step([grad])
    two.step([grad])
    cupy.cuda.Device().synchronize()
    stream, graph = captured(two, [grad])
    for number in range(1, 10):
        with stream:
            rate.fill(1 / number)
        one.param_groups[0]["lr"] = float(np.dtype(dtype).type(1 / number))
        graph.launch(stream)
        one.step([grad])
    stream.synchronize()
    assert eager.get().tobytes() == replayed.get().tobytes()


@pytest.mark.parametrize(
    ("name", "value"), [("lr", lambda t: 0.1), ("betas", (0.9, lambda t: 0.9)), ("weight_decay", lambda t: 0.1)]
)
def test_no_schedule_goes_where_only_the_device_knows_the_step(name: str, value: Any) -> None:
    opt = gpuopt.AdamW([to_cupy(values("float32", 0)[3])], skip_nonfinite=True, backend="cupy", **{name: value})
    with pytest.raises(gpuopt.InputError, match=f"{name} is a function of the step count, which stays on the GPU"):
        opt.step([to_cupy(values("float32", 1)[3])])


@pytest.mark.parametrize("backend", ["cupy", "numba-cuda"])
def test_schedules_give_the_bits_of_numpy(backend: str) -> None:
    scheduled = {
        "lr": lambda t: 0.1 / (1 + t),
        "betas": (lambda t: 0.9 - t / 20, 0.99),
        "weight_decay": lambda t: t / 9,
    }
    assert_same(
        trained("adamw", "numpy", "float32", np.copy, scheduled),
        trained("adamw", backend, "float32", to_cupy, scheduled),
    )


@pytest.mark.slow
@pytest.mark.hardware
def test_more_than_two_to_the_31_elements() -> None:
    """2**31 + 17 bfloat16 parameters: every element is updated, the last ones too."""
    import cupy

    count = 2**31 + 17
    bfloat16 = numpy_dtype("bfloat16")
    one = int(np.ones((), bfloat16).view(np.uint16))
    param = cupy.full(count, one, np.uint16).view(bfloat16)
    grad = cupy.full(count, one, np.uint16).view(bfloat16)
    opt = gpuopt.SGD([param], lr=0.5, backend="cupy")
    opt.step([grad])
    half = int(np.asarray(0.5, bfloat16).view(np.uint16))
    bits = param.view(np.uint16)
    assert int(bits.min()) == half == int(bits.max())
