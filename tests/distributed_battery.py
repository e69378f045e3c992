"""Checks that every process of several makes at once, each a function of a communicator; run by test_distributed, once for each
kind and number of processes.

Gradients are eighths of small whole numbers, so that their sums are exact in whatever order processes are added up: what is
compared to the bit is what the optimizer does with them.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

import gpuopt
from gpuopt.distributed import Communicator, communicator, data_parallel
from gpuopt.formats.dtypes import numpy_dtype

SHAPES: list[tuple[int, ...]] = [(37, 11), (5,), (), (64, 70), (3, 4, 5), (1,), (0, 3)]
SMALL: list[tuple[int, ...]] = [(12, 10), (7,), (20, 8)]
ELEMENTS: dict[str, dict[str, Any]] = {
    "adamw": {"weight_decay": 0.1},
    "lion": {"state_format": "bfloat16"},
    "adam": {"state_format": "int8", "max_grad_norm": 1e9},
    "radam": {"state_format": "int4", "skip_nonfinite": True},
    "muon": {"nesterov": True},
    "adafactor": {},
    "soap": {},
}
SLOW = "every_rule_steps_parts_as_the_whole"  # which one group does
FEW = ("arrays_are_exchanged", "the_average_is_that_of_all_gradients", "one_that_is_not_finite_is_so_everywhere")
FOLDER: list[Path] = []  # for files of all processes
CHECKS: dict[str, Callable[[Communicator], None]] = {}


def check(function: Callable[[Communicator], None]) -> Callable[[Communicator], None]:
    CHECKS[function.__name__] = function
    return function


def eighths(shape: tuple[int, ...], dtype: str, *seed: int) -> Any:
    return np.asarray(np.random.default_rng([*seed]).integers(-8, 9, shape) / 8).astype(numpy_dtype(dtype))


def params(shapes: list[tuple[int, ...]] = SHAPES, dtype: str = "float32") -> list[Any]:
    return [eighths(shape, dtype, 0, k) for k, shape in enumerate(shapes)]


def grads(step: int, rank: int, shapes: list[tuple[int, ...]] = SHAPES, dtype: str = "float32") -> list[Any]:
    return [eighths(shape, dtype, 1, step, rank, k) for k, shape in enumerate(shapes)]


def mean(step: int, size: int, shapes: list[tuple[int, ...]] = SHAPES) -> list[Any]:
    """What all processes together have, as a process alone computes it."""
    every = [grads(step, rank, shapes) for rank in range(size)]
    return [sum(each) * np.float32(1 / size) for each in zip(*every, strict=True)]


def trained(
    comm: Communicator, name: str, shard: bool, shapes: list[tuple[int, ...]] = SHAPES, dtype: str = "float32", steps: int = 3,
    first: int = 0, given: list[Any] | None = None, hole: int | None = None, **options: Any,
) -> tuple[list[Any], Any]:  # fmt: skip
    """Parameters and optimizer behind some steps; in the second, rank 0 has no gradient of the tensor `hole`."""
    p = params(shapes, dtype) if given is None else given
    opt = data_parallel(gpuopt.create(name, p, **options), comm, shard=shard, bucket_bytes=6000)
    go(opt, comm, shapes, dtype, range(first, first + steps), hole)
    return p, opt


def go(opt: Any, comm: Communicator, shapes: Any, dtype: str, steps: range, hole: int | None = None) -> None:
    for step in steps:
        g = grads(step, comm.rank, shapes, dtype)
        if hole is not None and step == steps[1] and comm.rank == 0:
            g[hole] = None
        opt.step(g)


def bits(given: list[Any]) -> list[bytes]:
    return [array.tobytes() for array in given]


def raises(kind: type[Exception], words: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except kind as error:
        assert words in str(error), str(error)
    else:
        raise AssertionError(f"no {kind.__name__}: {words}")


@check
def arrays_are_exchanged(comm: Communicator) -> None:
    n = comm.size
    for dtype in ("float64", "float32", "float16", "bfloat16", "int64", "int32"):
        a = (np.arange(3 * n) + comm.rank).astype(numpy_dtype(dtype) if "int" not in dtype else dtype)
        whole, largest, part = a.copy(), a.copy(), a[:3].copy()
        comm.all_reduce(whole)
        comm.all_reduce(largest, "max")
        assert (whole == np.arange(3 * n) * n + n * (n - 1) // 2).all() and (largest == np.arange(3 * n) + n - 1).all()
        comm.reduce_scatter(a, part)
        assert (part == whole[3 * comm.rank : 3 * comm.rank + 3]).all()
        gathered = np.zeros_like(whole)
        comm.all_gather(part, gathered)
        assert (gathered == whole).all()
    for dtype in ("uint8", "uint16", "bool", "complex64"):
        a = np.full((2, 3), comm.rank + 1, dtype)
        comm.broadcast(a, n - 1)
        assert (a == np.full((2, 3), n, dtype)).all()
    pairs = np.full(3, 1j, np.complex128)
    comm.all_reduce(pairs)
    assert (pairs == 1j * n).all()


@check
def wrong_arrays_are_refused_before_anything_is_sent(comm: Communicator) -> None:
    raises(gpuopt.InputError, "contiguous", lambda: comm.all_reduce(np.ones((4, 4)).T))
    raises(gpuopt.DtypeError, "dense array", lambda: comm.all_reduce([1.0]))
    raises(gpuopt.DtypeError, "dtype bool", lambda: comm.all_reduce(np.ones(2, bool)))
    raises(gpuopt.InputError, "op = 'mean'", lambda: comm.all_reduce(np.ones(2), "mean"))
    raises(gpuopt.InputError, "root = 9", lambda: comm.broadcast(np.ones(2), 9))
    raises(gpuopt.InputError, "times as many", lambda: comm.all_gather(np.ones(2), np.ones(2 * comm.size + 1)))
    raises(
        gpuopt.InputError, "expected the same", lambda: comm.reduce_scatter(np.ones(comm.size), np.ones(1, np.float32))
    )
    locked = np.ones(2)
    locked.flags.writeable = False
    raises(gpuopt.InputError, "read-only", lambda: comm.broadcast(locked))


@check
def the_average_is_that_of_all_gradients(comm: Communicator) -> None:
    p, _ = trained(comm, "sgd", shard=False, lr=0.1, momentum=0.9)
    alone = params()
    opt = gpuopt.SGD(alone, lr=0.1, momentum=0.9)
    for step in range(3):
        opt.step(mean(step, comm.size))
    for a, b in zip(p, alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=0 if comm.size in (2, 4) else 1e-6)


@check
def parts_are_bit_for_bit_the_whole(comm: Communicator) -> None:
    for name, options in ELEMENTS.items():
        p, one = trained(comm, name, shard=False, hole=3, **options)
        q, parts = trained(comm, name, shard=True, hole=3, **options)
        assert bits(p) == bits(q), name
        a, b = one.state_dict(), parts.state_dict()
        assert a["state"].keys() == b["state"].keys() and a["param_groups"] == b["param_groups"]
        for index, entry in a["state"].items():
            for key, value in entry.items():
                found = b["state"][index][key]
                assert np.shape(value) == np.shape(found) and np.all(np.asarray(value) == found), (name, index, key)


@check
def parts_of_16_bits_are_bit_for_bit_the_whole(comm: Communicator) -> None:
    for options in ({"param_format": "split8"}, {"param_format": "stochastic", "state_format": "bfloat16"}):
        p, _ = trained(comm, "adamw", shard=False, dtype="bfloat16", lr=0.1, **options)
        q, opt = trained(comm, "adamw", shard=True, dtype="bfloat16", lr=0.1, **options)
        assert bits(p) == bits(q), options
        assert [a.shape for a in gpuopt.full_precision(opt)] == SHAPES


@check
def every_rule_steps_parts_as_the_whole(comm: Communicator) -> None:
    for name in gpuopt.optimizers():
        (p, opt), (q, _) = (trained(comm, name, shard, SMALL, steps=2, lr=0.01) for shard in (False, True))
        programs = [launch.plan.program for _, launches, _ in opt._engine._launches for launch in launches]
        if not any(program.whole and not program.lined for program in programs):
            assert bits(p) == bits(q), name
        for a, b in zip(p, q, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(a).max(), err_msg=name)


@check
def the_norm_is_that_of_all_parts(comm: Communicator) -> None:
    for name in ("sgd", "muon"):
        p, _ = trained(comm, name, shard=False, lr=0.1, max_grad_norm=0.5)
        q, _ = trained(comm, name, shard=True, lr=0.1, max_grad_norm=0.5)
        for a, b in zip(p, q, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@check
def states_are_divided(comm: Communicator) -> None:
    for name in ("adamw", "soap"):
        shapes = [(16, 9)] * 4 * comm.size + [(20,), (16, 8)]
        own = np.array([float(trained(comm, name, True, shapes, steps=1)[1].nbytes)])
        whole, largest = trained(comm, name, False, shapes, steps=1)[1].nbytes, own.copy()
        comm.all_reduce(largest, "max")
        comm.all_reduce(own)
        assert whole == own[0] and largest[0] < 1.3 * whole / comm.size, name


@check
def a_gradient_that_one_process_lacks_counts_as_zeros(comm: Communicator) -> None:
    for shard in (False, True):
        p, opt = trained(comm, "adamw", shard, hole=3)
        alone = params()
        plain = gpuopt.AdamW(alone)
        for step in range(3):
            g = mean(step, comm.size)
            g[3] = g[3] - grads(step, 0)[3] * np.float32(1 / comm.size) if step == 1 else g[3]
            plain.step(g)
        np.testing.assert_allclose(p[3], alone[3], rtol=0, atol=1e-6)
        opt.step([None if k == 3 else g for k, g in enumerate(grads(9, comm.rank))])  # none has it
        assert [opt.state_dict()["state"][k]["step"] for k in (0, 3)] == [4, 3]


@check
def one_that_is_not_finite_is_so_everywhere(comm: Communicator) -> None:
    for shard in (False, True):
        for skip in (False, True):
            p = params()
            opt = data_parallel(gpuopt.AdamW(p, skip_nonfinite=skip), comm, shard=shard)
            before = bits(p)
            g = grads(0, comm.rank)
            if comm.rank == comm.size - 1:
                g[3][5, 7] = np.nan
            opt.step(g)
            assert opt.skipped == skip and (bits(p) == before) == skip and np.isnan(p[3][5, 7]) == (not skip)
            opt.step(grads(1, comm.rank))
            assert np.isfinite(p[0]).all() and opt.state_dict()["state"][0]["step"] == 2 - skip


@check
def states_load_on_any_number_of_processes(comm: Communicator) -> None:
    for name, options in (
        ("adamw", {"state_format": "int8"}),
        ("muon", {}),
        ("novograd", {"lr": 0.01}),
        ("adafactor", {}),
    ):
        p, opt = trained(comm, name, True, **options)
        saved, kept = opt.state_dict(), [a.copy() for a in p]
        go(opt, comm, SHAPES, "float32", range(3, 5))
        for shard in (False, True):
            q = [a.copy() for a in kept]
            other = data_parallel(gpuopt.create(name, q, **options), comm, shard=shard)
            other.load_state_dict(saved)
            go(other, comm, SHAPES, "float32", range(3, 5))
            assert bits(p) == bits(q) or (name == "novograd" and not shard), (name, shard)
        later = gpuopt.create(name, [a.copy() for a in kept], **options)  # with states when it is divided
        later.load_state_dict(saved)
        divided = data_parallel(later, comm, shard=True)
        go(divided, comm, SHAPES, "float32", range(3, 5))
        assert bits(later.param_groups[0]["params"]) == bits(p)


@check
def a_file_is_the_same_from_any_number_of_processes(comm: Communicator) -> None:
    for name in ("adamw", "muon"):
        (p, parts), (_, one) = (trained(comm, name, shard) for shard in (True, False))
        for opt, file in ((parts, "parts"), (one, "one")):
            gpuopt.save(opt, FOLDER[0] / file)
            comm.all_reduce(np.zeros(1))  # it is written
        assert (FOLDER[0] / "parts").read_bytes() == (FOLDER[0] / "one").read_bytes()
        q = [a.copy() for a in p]
        other = data_parallel(gpuopt.create(name, q), comm, shard=True)
        gpuopt.load(other, FOLDER[0] / "one")
        for opt in (parts, other):
            go(opt, comm, SHAPES, "float32", range(3, 5))
        assert bits(p) == bits(q), name


@check
def any_memory_order_and_complex_numbers(comm: Communicator) -> None:
    def given() -> list[Any]:
        p = params([(6, 8), (5, 4, 3), (9, 2)], "float64")
        return [np.asfortranarray(p[0]), p[1].transpose(2, 0, 1), p[2].view(np.complex128), p[2][::-1].copy()[::-1]]

    shapes, found = [a.shape for a in given()], []
    for shard in (False, True):
        p = given()
        opt = data_parallel(gpuopt.SGD(p, lr=0.5, momentum=0.9), comm, shard=shard, bucket_bytes=100)
        for step in range(3):
            g = grads(step, comm.rank, shapes, "float64")
            g[2] = g[2] * (1 + 2j)
            opt.step(g)
        found.append([np.ascontiguousarray(a) for a in p])
        saved = opt.state_dict()["state"][2]["momentum_buffer"]
        assert saved.shape == (9, 1) and saved.dtype == np.complex128
    assert bits(found[0]) == bits(found[1])
    alone = given()
    plain = gpuopt.SGD(alone, lr=0.5, momentum=0.9)
    for step in range(3):
        every = [grads(step, rank, shapes, "float64") for rank in range(comm.size)]
        g = [sum(each) / comm.size for each in zip(*every, strict=True)]
        plain.step([*g[:2], g[2] * (1 + 2j), g[3]])
    for a, b in zip(found[0], alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@check
def averages_of_parts_are_whole(comm: Communicator) -> None:
    found = []
    for shard in (False, True):
        p, opt = trained(comm, "schedulefreesgd", shard, lr=0.1)
        average = opt.averaged_params()
        opt.eval()
        assert bits(p) == bits([np.asarray(a) for a in average])
        raises(gpuopt.InputError, "train()", lambda opt=opt: opt.step(grads(0, comm.rank)))
        opt.train()
        found.append(bits(p))
    assert found[0] == found[1]


@check
def processes_that_differ_are_told_so(comm: Communicator) -> None:
    last = comm.rank == comm.size - 1
    raises(
        gpuopt.InputError,
        "param_groups[0] differs",
        lambda: data_parallel(gpuopt.SGD(params(), lr=0.2 if last else 0.1), comm),
    )
    other = [(11, 37) if last else (37, 11), (2,)]
    raises(
        gpuopt.InputError,
        "params[0] differs",
        lambda: data_parallel(gpuopt.SGD(params(other), lr=0.1), comm, shard=True),
    )
    raises(gpuopt.InputError, "tensors in", lambda: data_parallel(gpuopt.SGD(params()[: 3 - last], lr=0.1), comm))
    raises(gpuopt.InputError, "data_parallel differs", lambda: data_parallel(gpuopt.SGD(params(), lr=0.1), comm, last))
    raises(
        gpuopt.InputError, "the optimizer differs", lambda: data_parallel(gpuopt.Lion(params(), seed=int(last)), comm)
    )


@check
def processes_may_begin_with_the_parameters_of_the_first(comm: Communicator) -> None:
    p = [np.asfortranarray(a + np.float32(comm.rank)) for a in params()]
    opt = data_parallel(gpuopt.SGD(p, lr=0.1), comm, broadcast=True)
    assert bits(p) == bits([np.asfortranarray(a) for a in params()])
    raises(gpuopt.InputError, "add_param_group", lambda: opt.add_param_group({"params": [np.ones(2)]}))
    strict = data_parallel(gpuopt.SGD(p, lr=0.1), comm, find_unused_parameters=False)
    raises(gpuopt.InputError, "gradient of params[1]: None", lambda: strict.step([p[0], None, *p[2:]]))
    raises(gpuopt.InputError, "shape (3,): expected (5,)", lambda: opt.step([p[0], np.ones(3, np.float32), *p[2:]]))


OF_MPI = [name for name in CHECKS if name not in ("parts_are_bit_for_bit_the_whole", "averages_of_parts_are_whole")]
OF_GLOO = [name for name in CHECKS if name not in (SLOW, "states_load_on_any_number_of_processes")]


def run(comm: Communicator, names: Iterable[str]) -> dict[str, str]:
    """Name of each check -> nothing, or what went wrong; no more are made behind one that failed, for others may wait in it."""
    found = {}
    for name in names:
        function = CHECKS[name]
        try:
            function(comm)
            found[name] = ""
        except BaseException:
            found[name] = traceback.format_exc()
            break
    return found


def write(comm: Communicator, folder: str | Path, names: Iterable[str] = CHECKS) -> None:
    """Run checks and leave what they found in a file of this rank."""
    FOLDER.append(Path(folder))
    Path(folder, f"{comm.rank}.json").write_text(json.dumps(run(comm, names)))


if __name__ == "__main__":
    if sys.argv[1] == "dies":
        mine = communicator()
        if mine.rank == 1:
            os._exit(3)
        mine.all_reduce(np.ones(3))
    else:
        write(communicator(), sys.argv[1], OF_MPI)
