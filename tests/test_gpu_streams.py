"""`gpuopt.stream` and CuPy's current stream: steps, states and copies of gradients are on the stream that is named. Marked `gpu`.

The streams do not wait for the default stream: whatever is put on another one than the step's is found, if nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt.errors import DtypeError
from graphs import BACKENDS, device_array, new_stream

pytestmark = pytest.mark.gpu


class Foreign:
    """A stream of a library of which nothing else is known."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, int(self.stream.ptr)


class Property:
    """As older libraries have it."""

    def __init__(self, stream: Any) -> None:
        self.__cuda_stream__ = (0, int(stream.ptr))


class Torchs:
    def __init__(self, stream: Any) -> None:
        self.cuda_stream = int(stream.ptr)


def numbas(stream: Any) -> Any:
    from numba import cuda

    return cuda.external_stream(stream.ptr)


def cores(stream: Any) -> Any:
    from cuda.core import Stream

    return Stream.from_handle(stream.ptr)


LIBRARIES: dict[str, Callable[[Any], Any]] = {
    "cupy": lambda stream: stream,
    "numba": numbas,
    "cuda-core": cores,
    "protocol": Foreign,
    "protocol as a property": Property,
    "torch": Torchs,
    "address": lambda stream: stream.ptr,
}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("adamw", {}),
    "first value": ("adagrad", {"initial_accumulator_value": 0.25}),
    "everything": ("adamw", {"max_grad_norm": 1.0, "skip_nonfinite": True, "state_format": "bfloat16"}),
}


def read(array: Any, stream: Any) -> bytes:
    """What it holds once this stream has done its work: no other is waited for."""
    import cupy

    found: bytes = cupy.asnumpy(array, stream=stream).tobytes()
    return found


def made_on(stream: Any, grad: Any, seed: int) -> None:
    """Another gradient in the same array, put there on a stream."""
    with stream:
        grad[...] = seed
        grad[: seed + 1] = -seed


def expected(case: str, steps: int) -> Any:
    """NumPy's optimizer and parameter after the same steps."""
    name, options = OPTIONS[case]
    param = device_array(0).get()
    opt = gpuopt.create(name, [param], lr=0.1, backend="numpy", **options)
    for seed in range(1, steps + 1):
        grad = np.full_like(param, seed)
        grad[: seed + 1] = -seed
        opt.step([grad])
    return opt, param


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_streams_of_every_library(backend: str, library: str) -> None:
    stream, param, grad = new_stream(), device_array(0), device_array(1)
    opt = gpuopt.AdamW([param], lr=0.1, backend=backend)
    for seed in range(1, 4):
        made_on(stream, grad, seed)
        with gpuopt.stream(LIBRARIES[library](stream)):
            opt.step([grad])
    assert read(param, stream) == expected("plain", 3)[1].tobytes()


@pytest.mark.parametrize("outside", [0, 1, 2])
@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_states_that_are_made_inside_or_outside(backend: str, case: str, outside: int) -> None:
    """Some steps on the default stream, which nothing waits for, then some on another."""
    import cupy

    name, options = OPTIONS[case]
    stream, param, grad = new_stream(), device_array(0), device_array(1)
    opt = gpuopt.create(name, [param], lr=0.1, backend=backend, **options)
    for seed in range(1, 5):
        if seed <= outside:
            made_on(cupy.cuda.Stream.null, grad, seed)
            opt.step([grad])
        else:
            with gpuopt.stream(stream):
                made_on(stream, grad, seed)
                opt.step([grad])
    assert read(param, stream) == expected(case, 4)[1].tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_that_are_loaded_outside(backend: str) -> None:
    stream, param, grad = new_stream(), device_array(0), device_array(1)
    opt, found = expected("plain", 2)
    param.set(found)
    again = gpuopt.AdamW([param], lr=0.1, backend=backend)
    again.load_state_dict(opt.state_dict())
    with gpuopt.stream(stream):
        made_on(stream, grad, 3)
        again.step([grad])
    assert read(param, stream) == expected("plain", 3)[1].tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_saved_outside_is_what_was_stepped_inside(backend: str) -> None:
    stream, param, grad = new_stream(), device_array(0), device_array(1)
    opt = gpuopt.AdamW([param], lr=0.1, backend=backend)
    with gpuopt.stream(stream):
        for seed in range(1, 4):
            made_on(stream, grad, seed)
            opt.step([grad])
    found, right = opt.state_dict()["state"][0], expected("plain", 3)[0].state_dict()["state"][0]
    assert all(found[key].get().tobytes() == right[key].tobytes() for key in right if key != "step")


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_in_another_memory_order_are_copied_there(backend: str) -> None:
    import cupy

    stream, shape = new_stream(), (50, 60)
    param, grad = device_array(0).reshape(shape), cupy.empty(shape, np.float32, order="F")
    cupy.cuda.Device().synchronize()
    opt = gpuopt.AdamW([param], lr=0.1, backend=backend)
    with gpuopt.stream(stream):
        for seed in range(1, 4):
            grad.fill(seed)
            grad.T[0, : seed + 1] = -seed  # the first of its memory
            opt.step([grad])
    host = device_array(0).get().reshape(shape)
    usual = gpuopt.AdamW([host], lr=0.1, backend="numpy")
    for seed in range(1, 4):
        made = np.full(shape, seed, np.float32)
        made.T[0, : seed + 1] = -seed
        usual.step([made])
    assert read(param, stream) == host.tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_follow_cupys_current_stream(backend: str) -> None:
    stream, param, grad = new_stream(), device_array(0), device_array(1)
    opt = gpuopt.AdamW([param], lr=0.1, backend=backend)
    for seed in range(1, 4):
        made_on(stream, grad, seed)
        with stream:
            opt.step([grad])
    assert read(param, stream) == expected("plain", 3)[1].tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_captured_stream_waits_for_nothing(backend: str) -> None:
    stream, param, grad = new_stream(), device_array(0), device_array(1)
    opt = gpuopt.AdamW([param], lr=0.1, backend=backend, capturable=True)
    made_on(stream, grad, 1)
    with gpuopt.stream(stream):
        opt.step([grad])
    stream.begin_capture()
    try:
        with gpuopt.stream(stream):
            opt.step([grad])
    finally:
        graph = stream.end_capture()
    for seed in (2, 3):
        made_on(stream, grad, seed)
        graph.launch(stream)
    assert read(param, stream) == expected("plain", 3)[1].tobytes()


def test_cupys_current_stream_comes_back() -> None:
    import cupy

    stream, before = new_stream(), cupy.cuda.get_current_stream()
    with pytest.raises(KeyError), gpuopt.stream(stream.ptr):
        assert cupy.cuda.get_current_stream().ptr == stream.ptr
        with gpuopt.stream(0):
            assert cupy.cuda.get_current_stream().ptr == 0
        assert cupy.cuda.get_current_stream().ptr == stream.ptr
        raise KeyError
    assert cupy.cuda.get_current_stream() == before


@pytest.mark.parametrize("given", [None, "stream", True, -1, 1.5, np.zeros(3)], ids=repr)
def test_what_is_no_stream_is_refused(given: Any) -> None:
    with pytest.raises(DtypeError, match="expected a stream of CuPy"), gpuopt.stream(given):
        raise AssertionError
