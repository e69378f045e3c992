"""The stand-in's own test: faults planted in kernels, backends and the driver, each of which must be found.

    python -m pytest -p driver.plugin tests/driver/planted.py

Every scenario passes before the fault is planted; afterwards it gives other bits, or the driver reports a fault. Run by
tests/test_driver.py; cannot run on a GPU, which may do anything at all.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

import gpuopt
import test_gpu_graphs
import test_gpu_lifetimes
import test_gpu_streams
import test_gpu_sums
from driver.library import Driver
from driver.memory import Fault
from driver.plugin import driver
from gpuopt import backends
from gpuopt.backends import device, passes
from gpuopt.backends.cupy import CupyRuntime
from gpuopt.backends.device import DeviceBackend
from gpuopt.backends.passes import DevicePasses, OverAll
from gpuopt.compiler import to_cuda
from shim.scenarios import BARRIERS, EDITS, edited
from summing_rules import HYPER, RULES
from test_bits import FEW
from test_bits_gpu import SHORT, check

Patch = pytest.MonkeyPatch
ADDRESS = "at[M::place(R)]"


def everything(backend: str = "cupy") -> None:
    """Every option and a decision on the device, over tensors at odd offsets."""
    check(SHORT["adamw-float32-everything"], backend)


def summing(backend: str = "cupy", dtype: str = "float32") -> None:
    """Rules that ask for sums, of tensors and over all, in more tensors than blocks and chunks than one."""
    for name in ("trusting", "distant"):
        check(SHORT[f"{name}-{dtype}-sums"], backend)


def lines(backend: str = "cupy", dtype: str = "float32") -> None:
    """The one that sums along rows and columns."""
    check(SHORT[f"lined-{dtype}-sums"], backend)


def blocks(backend: str = "cupy") -> None:
    """States in blocks of rows, whole and broken."""
    check(SHORT["adamw-int4-float32-kept-blocks"], backend)


def of_several_dtypes() -> None:
    """Launches that wait for each other."""
    test_gpu_sums.test_launches_of_several_dtypes_wait_for_each_other("cupy")


def apart(backend: str = "cupy") -> None:
    """Parameters and gradients at the same odd offsets, nothing behind them, a pack but one among them; a norm is taken."""
    import cupy

    rng = np.random.default_rng(0)
    given = [[rng.standard_normal(n).astype(np.float32) for n in (*FEW, 7, 7)] for _ in range(2)]
    placed: list[list[Any]] = []
    for arrays in given:
        placed.append([cupy.empty(a.size + k % 16, a.dtype)[k % 16 :] for k, a in enumerate(arrays)])
        for there, here in zip(placed[-1], arrays, strict=True):
            there.set(here)
    for (params, grads), by in ((given, "numpy"), (placed, backend)):
        gpuopt.GD(params, lr=1.0, max_grad_norm=1.0, backend=by).step(grads)
    assert all(a.tobytes() == b.get().tobytes() for a, b in zip(given[0], placed[0], strict=True))


def lines_apart() -> None:
    """Matrices, each in memory of its own."""
    import cupy

    shapes = [(3, 5), (8, 16), (2, 520)]
    given = [[np.random.default_rng(k).standard_normal(s).astype(np.float32) for s in shapes] for k in range(2)]
    placed = [[cupy.asarray(a) for a in arrays] for arrays in given]
    for (params, grads), by in ((given, "numpy"), (placed, "cupy")):
        gpuopt.optimizer(RULES["lined"], params, backend=by, **HYPER["lined"]).step(grads)
    assert all(a.tobytes() == b.get().tobytes() for a, b in zip(given[0], placed[0], strict=True))


def schedules() -> None:
    """More steps than pinned buffers, each with other rows, and nothing that waits for them."""
    from numba import cuda

    given = [np.linspace(-1, 1, 5), np.linspace(0, 1, 7)]
    results: list[list[Any]] = []
    places: dict[str, Any] = {"numpy": np.copy, "numba-cuda": cuda.to_device}
    for backend, place in places.items():
        params, grads = [place(a) for a in given], [place(a) for a in given]
        rates = [lambda step: 1.0 / (1 + step), lambda step: 2.0 / (1 + step)]
        made = gpuopt.AdamW([{"params": [p], "lr": r} for p, r in zip(params, rates, strict=True)], backend=backend)
        for _ in range(40):
            made.step([[g] for g in grads])
        results.append([p if backend == "numpy" else p.copy_to_host() for p in params])
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*results, strict=True))


def two_streams() -> None:
    """A gradient made on one stream, a step on another that waits for it."""
    import cupy

    param, grad = cupy.zeros(64, np.float32), cupy.zeros(64, np.float32)
    made = gpuopt.GD([param], lr=1.0, backend="cupy")
    one, other = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    made.step([grad])
    cupy.cuda.Device().synchronize()
    for k in range(3):
        with one:
            grad.fill(k + 1)
            event = one.record()
        other.wait_event(event)
        with other:
            made.step([grad])
        other.synchronize()
    assert param.get().tolist() == [-6.0] * 64


def text(old: str, new: str) -> Callable[[Patch], None]:
    """Other kernels."""
    return whole_text(lambda: to_cuda.headers().replace(old, new), old)


def whole_text(make: Callable[[], str], old: str = "") -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        assert old in to_cuda.headers(), f"the kernels no longer say {old!r}"
        broken = make()
        patch.setattr(to_cuda, "headers", lambda: broken)

    return plant


def edit(name: str) -> Callable[[Patch], None]:
    """One of the mistakes that the sanitizers must see."""
    return whole_text(lambda: edited(to_cuda.headers(), name))


def arguments(change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Callable[[Patch], None]:
    """Other arguments of every launch."""

    def plant(patch: Patch) -> None:
        right = CupyRuntime.launch
        patch.setattr(
            CupyRuntime, "launch", lambda self, kernel, grid, a, *more: right(self, kernel, grid, change(a), *more)
        )

    return plant


def graphs_after_other_plans() -> None:
    """A graph is replayed after its optimizer has made other plans and a larger one has needed longer sums."""
    for backend in test_gpu_graphs.BACKENDS:
        test_gpu_graphs.test_what_a_graph_reads_and_writes_outlives_plans_and_the_sums_of_others(backend)


def sums_on_two_streams() -> None:
    """Two optimizers take norms on two streams."""
    test_gpu_graphs.test_two_optimizers_on_two_streams_have_their_own_sums("cupy")


def dropped() -> None:
    """An optimizer is gone while its step is queued; a pool of CuPy is in use, as usual."""
    import cupy

    with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc):
        test_gpu_graphs.test_tables_of_a_dropped_optimizer_are_not_given_to_another_stream("cupy")


def graph_steps() -> None:
    """A step is captured, which allocates."""
    test_gpu_graphs.test_gradients_get_their_addresses_in_the_capture_and_eager_steps_go_on("cupy", {})


def graphs_after_their_optimizer() -> None:
    """A graph is replayed when its optimizer, parameter, gradient and rate are gone."""
    test_gpu_lifetimes.test_all_that_a_graph_uses_outlives_the_optimizer("cupy", {})


def counts_after_other_plans() -> None:
    """A graph is replayed after steps with other gradients."""
    test_gpu_lifetimes.test_replays_count_the_steps_of_each_tensor_whatever_gradients_came_between("cupy")


def states_of_another_stream() -> None:
    """States are made on the default stream and used on one that does not wait for it by itself."""
    test_gpu_streams.test_states_that_are_made_inside_or_outside("cupy", "plain", 1)


def let_go(patch: Patch) -> None:
    """A graph keeps none of the arrays that it uses."""
    patch.setattr(device, "needed", lambda launch: [])


def apart_from_graphs(patch: Patch) -> None:
    """Each plan has step counts of its own."""
    patch.setattr(device.DeviceBackend, "counts", False)


def forgotten(patch: Patch) -> None:
    """Nothing keeps what a captured step reads and writes."""

    class Nothing(list[Any]):
        def append(self, thing: Any) -> None:
            pass

    patch.setattr(DeviceBackend, "graphs", property(lambda self: Nothing(), lambda self, value: None), raising=False)


def pooled(patch: Patch) -> None:
    """Buffers come from CuPy's pool, which gives to any stream what is freed on its current one."""
    import cupy

    patch.setattr(CupyRuntime, "allocate", lambda self, nbytes: cupy.cuda.alloc(nbytes))


def not_waiting(patch: Patch) -> None:
    """Each launch sums over its own tensors only."""
    right = passes.StepPasses

    class Alone:
        def __init__(self, backend: Any, each: Any, *given: Any) -> None:
            self.passes, self.joins = [right(backend, [one], *given) for one in each], ()

        def begun(self, given: Any, stream: Any) -> Any:
            for one, addresses in zip(self.passes, given, strict=True):
                one.run([addresses], stream)
            return [iter(()) for _ in given]

    patch.setattr(device, "StepPasses", Alone)


def common(owner: type, name: str) -> Callable[[Patch], None]:
    """All optimizers of a device have one buffer in common: that of the first of them."""

    def plant(patch: Patch) -> None:
        made: list[Any] = []
        patch.setattr(owner, name, property(lambda self: made[0], lambda self, b: made.append(b)), raising=False)

    return plant


def strict(patch: Patch) -> None:
    """Memory is allocated in a capture without a word to CUDA."""
    patch.setattr(device, "relaxed", nullcontext)


def freed(patch: Patch) -> None:
    """Buffers of the device are released as soon as they have been made."""
    import cupy

    class Address:
        def __init__(self, ptr: int) -> None:
            self.ptr = ptr

    cupy.get_default_memory_pool().free_all_blocks()
    patch.setattr(CupyRuntime, "allocate", lambda self, nbytes: Address(int(cupy.cuda.memory._malloc(nbytes).ptr)))


def no_wait(call: str) -> Callable[[Patch], None]:
    """A wait that does not wait."""
    return lambda patch: patch.setattr(Driver, call, lambda self, a: None)


# what is planted: (how, the scenario that must find it)
BY = {
    "updates": everything,
    "decisions": everything,
    "lines": lines,
    "blocks": blocks,
}  # instead of those of the sanitizers
FAULTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    **{f"without {name}": (edit(name), BY[of]) for name, of in BARRIERS.items()},
    **{name: (edit(name), BY[of]) for name, (_, _, of) in EDITS.items() if name != "lane-too-far"},  # read for nothing
    "without the barrier of a warp": (text("  meet();\n", ""), blocks),
    "half of the lanes of a block": (text("mask < U::lanes(E)", "2 * mask < U::lanes(E)"), blocks),
    **{  # those of all tensors are one block's
        f"sums without {name}": (edit(name), summing) for name in BARRIERS if name.endswith((" chunk", " tensor"))
    },
    "values of the next tensor": (
        text("values[(word >> 32) * M::VALUES", "values[((word >> 32) + 1) * M::VALUES"),
        summing,
    ),
    "wide scalars of the next row": (text("record[COL_ROW] * P::WIDES", "(record[COL_ROW] + 1) * P::WIDES"), summing),
    "launches that do not wait": (not_waiting, of_several_dtypes),
    **{name: (edit(name), apart) for name in ("head-of-short-tensors", "sums-over-the-end")},
    "lines-over-the-end": (edit("lines-over-the-end"), lines_apart),
    "tail one short": (text("i < count; i += unit)", "i < count - 1; i += unit)"), everything),
    "address of 32 bits": (text(ADDRESS, f"int({ADDRESS})"), everything),
    "argument of 32 bits": (arguments(lambda a: tuple(np.int32(x) if x is a[2] else x for x in a)), everything),
    "arguments swapped": (arguments(lambda a: (a[1], a[0], *a[2:])), everything),
    "buffer freed too early": (freed, everything),
    "pinned slot used again": (no_wait("cuEventSynchronize"), schedules),
    "no wait between streams": (no_wait("cuStreamWaitEvent"), two_streams),
    "graph not kept": (forgotten, graphs_after_other_plans),
    "tables from the pool": (pooled, dropped),
    "sums of chunks in common": (common(DevicePasses, "partials"), sums_on_two_streams),
    "sums of tensors in common": (common(DevicePasses, "totals"), sums_on_two_streams),
    "sums over all in common": (common(OverAll, "result"), sums_on_two_streams),
    "capture not relaxed": (strict, graph_steps),
    "arrays of graphs let go": (let_go, graphs_after_their_optimizer),
    "counts of each plan": (apart_from_graphs, counts_after_other_plans),
    "no wait for states": (no_wait("cuStreamWaitEvent"), states_of_another_stream),
}
OF_GRAPHS = (
    graphs_after_other_plans,
    sums_on_two_streams,
    dropped,
    graph_steps,
    graphs_after_their_optimizer,
    counts_after_other_plans,
    states_of_another_stream,
)
SCENARIOS: tuple[Callable[[], None], ...] = (
    everything,
    summing,
    lines,
    of_several_dtypes,
    apart,
    lines_apart,
    schedules,
    two_streams,
    *OF_GRAPHS,
)


def failure(scenario: Callable[[], None]) -> str:
    """What is wrong with it: a fault that the driver saw, or an error; empty if nothing is."""
    import cupy

    backends.get.cache_clear()
    gc.collect()  # what earlier scenarios left would wait for all work when it goes
    driver.finish()
    error: BaseException | None = None
    try:
        with cupy.cuda.using_allocator(None):  # CuPy's pool would give memory that was written before
            scenario()
    except Exception as raised:
        error = raised
    return str(driver.finish() or error or "")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_is_found_where_nothing_is_planted(scenario: Callable[[], None]) -> None:
    assert failure(scenario) == ""


def test_what_is_released_while_work_is_done_is_released_behind_it() -> None:
    address = driver.memory.allocate(64)
    seen: list[bool] = []

    def work() -> None:
        assert driver.answer("cuMemFree", [address] + [0] * 11) == 0
        seen.append(address in driver.memory.live)

    driver.enqueue(driver.default, work)
    driver.enqueue(driver.default, work)
    assert isinstance(driver.finish(), Fault)  # freed twice
    assert seen == [True, True] and address not in driver.memory.live


def check_found(plant: Callable[[Patch], None], scenario: Callable[[], None], monkeypatch: Patch) -> None:
    """The fault makes the scenario fail, and not by being no program."""
    plant(monkeypatch)
    found = failure(scenario)
    monkeypatch.undo()
    backends.get.cache_clear()
    assert found, "survived"
    assert not re.search("NotImplementedError|CompileError|TypingError|NameError|no longer say", found), found
    print(found)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_of_threads_does_not_matter(seed: int, monkeypatch: Patch) -> None:
    monkeypatch.setattr(driver, "seed", seed)
    assert failure(everything) == ""


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, monkeypatch: Patch) -> None:
    check_found(*FAULTS[name], monkeypatch)
