"""Steps of parts of tensors, as each of several processes makes them: bit for bit those of whole tensors where elements are alone,
to rounding where they are summed; on every backend, with random numbers that are those of the whole.

Processes are threads here, which meet where they exchange sums: what is tested is what engine, plans and kernels make of a Shard.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.launch.shards import shard_of
from shim.backend import Backend, installed

HOST = ("numpy", "numba", "shim")
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


@pytest.mark.parametrize("backend", HOST)
@pytest.mark.parametrize("case", ELEMENTS)
def test_parts_along_rows_are_bit_for_bit_the_whole(shim: Backend, case: str, backend: str) -> None:
    name, dtype, shapes, given = ELEMENTS[case]
    params, grads = data(shapes, dtype, 3)
    found = parts_stepped(name, params, grads, backend, lambda k: 0, Ring(3), lr=0.1, **given)
    stepped(name, params, grads, "numpy", lr=0.1, **given)
    assert [p.tobytes() for p in joined(found, lambda k: 0)] == [p.tobytes() for p in params]


@pytest.mark.parametrize("backend", HOST)
@pytest.mark.parametrize("case", ["lion-rounded", "adamw-split8"])
def test_parts_along_columns_are_bit_for_bit_the_whole(shim: Backend, case: str, backend: str) -> None:
    name, dtype, shapes, given = ELEMENTS[case]
    shapes = [*shapes, (24, 64)]
    params, grads = data(shapes, dtype, 3)
    found = parts_stepped(name, params, grads, backend, last_axis(shapes), Ring(2), lr=0.1, **given)
    stepped(name, params, grads, "numpy", lr=0.1, **given)
    assert [p.tobytes() for p in joined(found, last_axis(shapes))] == [p.tobytes() for p in params]


@pytest.mark.parametrize("backend", HOST)
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
