"""What processes that have parts of tensors exchange goes together: sums are of the same tensors, in the same order, on all of
them, or all say that they are not. Processes are threads, as in test_shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt.launch import ferry
from gpuopt.launch.shards import Shard, shard_of
from shim.backend import Backend, installed
from test_shards import BACKENDS, SHAPES, SUMS, Member, Ring, Twins, cut, data, joined, parts_stepped, stepped

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def shim() -> Iterator[Backend]:
    with installed() as backend:
        yield backend


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("name", ["lamb", "sgd"])
def test_a_gradient_that_one_process_lacks_is_an_error_on_all(name: str, backend: str) -> None:
    """Where sums are exchanged, and nothing is stepped; all go on when it is there."""
    params, grads = data(SHAPES, "float32", 2)

    def work(member: Member) -> tuple[list[Any], str]:
        mine = [cut(p, 0, member) for p in params]
        own, parts = [part for part, _ in mine], [[cut(g, 0, member)[0] for g in each] for each in grads]
        opt = stepped(name, own, parts[:1], backend, [shard for _, shard in mine], **SUMS[name])
        before = [p.copy() for p in own]
        with pytest.raises(gpuopt.InputError, match="on 2 of 3 processes that have parts") as error:
            opt.step([None if (k, member.rank) == (1, 2) else g for k, g in enumerate(parts[1])])
        assert all(map(np.array_equal, before, own))
        opt.step(parts[1])
        return own, str(error.value)

    found = Ring(3).run(work)
    assert [words.split(":")[0] for _, words in found] == ["gradient of params[1]"] * 2 + [
        "gradient of parameter 1, which has none on rank 2"
    ]
    stepped(name, params, grads, "numpy", **SUMS[name])
    for made, p in zip(joined([own for own, _ in found], lambda k: 0), params, strict=True):
        np.testing.assert_allclose(made, p, rtol=0, atol=1e-6 * np.abs(p).max())


def test_devices_look_at_the_first_step_of_a_plan(shim: Backend) -> None:
    params, (grads,) = data(SHAPES, "float32", 1)

    def work(member: Member) -> list[Any]:
        mine = [cut(p, 0, member) for p in params]
        own, parts = [part for part, _ in mine], [cut(g, 0, member)[0] for g in grads]
        opt = stepped("lamb", own, [], "shim-device", [shard for _, shard in mine])
        with pytest.raises(gpuopt.InputError, match=f"rank {member.rank} of 3 and another one step other tensors"):
            opt.step([None if (k, member.rank) == (1, 2) else g for k, g in enumerate(parts)])
        opt.step(parts)
        return own

    found = joined(Ring(3).run(work), lambda k: 0)
    stepped("lamb", params, [grads], "numpy")
    for made, p in zip(found, params, strict=True):
        np.testing.assert_allclose(made, p, rtol=0, atol=1e-6 * np.abs(p).max())


def test_steps_that_exchange_sums_are_not_captured(shim: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """In words, and with nothing written: a replay would repeat what other processes had."""
    for name, given in (("lamb", {}), ("adamw", {"max_grad_norm": 1.0})):
        params, (grads,) = data([(4, 6)], "float32", 1)
        shards = [shard_of((8, 6), (4, 6), (0, 0), Twins())]
        opt = stepped(name, params, [grads], "shim-device", shards, lr=0.1, capturable=True, **given)
        before = params[0].copy()
        with monkeypatch.context() as patch:
            patch.setattr(type(opt._engine._launches[0][0].runtime), "capturing", lambda self, stream: True)
            with pytest.raises(gpuopt.GpuoptError, match="this step exchanges sums with other processes"):
                opt.step(grads)
        assert np.array_equal(params[0], before) and opt.state_dict()["state"][0]["step"] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_matrix_of_one_process_is_looked_at_for_all(shim: Backend, backend: str) -> None:
    """One process has all of a matrix that is multiplied: what is not finite there skips the step of the others too."""
    params, (grads,) = data([(6, 8), (5, 4)], "float32", 1)
    grads[0][2, 3] = np.nan

    def work(member: Member) -> bool:
        parts = [p.copy() if k == member.rank else p[:0].copy() for k, p in enumerate(params)]
        of = [g if k == member.rank else g[:0] for k, g in enumerate(grads)]
        shards = [Shard(p.shape, communicator=member) for p in params]
        stepped("muon", parts, [of], backend, shards, lr=0.1, skip_nonfinite=True)
        return np.array_equal(parts[member.rank], params[member.rank])

    assert Ring(2).run(work) == [True, True]


def test_portions_are_the_same_on_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of states in host memory, whose sums are exchanged in the order of portions, however many rows a process has."""
    monkeypatch.setattr(ferry, "PORTION", 1000)
    shapes, given = [(7, 40), (7, 30), (7, 20), (7, 10)], {"lr": 0.01, "state_device": "host"}
    params, (grads,) = data(shapes, "float32", 1)
    for k in (1, 3):
        params[k], grads[k] = params[k].astype(np.float16), grads[k].astype(np.float16)
    found = parts_stepped("lamb", params, [grads], "numpy", lambda k: 0, Ring(3), **given)
    stepped("lamb", params, [grads], "numpy", **given)
    for made, p in zip(joined(found, lambda k: 0), params, strict=True):
        np.testing.assert_allclose(made, p, rtol=0, atol=(1e-3 if p.dtype == np.float16 else 1e-6) * np.abs(p).max())
