"""Steps of parts of tensors, as each of several processes makes them: bit for bit those of whole tensors where elements are alone,
to rounding where they are summed; on every backend, with random numbers that are those of the whole.

Processes are threads here, which meet where they exchange sums: what is tested is what engine, plans and kernels make of a Shard.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import arrays, numel, tensor_max
from gpuopt.compiler.lower import program_for
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.launch.shards import shard_of
from gpuopt.source import program
from launches import OnGpu, one_of_its_kind
from shim.backend import Backend, installed
from test_cubins import check_walk

BACKENDS = ("numpy", "numba", "shim", "shim-device")
SHAPES: list[tuple[int, ...]] = [(40, 16), (37, 3), (29,), (9, 4, 8), (2, 50), (1100, 17)]
MATRICES: list[tuple[int, ...]] = [(33, 130), (16, 256), (40, 12, 10), (2, 4100)]
Given = dict[str, Any]
ELEMENTS: dict[str, tuple[str, str, list[tuple[int, ...]], Given]] = {
    "adamw": ("adamw", "float32", SHAPES, {"weight_decay": 0.1}),
    "lion-rounded": ("lion", "bfloat16", SHAPES, {"state_format": "bfloat16"}),
    "adamw-split8": ("adamw", "bfloat16", SHAPES, {"param_format": "split8", "state_format": "bfloat16"}),
    "adamw-int8": ("adamw", "float32", MATRICES, {"state_format": "int8"}),
    "adamw-int4-split8": ("adamw", "bfloat16", MATRICES, {"state_format": "int4", "param_format": "split8"}),
}
SUMS: dict[str, Given] = {
    "lamb": {"weight_decay": 0.1},
    "novograd": {"lr": 0.01},
    "stableadamw": {"lr": 0.01},
    "prodigy": {"lr": 1.0},
    "sgd": {"lr": 0.1, "max_grad_norm": 0.5},
}


class Ring:
    """So many processes that are threads."""

    def __init__(self, size: int) -> None:
        self.size, self.meet = size, threading.Barrier(size, timeout=60)
        self.given: list[Any] = [None] * size
        self.exchanges = 0

    def run(self, work: Callable[[Member], Any]) -> list[Any]:
        """The work of each, and what it returns. Raises what one raises."""
        with ThreadPoolExecutor(self.size) as pool:
            futures = [pool.submit(self._guarded, work, Member(self, rank)) for rank in range(self.size)]
            return [future.result() for future in futures]

    def _guarded(self, work: Callable[[Member], Any], member: Member) -> Any:
        try:
            return work(member)
        except BaseException:
            self.meet.abort()
            raise


class Member:
    """One of them, and its communicator."""

    def __init__(self, ring: Ring, rank: int) -> None:
        self.ring, self.rank, self.size = ring, rank, ring.size

    def all_reduce(self, array: Any, op: str = "sum", stream: Any = None) -> None:
        self.ring.given[self.rank] = array.copy()
        self.ring.meet.wait()
        found = (np.sum if op == "sum" else np.max)(np.stack(self.ring.given), axis=0)
        self.ring.meet.wait()
        self.ring.exchanges += self.rank == 0
        array[...] = found

    def bounds(self, length: int) -> tuple[int, int]:
        """As torch cuts an axis: the last ones may be empty."""
        each = -(-length // self.size)
        return min(self.rank * each, length), min((self.rank + 1) * each, length)


@pytest.fixture(scope="module")
def shim() -> Iterator[Backend]:
    with installed() as backend:
        yield backend


def cut(array: Any, axis: int, member: Member) -> tuple[Any, Any]:
    """The part that a member has of an array along an axis, and its Shard."""
    begin, end = member.bounds(array.shape[axis])
    part = np.moveaxis(np.moveaxis(array, axis, 0)[begin:end], 0, axis).copy(order="C")
    offset = [begin if k == axis else 0 for k in range(array.ndim)]
    return part, shard_of(array.shape, part.shape, tuple(offset), member)


def data(shapes: list[tuple[int, ...]], dtype: str, steps: int, seed: int = 0) -> tuple[list[Any], list[list[Any]]]:
    rng = np.random.default_rng(seed)
    made = [[rng.standard_normal(shape).astype(numpy_dtype(dtype)) for shape in shapes] for _ in range(steps + 1)]
    return made[0], made[1:]


def stepped(
    name: str, params: list[Any], grads: list[list[Any]], backend: str, shards: Any = None, **given: Any
) -> Any:
    opt = gpuopt.create(name, params, backend=backend, seed=7, **given)
    for p, shard in zip(opt._engine.parameters, shards or (), strict=False):
        p.shard = shard
    for each in grads:
        opt.step(each)
    return opt


def parts_stepped(
    name: str,
    params: list[Any],
    grads: list[list[Any]],
    backend: str,
    axis: Callable[[int], int],
    ring: Ring,
    **given: Any,
) -> list[list[Any]]:
    """The parts of each member behind the steps."""

    def work(member: Member) -> list[Any]:
        mine = [cut(p, axis(k), member) for k, p in enumerate(params)]
        own = [part for part, _ in mine]
        parts = [[cut(g, axis(k), member)[0] for k, g in enumerate(each)] for each in grads]
        stepped(name, own, parts, backend, [shard for _, shard in mine], **given)
        return own

    return ring.run(work)


def joined(found: list[list[Any]], axis: Callable[[int], int]) -> list[Any]:
    return [np.concatenate([each[k] for each in found], axis(k)) for k in range(len(found[0]))]


def last_axis(shapes: list[tuple[int, ...]]) -> Callable[[int], int]:
    return lambda k: len(shapes[k]) - 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ELEMENTS)
def test_parts_along_rows_are_bit_for_bit_the_whole(shim: Backend, case: str, backend: str) -> None:
    name, dtype, shapes, given = ELEMENTS[case]
    params, grads = data(shapes, dtype, 3)
    found = parts_stepped(name, params, grads, backend, lambda k: 0, Ring(3), lr=0.1, **given)
    stepped(name, params, grads, "numpy", lr=0.1, **given)
    assert [p.tobytes() for p in joined(found, lambda k: 0)] == [p.tobytes() for p in params]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["lion-rounded", "adamw-split8"])
def test_parts_along_columns_are_bit_for_bit_the_whole(shim: Backend, case: str, backend: str) -> None:
    name, dtype, shapes, given = ELEMENTS[case]
    shapes = [*shapes, (24, 64)]
    params, grads = data(shapes, dtype, 3)
    found = parts_stepped(name, params, grads, backend, last_axis(shapes), Ring(2), lr=0.1, **given)
    stepped(name, params, grads, "numpy", lr=0.1, **given)
    assert [p.tobytes() for p in joined(found, last_axis(shapes))] == [p.tobytes() for p in params]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SUMS)
def test_sums_are_completed_by_one_exchange_a_cut(shim: Backend, name: str, backend: str) -> None:
    params, grads = data(SHAPES, "float32", 3)
    ring, given = Ring(3), SUMS[name]
    found = parts_stepped(name, params, grads, backend, lambda k: 0, ring, **given)
    whole = [p.copy() for p in params]
    opt = stepped(name, whole, grads, "numpy", **given)
    for made, p in zip(joined(found, lambda k: 0), whole, strict=True):
        np.testing.assert_allclose(made, p, rtol=0, atol=1e-6 * np.abs(p).max())
    if backend != "numpy":  # which asks as the rule does, sum by sum
        (launch,) = [launch for _, launches, _ in opt._engine._launches for launch in launches]
        norms = "max_grad_norm" in given
        assert ring.exchanges == 3 * (len(launch.plan.program.cuts) + norms)


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_of_a_tensor_are_kept_where_there_is_nothing_of_it_too(shim: Backend, backend: str) -> None:
    """So that whichever process is asked for them has them: the last one of these has no row."""
    params, grads = data([(2, 50), (7, 5)], "float32", 2)

    def work(member: Member) -> list[Any]:
        both = [cut(p, 0, member) for p in params]
        parts = [[cut(g, 0, member)[0] for g in each] for each in grads]
        opt = stepped("novograd", [part for part, _ in both], parts, backend, [s for _, s in both], lr=0.01)
        return [opt.state_dict()["state"][k]["exp_avg_sq"] for k in (0, 1)]

    found = Ring(3).run(work)
    assert found[0] == found[1] == found[2] and min(found[0]) > 1


@gpuopt.rule(state=("m",))
def bounded(p: Any, g: Any, m: Any, *, lr: float) -> Any:
    """p <- p - lr g / (1 + max |g|), and what the tensor is the maximum of: m <- max |g| + numel."""
    largest = tensor_max(abs(g))
    m = 0 * m + largest + numel(g)
    p = p - lr * g / (1 + largest)
    return p, m


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [4.0, np.nan, -np.inf])
def test_maxima_and_sizes_are_those_of_the_whole(shim: Backend, backend: str, value: float) -> None:
    params, (grads,) = data([(7, 5), (2, 3)], "float32", 1)
    grads[0][6, 1] = value
    make = gpuopt.make_optimizer(bounded)

    def work(member: Member) -> list[Any]:
        both = [cut(p, 0, member) for p in params]
        opt = make([part for part, _ in both], lr=0.5, backend=backend)
        for p, (_, shard) in zip(opt._engine.parameters, both, strict=True):
            p.shard = shard
        opt.step([cut(g, 0, member)[0] for g in grads])
        return [part for part, _ in both] + [opt.state_dict()["state"][k]["m"] for k in (0, 1)]

    found = joined(Ring(3).run(work), lambda k: 0)
    opt = make(params, lr=0.5, backend="numpy")
    opt.step(grads)
    whole = [*params, *(opt.state_dict()["state"][k]["m"] for k in (0, 1))]
    assert [np.array_equal(a, b, equal_nan=True) for a, b in zip(found, whole, strict=True)] == [True] * 4
    assert np.isnan(whole[2]).all() == np.isnan(value) and whole[3][0, 0] >= 6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("why", ["a gradient that is not finite", "found_inf"])
def test_one_process_skips_for_all(shim: Backend, backend: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "KINDS", arrays.KINDS)
    monkeypatch.setattr(arrays, "_by_type", {})
    arrays.register(one_of_its_kind())
    params, grads = data([(7, 5), (2, 3)], "float32", 3)
    if why != "found_inf":
        grads[1][0][6, 1] = np.nan  # of the last process alone

    def work(member: Member) -> tuple[list[Any], Any]:
        both = [cut(p, 0, member) for p in params]
        given = {"skip_nonfinite": True} if why != "found_inf" else {}
        opt = gpuopt.Adam([part for part, _ in both], lr=0.1, backend=backend, **given)
        for p, (_, shard) in zip(opt._engine.parameters, both, strict=True):
            p.shard = shard
        before = []
        for number, each in enumerate(grads):
            if why == "found_inf":
                found: Any = np.array([number == 1 and member.rank == 2], np.float32)
                found = OnGpu(float(found[0]), "float32") if backend == "shim-device" else found
                opt._engine.settings = replace(opt._engine.settings, found_inf=found)
            before.append([part.copy() for part, _ in both])
            opt.step([cut(g, 0, member)[0] for g in each])
        same = [np.array_equal(a, b) for a, b in zip(before[1], before[2], strict=True) if a.size]
        return same, opt.state_dict()["state"][1]["step"]

    assert all(all(same) and step == 2 for same, step in Ring(3).run(work))


def test_what_needs_whole_matrices_says_so() -> None:
    p = np.ones((4, 6))
    for title in ("Adafactor", "Muon", "SOAP"):
        opt = gpuopt.create(title.lower(), p, lr=0.1)
        opt._engine.parameters[0].shard = shard_of((8, 6), (4, 6), (0, 0))
        with pytest.raises(gpuopt.InputError, match=rf"a part of \(8, 6\): {title} looks at rows, columns or products"):
            opt.step(np.ones((4, 6)))
        assert (p == 1).all()
    assert shard_of((4, 6, 8), (4, 3, 4), (0, 0, 4)) is None


MACHINE = {
    "adamw-split8": program("adamw", param_dtype="bfloat16", param_format="split8", state_format="bfloat16"),
    "adamw-int8": program("adamw", state_format="int8"),
}


@pytest.mark.once
@pytest.mark.parametrize("name", MACHINE)
def test_machine_code_keeps_to_the_budget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUOPT_CACHE", "0")
    check_walk(program_for(replace(MACHINE[name].signature, sharded=True)))


# ---------------------------------------------------------------------------------------------------- on a GPU


class Twins:
    """The one of two processes that have equal parts, so that nothing has to be sent."""

    rank, size = 0, 2

    def all_reduce(self, array: Any, op: str = "sum", stream: Any = None) -> None:
        factor = 2 if op == "sum" else 1
        if isinstance(array, np.ndarray):
            array *= factor
            return
        import cupy

        there = cupy.asarray(array)
        there.set(cupy.asnumpy(there) * there.dtype.type(factor))


ON_GPU: dict[str, tuple[str, str, Given]] = {
    "lamb": ("lamb", "float32", {"weight_decay": 0.1, "max_grad_norm": 0.5}),
    "prodigy": ("prodigy", "float32", {"lr": 1.0}),
    "adamw-split8": ("adamw", "bfloat16", {"param_format": "split8", "state_format": "bfloat16", "lr": 0.1}),
    "adamw-int8": ("adamw", "float32", {"state_format": "int8", "lr": 0.1, "skip_nonfinite": True}),
}


def on_gpu(backend: str, name: str, interpreted: bool) -> Any:
    return pytest.param(backend, name, marks=() if interpreted else pytest.mark.hardware)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("backend", "name"),
    [on_gpu("cupy", name, True) for name in (*ON_GPU, "maxima")]
    + [on_gpu("numba-cuda", name, name in ("maxima", "adamw-split8")) for name in (*ON_GPU, "maxima")],
)
def test_parts_on_a_gpu(backend: str, name: str) -> None:
    import cupy

    rule, dtype, given = ON_GPU.get(name, ("", "float32", {"lr": 0.5}))
    make: Any = gpuopt.make_optimizer(bounded) if name == "maxima" else getattr(gpuopt, gpuopt.rules.get(rule).title)
    params, grads = data([(7, 5), (33, 130)], dtype, 2)

    def stepped_on(backend: str, move: Callable[[Any], Any]) -> list[bytes]:
        there = [move(p.copy()) for p in params]
        opt = make(there, backend=backend, **given)
        for p in opt._engine.parameters:
            height, *rest = p.view.shape
            p.shard = shard_of((2 * height, *rest), p.view.shape, (height, *[0] * len(rest)), TWINS)
        for each in grads:
            opt.step([move(g) for g in each])
        return [(p if isinstance(p, np.ndarray) else cupy.asnumpy(p)).tobytes() for p in there]

    assert stepped_on(backend, cupy.asarray) == stepped_on("numpy", lambda array: array)


TWINS = Twins()
