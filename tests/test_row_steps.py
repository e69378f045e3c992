"""Steps of some rows: bit for bit those of a full step in these rows, and not a bit elsewhere; on every backend, in every format.

The reference is a step of all rows by NumPy from the same states, or of arrays that are these rows only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt.compiler.lower import program_for
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.optim import rows as some_rows
from gpuopt.source import program
from shim.backend import Backend, installed
from test_cubins import check_walk

SHAPES: list[tuple[int, ...]] = [(40, 16), (37, 3), (29,), (9, 4, 8), (1100, 17), (1, 5), (6, 2100)]
MATRICES: list[tuple[int, ...]] = [(16, 256), (13, 320), (33, 130), (9, 8, 64)]
OPTIONS = {"maximize": True, "clip_value": 0.75, "l1": 0.125, "grad_scale": 8.0, "mask": True, "bounds": True}
Given = dict[str, Any]
CASES: dict[str, tuple[str, str, list[tuple[int, ...]], Given]] = {
    "adamw": ("adamw", "float32", SHAPES, {"amsgrad": True, "weight_decay": 0.1}),
    "adamw-float64-all": ("adamw", "float64", SHAPES, {"weight_decay": 0.1, **OPTIONS}),
    "sgd-float16-kahan": ("sgd", "float16", SHAPES, {"momentum": 0.9, "param_format": "kahan"}),
    "lion-bfloat16-rounded": ("lion", "bfloat16", SHAPES, {"state_format": "bfloat16"}),
    "adamw-bfloat16-split8": ("adamw", "bfloat16", SHAPES, {"param_format": "split8", "state_format": "bfloat16"}),
    "adamw-int8": ("adamw", "float32", MATRICES, {"state_format": "int8"}),
    "adamw-int4-split8": ("adamw", "bfloat16", MATRICES, {"state_format": "int4", "param_format": "split8"}),
}
HOST = ("numpy", "numba", "shim", "shim-device")


@pytest.fixture(scope="module")
def shim() -> Iterator[Backend]:
    with installed() as backend:
        yield backend


def odd(values: Any, shift: int) -> Any:
    """The same values, so many elements behind a multiple of 64 bytes."""
    memory = np.empty(values.size + 64 + shift, values.dtype)
    begin = -(memory.ctypes.data // values.itemsize) % (64 // values.itemsize) + shift
    made = memory[begin : begin + values.size].reshape(values.shape)
    made[...] = values
    return made


def chosen(rng: np.random.Generator, height: int, kind: str) -> Any:
    """Which rows of so many: numbers of a kind, or booleans."""
    count = {"none": 0, "one": 1, "every": height}.get(kind, height // 3 + 1)
    found = rng.choice(height, count, replace=False)
    if kind == "booleans":
        return np.isin(np.arange(height), found)
    return found.astype(np.int32) if kind == "int32" else found if kind == "shuffled" else np.sort(found)


KINDS = ("ascending", "booleans", "int32", "shuffled", "none", "one", "every")


def optimizer(rule: str, params: list[Any], given: Given, backend: str) -> Any:
    """With these options; masks and bounds are of host arrays' values."""
    options, place = dict(given), options_place(params)
    if options.pop("mask", False):
        options["mask"] = [place(np.arange(p.size).reshape(p.shape) % 5 > 0) for p in params]
    if options.pop("bounds", False):
        options["bounds"] = [(-2.0, place(np.full(p.shape, 1.5, p.dtype))) for p in params]
    return gpuopt.create(rule, params, lr=0.01, backend=backend, **options)


def options_place(params: list[Any]) -> Callable[[Any], Any]:
    """What brings an array to where the parameters lie."""
    if isinstance(params[0], np.ndarray):
        return lambda values: values
    import cupy

    return cupy.asarray


def on_host(value: Any) -> Any:
    return value.get() if hasattr(value, "get") else np.copy(value)


def saved(opt: Any) -> Any:
    """Its state dict, on the host."""
    found = opt.state_dict()
    return found | {"state": {k: {n: on_host(v) for n, v in of.items()} for k, of in found["state"].items()}}


def everything(opt: Any, params: list[Any]) -> list[dict[str, Any]]:
    """Parameter and states of each tensor, as they are now."""
    return [{"p": on_host(p)} | saved(opt)["state"][k] for k, p in enumerate(params)]


def by_bytes(array: Any, height: int) -> Any:
    return np.ascontiguousarray(array).reshape(height, -1).view(np.uint8)


def check(backend: str, name: str, place: Callable[[Any], Any] = lambda a: a, kinds: tuple[str, ...] = KINDS) -> None:
    """A full step, then one of some rows of each kind, each beside a full step by NumPy from the same values."""
    rule, dtype, shapes, given = CASES[name]
    rng = np.random.default_rng(5)

    def values(shape: tuple[int, ...]) -> Any:
        return rng.standard_normal(shape).astype(numpy_dtype(dtype))

    params = [place(odd(values(s), k % 3)) for k, s in enumerate(shapes)]
    opt = optimizer(rule, params, given, backend)
    opt.step([place(values(s)) for s in shapes])
    for number, kind in enumerate(kinds):
        grads = [values(s) for s in shapes]
        rows = [chosen(rng, s[0], kind) for s in shapes]
        before = everything(opt, params)
        twins = [b["p"].copy() for b in before]
        twin = optimizer(rule, twins, given, "numpy")
        twin.load_state_dict(saved(opt))
        twin.step(grads)
        expected = everything(twin, twins)
        whole = [k % 4 == (3 if number < 5 else 2) for k in range(len(shapes))]  # of all rows: other launches at last
        compact = [(k + number) % 2 == 0 or kind == "shuffled" for k in range(len(shapes))]
        parts = zip(grads, rows, whole, compact, strict=True)
        opt.step(
            [place(np.ascontiguousarray(g[r])) if c and not w else place(odd(g, 1)) for g, r, w, c in parts],
            rows=[None if w else place(r) for r, w in zip(rows, whole, strict=True)],
        )
        for k, after in enumerate(everything(opt, params)):
            touched = np.zeros(shapes[k][0], bool)
            touched[slice(None) if whole[k] else rows[k]] = True
            assert after.pop("step") == expected[k]["step"] == before[k]["step"] + 1
            for role, array in after.items():
                found, old, new = (by_bytes(a, len(touched)) for a in (array, before[k][role], expected[k][role]))
                assert np.array_equal(found[touched], new[touched]), (kind, shapes[k], role)
                assert np.array_equal(found[~touched], old[~touched]), (kind, shapes[k], role, "not touched")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", HOST)
def test_touched_rows_are_those_of_a_full_step_and_others_as_they_were(shim: Backend, backend: str, name: str) -> None:
    check(backend, name)


@pytest.mark.parametrize("backend", HOST)
def test_other_rows_of_the_same_gradient(shim: Backend, backend: str) -> None:
    p, g = np.zeros((5, 2)), np.ones((5, 2))
    opt = gpuopt.SGD(p, lr=1.0, backend=backend)
    for row in (3, 0, 3):
        opt.step(g, rows=np.array([row]))
    assert p[:, 0].tolist() == [-1, 0, 0, -2, 0]
    p, g = np.zeros((9000, 2)), np.ones((9000, 2))
    opt = gpuopt.SGD(p, lr=1.0, backend=backend, max_grad_norm=1.0)
    for count in (1, 9000, 3):
        before = p[0, 0]
        opt.step(g, rows=np.arange(count))
        assert before - p[0, 0] == pytest.approx((2 * count) ** -0.5, rel=1e-5)


@pytest.mark.parametrize("backend", HOST)
def test_the_norm_is_that_of_the_rows_and_a_bad_one_skips_the_step(shim: Backend, backend: str, rng: Any) -> None:
    """As for arrays that are these rows only; by gradients of all rows too, whose others are not looked at."""
    shapes, hyper = [(900, 33), (50, 4)], {"lr": 0.1, "max_grad_norm": 0.5, "skip_nonfinite": True}
    params = [rng.standard_normal(s) for s in shapes]
    rows = [np.sort(rng.choice(s[0], s[0] // 3, replace=False)) for s in shapes]
    small = [p[r] for p, r in zip(params, rows, strict=True)]
    some, reference = gpuopt.Adam(params, backend=backend, **hyper), gpuopt.Adam(small, backend="numpy", **hyper)
    for bad in (False, True, False):
        grads = [np.full(s, np.nan) for s in shapes]
        for g, r in zip(grads, rows, strict=True):
            g[r] = rng.standard_normal(g[r].shape)
        grads[1][rows[1][2], 1] = np.inf if bad else 0.5
        reference.step([g[r] for g, r in zip(grads, rows, strict=True)])
        some.step([grads[0][rows[0]], grads[1]], rows=rows)
    assert some.skipped == reference.skipped == 1
    assert [p[r].tolist() for p, r in zip(params, rows, strict=True)] == [p.tolist() for p in small]


def test_states_saved_between_steps_go_on_bit_for_bit(rng: Any) -> None:
    p, grads = rng.standard_normal((30, 4)), rng.standard_normal((6, 10, 4))
    rows = [np.sort(rng.choice(30, 10, replace=False)) for _ in grads]
    opt = gpuopt.Adam(p, lr=0.1, weight_decay=0.1)
    for number, g in enumerate(grads):
        if number == 3:
            other = p.copy()
            again = gpuopt.Adam(other, lr=0.1, weight_decay=0.1)
            again.load_state_dict(opt.state_dict())
        opt.step(g, rows=rows[number])
        if number >= 3:
            again.step(g, rows=rows[number])
    assert p.tobytes() == other.tobytes()


def test_rules_and_schedules_know_the_step_of_the_tensor() -> None:
    """A tensor without a gradient is not counted; one of whose rows none is stepped is."""
    seen: list[int] = []
    a, b = np.ones((3, 2)), np.ones((3, 2))
    opt = gpuopt.SGD([a, b], lr=lambda step: seen.append(step) or 0.1)
    opt.step([np.ones((1, 2)), None], rows=[np.array([1]), np.array([0])])
    opt.step([np.ones((0, 2)), np.ones((3, 2))], rows=[np.zeros(0, int), None])
    assert a.tolist() == [[1, 1], [0.9, 0.9], [1, 1]] and (b == 0.9).all()
    assert {opt.state_dict()["state"][k]["step"] for k in (0, 1)} == {2, 1}
    assert sorted(seen) == [0, 0, 1]


def test_complex_rows_and_nested_parameters() -> None:
    p = {"a": np.ones((4, 2), np.complex128), "b": [np.ones(3)]}
    opt = gpuopt.SGD(p, lr=1.0)
    opt.step({"a": np.full((2, 2), 1j), "b": [np.ones(3)]}, rows={"a": np.array([3, 0]), "b": [None]})
    assert p["a"][:, 0].tolist() == [1 - 1j, 1, 1, 1 - 1j] and p["b"][0].tolist() == [0, 0, 0]


WRONG: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "a list": ([0, 1], None, gpuopt.DtypeError, "rows of params: expected a dense array, found list"),
    "floats": (np.ones(2), None, gpuopt.DtypeError, "rows of params: dtype float64: expected int64 or int32"),
    "two axes": (np.ones((2, 1), int), None, gpuopt.InputError, r"int64 of shape \(2, 1\): expected one axis"),
    "few booleans": (np.ones(3, bool), None, gpuopt.InputError, r"bool of shape \(3,\): expected \(4,\)"),
    "below": (np.array([0, -1]), None, gpuopt.InputError, "rows of params: -1: expected numbers from 0 to 3"),
    "beyond": (np.array([4, 0]), None, gpuopt.InputError, "rows of params: 4: expected numbers from 0 to 3"),
    "twice": (np.array([2, 0, 2]), None, gpuopt.InputError, "rows of params: 2 twice: expected each row once"),
    "gradient": (np.array([2, 0]), (3, 2), gpuopt.InputError, r"shape \(3, 2\): expected \(4, 2\), .*or \(2, 2\)"),
    "two readings": (np.array([2, 0, 1, 3]), (4, 2), gpuopt.InputError, "rows in ascending order"),
}


@pytest.mark.parametrize("case", WRONG)
def test_rows_that_cannot_be_used(case: str) -> None:
    rows, shape, error, words = WRONG[case]
    p = np.ones((4, 2))
    opt = gpuopt.Adam(p, lr=0.1)
    for stepped in (0, 1):
        with pytest.raises(error, match=words):
            opt.step(np.ones(shape or (len(rows), 2)), rows=rows)
        assert (p == p[0, 0]).all() and opt.state_dict()["state"].get(0, {}).get("step", 0) == stepped
        opt.step(np.ones((4, 2)))


def test_what_takes_no_rows_says_so() -> None:
    rows, g = np.array([0]), np.ones((1, 2))
    for title in ("LAMB", "Adafactor", "Prodigy", "ScheduleFreeAdamW", "Muon"):
        p = np.ones((4, 2))
        with pytest.raises(gpuopt.InputError, match=f"{title} looks at whole tensors"):
            gpuopt.create(title.lower(), p, lr=0.1).step(g, rows=rows)
        assert (p == 1).all()
    with pytest.raises(gpuopt.LayoutError, match="steps some rows and expects them in C order"):
        gpuopt.Adam(np.ones((4, 2), order="F"), lr=0.1).step(g, rows=rows)
    with pytest.raises(gpuopt.InputError, match="it has no axes, and so no rows"):
        gpuopt.Adam(np.ones(()), lr=0.1).step(np.ones(()), rows=rows)
    with pytest.raises(gpuopt.InputError, match="capturable: a captured step would be of the same rows"):
        gpuopt.Adam(np.ones((4, 2)), lr=0.1, capturable=True).step(g, rows=rows)
    with pytest.raises(
        gpuopt.InputError, match="state_device = 'host': states travel as whole tensors: expected all rows"
    ):
        gpuopt.Adam(np.ones((4, 2)), lr=0.1, state_device="host").step(g, rows=rows)


@pytest.mark.parametrize("state_format", ["float32", "int8"])
def test_kernels_leave_out_rows_that_are_not_there(
    shim: Backend, state_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU nobody has looked at the numbers before."""
    monkeypatch.setattr(some_rows, "_check", lambda *given: None)
    memory = np.ones((3 * 16, 256), np.float32)
    p = memory[16:32]
    opt = gpuopt.AdamW(p, lr=0.1, backend="shim", state_format=state_format)
    opt.step(np.ones((5, 256), np.float32), rows=np.array([-1, 3, 16, 2**40, 5]))
    assert sorted(set(np.flatnonzero((memory != 1).any(axis=1)).tolist())) == [16 + 3, 16 + 5]


MACHINE = {
    "adamw": program("adamw", amsgrad=True),
    "adamw-all": program("adamw", **{"max_grad_norm": 1.0, "mask": True, "clip_value": 1.0, "l1": 0.1}),
    "lion-rounded": program("lion", param_dtype="bfloat16", state_format="bfloat16"),
    "adamw-int8": program("adamw", state_format="int8"),
}


@pytest.mark.once
@pytest.mark.parametrize("name", MACHINE)
def test_machine_code_keeps_to_the_budget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUOPT_CACHE", "0")
    check_walk(program_for(replace(MACHINE[name].signature, picked=True)))


# ---------------------------------------------------------------------------------------------------- on a GPU


def to_cupy(array: Any) -> Any:
    """A copy on the GPU, as far behind a multiple of 16 elements as the array."""
    import cupy

    shift = array.ctypes.data // array.itemsize % 4
    made = cupy.empty(array.size + shift, array.dtype)[shift:].reshape(array.shape)
    made[...] = cupy.asarray(array)
    return made


ON_GPU = ("adamw", "lion-bfloat16-rounded", "adamw-int8", "adamw-bfloat16-split8")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
@pytest.mark.parametrize("backend", ["cupy", "numba-cuda"])
def test_rows_on_a_gpu(backend: str, name: str) -> None:
    check(backend, name, to_cupy, ("ascending", "none", "shuffled"))


@pytest.mark.gpu
@pytest.mark.hardware
@pytest.mark.parametrize("backend", ["cupy", "numba-cuda"])
def test_booleans_and_narrow_numbers_on_a_gpu(backend: str) -> None:
    check(backend, "adamw", to_cupy, ("booleans", "int32"))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cupy", "numba-cuda"])
def test_a_norm_of_rows_and_rows_that_are_not_there_on_a_gpu(backend: str) -> None:
    import cupy

    p, rows = np.ones((600, 20), np.float32), np.arange(3, 600, 2)
    small, there = p[rows], cupy.asarray(p)
    hyper = {"lr": 0.1, "max_grad_norm": 0.5}
    reference, opt = gpuopt.Adam(small, backend="numpy", **hyper), gpuopt.Adam(there, backend=backend, **hyper)
    for count in (len(rows), len(rows)):
        g = np.random.default_rng(count).standard_normal((count, 20)).astype(np.float32)
        reference.step(g)
        opt.step(cupy.asarray(g), rows=cupy.asarray(rows))
    assert there.get()[rows].tobytes() == small.tobytes() and (there.get()[0] == 1).all()
    with pytest.raises(gpuopt.InputError, match="expected on a GPU the gradient of the given rows only"):
        opt.step(there.copy(), rows=cupy.asarray(rows))
    before, opt = there.get(), gpuopt.Adam(there, lr=0.1, backend=backend)
    opt.step(cupy.ones((4, 20), np.float32), rows=cupy.asarray([-1, 600, 7, 2**40]))
    assert np.flatnonzero((there.get() != before).any(axis=1)).tolist() == [7]
