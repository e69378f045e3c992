"""Several GPUs in one process: each optimizer, or each part of one, works where its arrays are, whichever GPU is current.

Marked `gpu` and `multigpu`. On the driver of tests/driver no device can reach another's memory.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import arrays
from gpuopt.errors import DtypeError, InputError
from graphs import captured, new_stream, stepped
from test_gpu_arrays import BACKENDS, CASES, LIBRARIES, host, trained

pytestmark = [pytest.mark.gpu, pytest.mark.multigpu]


def on_device(index: int, library: str = "cupy") -> Any:
    """A place for arrays: that device, with the current one as it was."""

    def place(array: Any) -> Any:
        import cupy
        from numba import cuda

        with cuda.gpus[index] if library == "numba" else cupy.cuda.Device(index):
            return LIBRARIES[library](array)

    return place


def current() -> int:
    import cupy

    return int(cupy.cuda.runtime.getDevice())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_arrays_of_the_second_gpu_are_updated_there(library: str, case: str) -> None:
    orders = ("C", "Fortran")
    expected = trained(case, "numpy", lambda a: a, orders)
    for backend in BACKENDS:
        assert trained(case, backend, on_device(1, library), orders) == expected, backend
    assert current() == 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_array_says_on_which_gpu_it_lies(library: str) -> None:
    for index in range(2):
        made = on_device(index, library)(np.ones(3, np.float32))
        assert arrays.describe(made, "array").device == f"cuda:{index}"


@pytest.mark.parametrize("options", [{}, {"capturable": True}, {"state_format": "bfloat16"}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_optimizer_of_both(backend: str, options: dict[str, Any]) -> None:
    """Its parameters lie on two GPUs: a launch on each, and step counts on each."""
    made = np.random.default_rng(0).standard_normal((5, 2, 300)).astype(np.float32)
    results = []
    for name, places in (("numpy", [np.copy] * 2), (backend, [on_device(0), on_device(1)])):
        params = [place(a) for place, a in zip(places, made[0], strict=True)]
        opt = gpuopt.AdamW(params, backend=name, **options)
        for step in range(1, 4):
            opt.step([place(g) for place, g in zip(places, made[step], strict=True)])
        opt.step([None, places[1](made[4][1])])
        saved = opt.state_dict()["state"]
        states = [np.asarray(host(a)).tobytes() for s in saved.values() for k, a in sorted(s.items()) if k != "step"]
        results.append([[host(p).tobytes() for p in params], states, [s["step"] for s in saved.values()]])
    assert results[0] == results[1] and results[0][2] == [3, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_step_optimizers_of_different_gpus(backend: str) -> None:
    """Which GPU is current is a thread's own affair."""
    made = np.random.default_rng(0).standard_normal((4, 500)).astype(np.float32)
    expected = made[0].copy()
    usual = gpuopt.AdamW([expected], backend="numpy", max_grad_norm=1.0)
    for g in made[1:]:
        usual.step([g])
    found: dict[int, bytes] = {}

    def train(index: int) -> None:
        place = on_device(index)
        param = place(made[0])
        opt = gpuopt.AdamW([param], backend=backend, max_grad_norm=1.0)
        for g in made[1:]:
            opt.step([place(g)])
        found[index] = host(param).tobytes()

    threads = [threading.Thread(target=train, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys((0, 1), expected.tobytes())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_on_the_second_gpu_is_captured_and_replayed(backend: str) -> None:
    import cupy

    made = np.random.default_rng(0).standard_normal((2, 500)).astype(np.float32)
    expected = made[0].copy()
    usual = gpuopt.AdamW([expected], backend="numpy", max_grad_norm=1.0)
    param, grad = (on_device(1)(a) for a in made)
    opt = gpuopt.AdamW([param], backend=backend, capturable=True, max_grad_norm=1.0)
    for _ in range(4):
        usual.step([made[1]])
    with cupy.cuda.Device(1):
        stream = new_stream()
        stepped(stream, opt, [grad])
        graph = captured(stream, lambda: opt.step([grad]))
        for _ in range(3):
            graph.launch(stream)
        stream.synchronize()
    assert host(param).tobytes() == expected.tobytes()
    assert opt.state_dict()["state"][0]["step"] == 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_lies_on_the_wrong_gpu_is_refused_by_name(backend: str) -> None:
    ones = np.ones(5, np.float32)
    param, near, far = on_device(1)(ones), on_device(1)(ones), on_device(0)(ones)
    opt = gpuopt.AdamW([param], lr=1.0, weight_decay=0.0, backend=backend)
    with pytest.raises(InputError, match=r"gradient of params\[0\]: on cuda:0: expected cuda:1"):
        opt.step([far])
    with pytest.raises(InputError, match=r"mask of params\[0\]"):
        gpuopt.AdamW([param], mask=[on_device(0)(ones > 0)], backend=backend)
    opt.param_groups[0]["lr"] = on_device(0)(np.full((), 1.0, np.float32))
    with pytest.raises(DtypeError, match="lr on cuda:0: expected it on cuda:1"):
        opt.step([near])
    assert host(param).tobytes() == ones.tobytes() and opt.state_dict()["state"] == {}
    both = gpuopt.GD([param, far], lr=1.0, max_grad_norm=1.0, backend=backend)
    with pytest.raises(InputError, match="need all parameters on one device"):
        both.step([near, on_device(0)(ones)])
    opt.param_groups[0]["lr"] = 1.0
    opt.step([near])
    assert np.isclose(host(param), 0, atol=1e-6).all()
