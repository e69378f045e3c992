"""Device arrays of every library, through one table: memory orders, states, options, rates on the GPU. Marked `gpu`.

Arrays of CuPy, of Numba, and of whatever has `__cuda_array_interface__` or DLPack only. Each must give the bits of NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import arrays, driver

pytestmark = pytest.mark.gpu
Place = Callable[[Any], Any]


class Interface:
    """An array of a library of which nothing else is known."""

    def __init__(self, array: Any) -> None:
        self.array, self.__cuda_array_interface__ = array, array.__cuda_array_interface__


class Capsule:
    """The same through DLPack."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def to_cupy(array: Any) -> Any:
    import cupy

    base = cupy.empty(array.size, array.dtype)
    order = np.argsort([-abs(s) for s in array.strides], kind="stable")
    made = base.reshape([array.shape[k] for k in order]).transpose([int(k) for k in np.argsort(order)])
    made = made[tuple(slice(None, None, -1 if s < 0 else 1) for s in array.strides)]
    made[...] = cupy.asarray(array)
    return made


def to_numba(array: Any) -> Any:
    from numba import cuda

    return cuda.to_device(array)


LIBRARIES: dict[str, Place] = {
    "cupy": to_cupy,
    "numba": to_numba,
    "interface": lambda a: Interface(to_cupy(a)),
    "dlpack": lambda a: Capsule(to_cupy(a)),
}
BACKENDS = ("cupy", "numba-cuda")
ORDERS: dict[str, Callable[[Any], Any]] = {"C": np.ascontiguousarray, "Fortran": np.asfortranarray}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("adamw", {}),
    "first value": ("adagrad", {"initial_accumulator_value": 0.25}),
    "bfloat16 states": ("adamw", {"state_format": "bfloat16"}),
    "norm": ("sgd", {"momentum": 0.9, "lr": 0.1, "max_grad_norm": 1.0, "skip_nonfinite": True}),
}


def host(array: Any) -> Any:
    """On the host, whatever it is."""
    array = getattr(array, "array", array)
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "get"):
        return array.get()
    from numba import cuda

    with cuda.gpus[int(arrays.describe(array, "array").device.removeprefix("cuda:"))]:
        return array.copy_to_host()


def trained(case: str, backend: str, place: Place, orders: tuple[str, str], dtype: str = "float32") -> list[Any]:
    name, options = CASES[case]
    rng = np.random.default_rng(0)
    made = [rng.standard_normal((17, 9)).astype(dtype) for _ in range(4)]
    param = place(ORDERS[orders[0]](made[0]))
    opt = gpuopt.create(name, [param], backend=backend, **options)
    for grad in made[1:]:
        opt.step([place(ORDERS[orders[1]](grad))])
    state = opt.state_dict()["state"][0]
    loaded = gpuopt.create(name, [param], backend=backend, **options)
    loaded.load_state_dict(opt.state_dict())
    loaded.step([place(ORDERS[orders[1]](made[1]))])
    return [np.ascontiguousarray(host(param)).tobytes(), int(state["step"]), sorted(state)]


@pytest.mark.parametrize("orders", [("C", "C"), ("Fortran", "Fortran"), ("Fortran", "C"), ("C", "Fortran")])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_every_library_gives_the_bits_of_numpy(library: str, case: str, orders: tuple[str, str]) -> None:
    expected = trained(case, "numpy", lambda a: a, orders)
    for backend in BACKENDS:
        assert trained(case, backend, LIBRARIES[library], orders) == expected, backend


@pytest.mark.parametrize("library", LIBRARIES)
def test_rate_and_beta_may_lie_on_the_gpu(library: str) -> None:
    place, made = LIBRARIES[library], np.random.default_rng(0).standard_normal((2, 300)).astype(np.float32)
    results = []
    for where, backend in ((None, "numpy"), *((place, name) for name in BACKENDS)):
        given = where or (lambda a: a)
        param = given(made[0].copy())
        lr, beta = (float(np.float32(x)) if where is None else given(np.full((), x, np.float32)) for x in (0.1, 0.5))
        opt = gpuopt.AdamW([param], lr=lr, betas=(beta, 0.999), backend=backend)
        for _ in range(3):
            opt.step([given(made[1].copy())])
        results.append(host(param).tobytes())
    assert len(set(results)) == 1


def test_a_loaded_rate_on_the_gpu_is_set_where_it_is(tmp_path: Path) -> None:
    """So that CUDA graphs that were captured before read it."""
    rate, beta = to_cupy(np.full((), 0.1, np.float32)), to_cupy(np.full((), 0.5, np.float32))
    opt = gpuopt.AdamW([to_cupy(np.ones(3, np.float32))], lr=rate, betas=(beta, 0.999), backend="cupy")
    gpuopt.save(opt, tmp_path / "a")
    rate[...] = beta[...] = 0.75
    gpuopt.load(opt, tmp_path / "a")
    assert opt.param_groups[0]["lr"] is rate and opt.param_groups[0]["betas"][0] is beta
    assert (float(rate), float(beta)) == (np.float32(0.1), 0.5)


@pytest.mark.parametrize("library", ["numba", "interface"])
def test_an_interface_says_on_which_gpu_it_lies(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    array = LIBRARIES[library](np.ones(3, np.float32))
    assert arrays.describe(array, "array").device == "cuda:0"
    monkeypatch.setattr(driver, "device_of", lambda address: 1)
    assert arrays.describe(array, "array").device == "cuda:1"


@pytest.mark.parametrize("options", [{"skip_nonfinite": True}, {"capturable": True}, {"max_grad_norm": 1.0}], ids=str)
def test_tensors_of_several_dtypes_that_share_a_step_count(options: dict[str, Any]) -> None:
    """One launch for each dtype; all of them are counted once a step."""
    rng, results = np.random.default_rng(0), []
    made = [rng.standard_normal((2, 50)).astype(dtype) for dtype in ("float32", "float64", "float16", "float32")]
    for backend in ("numpy", *BACKENDS):
        place: Place = (lambda a: a) if backend == "numpy" else to_cupy
        params = [place(p.copy()) for p, _ in made]
        opt = gpuopt.AdamW(params, lr=0.1, backend=backend, **options)
        for _ in range(3):
            opt.step([place(g) for _, g in made])
        assert opt.launches == 3
        assert [s["step"] for s in opt.state_dict()["state"].values()] == [3] * 4
        results.append([host(p).tobytes() for p in params])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_states_go_from_one_library_to_another(library: str, case: str, tmp_path: Path) -> None:
    """What was saved on the host is loaded on the GPU and goes on there, and the other way round. Files are the same."""
    name, options = CASES[case]
    place, made = LIBRARIES[library], np.random.default_rng(0).standard_normal((4, 17, 9)).astype(np.float32)
    usual = gpuopt.create(name, [made[0].copy()], backend="numpy", **options)
    there = gpuopt.create(name, [place(made[0].copy())], backend="cupy", **options)
    usual.step([made[1]])
    there.step([place(made[1])])
    saved = usual.state_dict(), there.state_dict()
    there.load_state_dict(saved[0])
    usual.load_state_dict(saved[1])
    for opt, path in ((usual, tmp_path / "usual"), (there, tmp_path / "there")):
        gpuopt.save(opt, path)
    assert (tmp_path / "usual").read_bytes() == (tmp_path / "there").read_bytes()
    there.load_state_dict(saved[0] | {"state": {}})
    gpuopt.load(there, tmp_path / "usual")
    for grad in made[2:]:
        usual.step([grad])
        there.step([place(grad)])
    found, expected = (host(opt.param_groups[0]["params"][0]) for opt in (there, usual))
    assert np.ascontiguousarray(found).tobytes() == expected.tobytes()


def to_numba_view(array: Any) -> Any:
    from numba import cuda

    return cuda.as_cuda_array(array)


# The same memory in each library.
VIEWS: dict[str, Place] = {"cupy": lambda a: a, "numba": to_numba_view, "interface": Interface, "dlpack": Capsule}


@pytest.mark.parametrize("orders", [("C", "C"), ("Fortran", "C")], ids=str)
@pytest.mark.parametrize("library", VIEWS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
def test_states_lie_as_a_parameter_that_begins_anywhere(dtype: str, library: str, orders: tuple[str, str]) -> None:
    """So that one head makes the accesses to all of them packed; copies of gradients too."""
    import cupy

    from gpuopt.launch import table as t

    rng, results = np.random.default_rng(0), []
    made = [(rng.standard_normal((37, 11)) + 1j * (dtype == "complex64")).astype(dtype) for _ in range(2)]

    def placed(array: Any, order: str) -> Any:
        base = cupy.zeros(array.size + 3, dtype)[3:]
        there = base.reshape(array.shape) if order == "C" else base.reshape(array.shape[::-1]).T
        there[...] = cupy.asarray(array)
        return VIEWS[library](there)

    for backend in ("numpy", *BACKENDS):
        given = [a.copy() if backend == "numpy" else placed(a, o) for a, o in zip(made, orders, strict=True)]
        opt = gpuopt.AdamW([given[0]], lr=0.1, backend=backend)
        for _ in range(2):
            opt.step([given[1]])
        results.append(np.ascontiguousarray(host(given[0])).tobytes())
        if backend != "numpy":
            table = opt._engine._launches[0][1][0].plan.table
            assert (table[:, t.ALIGNED] & 1).all() and table[0, t.HEAD] > 0
    assert results[0] == results[1] == results[2]
