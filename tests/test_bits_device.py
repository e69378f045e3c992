"""Sums, decisions and rows as the device makes them: the bits of the host, and nothing written where a step is skipped.

The kernels run under g++, those with barriers with one thread for each CUDA thread (shim.backend).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gpuopt
from covering import REPRESENTATIVES
from gpuopt import backends
from gpuopt.backends.host import Addresses, HostBackend
from gpuopt.backends.runtime import DECISION
from gpuopt.compiler import to_cuda
from gpuopt.compiler.parts import Layout, Pass, PerTensor
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.launch import sums
from gpuopt.launch.launcher import Launch, StepCounter, StepRequest
from gpuopt.launch.plan import Plan
from gpuopt.launch.table import CHUNK
from gpuopt.source import program
from shim.arena import Case, launches_of, same
from shim.backend import Backend, address, installed
from shim.build import prefetch
from shim.variants import VARIANT_LABELS, VARIANTS, richest
from summing_rules import HYPER, RULES

pytestmark = pytest.mark.once
PARAMETERS = ("float64", "float32", "float16", "bfloat16")
STEPS = [1, 2, 3, 4, 7, 10, 100, 1000, 12_345, 2**24 + 1, 2**31 + 5, 2**40]
LENGTHS = [0, 1, 7, 8, 9, 2047, 2048, 2049, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17, 0, 100]


@pytest.fixture(scope="module")
def shim(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The backend, and g++ at work on every kernel that the chosen tests need."""
    with installed() as backend:
        for item in request.session.items:
            case = getattr(item, "callspec", None) and item.callspec.params.get("device_case")
            if isinstance(case, Case):
                launch = launches_of(case.run("numpy")[1])[0]
                prefetch(to_cuda.prepare_source(launch.plan.program, launch.inputs), "gpuopt_prepare")
        yield backend


def places(count: int) -> dict[str, list[int]]:
    return {role: [(k * (r + 1)) % 16 for k in range(count)] for r, role in enumerate(("g", "p", "m", "v", "w"))}


def gradients(backend: HostBackend, launch: Launch) -> NDArray[np.float64]:
    """Squares and counts of what is not finite, of every tensor, measured anew."""
    launch.private.pop("gradients", None)
    return backend.gradients(launch).totals.copy()


@pytest.mark.parametrize("odd", [0.0, 0.02])
@pytest.mark.parametrize("dtype", [*PARAMETERS, "float32-bfloat16"])
def test_totals_of_every_tensor(shim: Backend, dtype: str, odd: float) -> None:
    param, _, grad = dtype.partition("-")
    case = Case("gd", {"lr": 0.1}, param, LENGTHS, grad_dtype=grad or None, odd=odd, offsets=places(len(LENGTHS)))
    (launch,) = launches_of(case.run("numpy")[1])
    expected = gradients(backends.get("numpy"), launch)
    assert expected.shape == (len(LENGTHS) - 2, 2) and len(launch.plan.chunks) == 16  # but empty tensors
    assert same(gradients(backends.get("numba"), launch), expected)
    for shim.blocks in (1, 3):
        assert same(gradients(shim, launch), expected)
    if not odd:
        exact = [(a.astype(np.float64) ** 2).sum() for a in case.start["g"].arrays if a.size]
        assert np.allclose(expected[:, 0], exact, rtol=1e-5) and (expected[:, 1] == 0).all()


# ------------------------------------------------------------------------------------------------ joins

KINDS = ("tensor_sum", "tensor_max", "global_sum")
CHUNKS = [0, 1, 2, 3, 255, 256, 257, 700, 0, 1025]  # of a tensor: more than a block has threads


def joining_only(partials: NDArray[np.float64]) -> tuple[Plan, PerTensor]:
    """Tensors of so many chunks, whose partials are joined and nothing else. No array lies behind them."""
    made = program("gd", lr=0.1)
    plan = Plan(made, [n * CHUNK for n in CHUNKS], [0] * len(CHUNKS), np.zeros((len(CHUNKS), 2), np.int64))
    assert plan.begins[-1] == len(partials)
    return plan, PerTensor(Pass((), (), (), (), 0, KINDS), None, "float32", len(KINDS))


@pytest.mark.parametrize("odd", [False, True])
def test_more_chunks_than_threads_are_joined_in_one_order(shim: Backend, rng: np.random.Generator, odd: bool) -> None:
    partials = rng.standard_normal((sum(CHUNKS), len(KINDS))) * 10.0 ** rng.integers(-9, 9, (sum(CHUNKS), 1))
    if odd:
        partials[rng.random(partials.shape) < 0.002] = np.nan
        partials[rng.random(partials.shape) < 0.002] = -np.inf
    plan, step = joining_only(partials)
    columns = [[partials[a:b, k] for k in range(len(KINDS))] for a, b in pairwise(plan.begins)]
    expected = np.array([[sums.tensor_total(x, k) for x, k in zip(of, KINDS, strict=True)] for of in columns])
    if not odd:
        assert expected[0].tolist() == expected[8].tolist() == [0, -np.inf, 0]
        assert np.allclose(expected[1:, 0][1:7], [math.fsum(of[0]) for of in columns[2:8]])
        assert [row[1] for row in expected[1:8]] == [of[1].max() for of in columns[1:8]]
    for backend, blocks in ((backends.get("numba"), 1), (shim, 1), (shim, 4)):
        shim.blocks = blocks
        totals = np.full((len(CHUNKS), len(KINDS)), 7.0)
        run = backend.prepared(plan, Layout(plan.program.roles, "float32", 0), step)
        run(Addresses(0, 0, address(partials), address(totals), address(totals), 0))
        assert same(totals, expected), backend.name


NUMBERS = {
    "alike": lambda rng, n: rng.standard_normal(n),
    "far apart": lambda rng, n: rng.standard_normal(n) * 2.0 ** rng.integers(-300, 300, n),
    "cancelling": lambda rng, n: np.where(np.arange(n) % 2, 1, -1) * 1e15 + rng.random(n),
    "tiny": lambda rng, n: rng.standard_normal(n) * 2.0**-1060,
    "huge": lambda rng, n: rng.standard_normal(n) * 1e305,
    "zeros": lambda rng, n: np.zeros(n),
    "infinite": lambda rng, n: np.where(np.arange(n) == n // 2, np.inf, 1.0),
    "broken": lambda rng, n: np.where(np.arange(n) == n // 3, np.nan, 1.0),
}


def over_all_on_the_device(
    shim: Backend, launches: list[NDArray[np.float64]], columns: list[int]
) -> NDArray[np.float64]:
    """Sums over all tensors by gpuopt_all_tensors, written into the totals as by launch.sums.over_all."""
    first = [[address(each) + 8 * k for k in columns] for each in launches]
    parts = [[(at, len(each), each.strides[0]) for at in row] for row, each in zip(first, launches, strict=True)]
    result, there = np.zeros(len(columns)), np.array(parts, np.int64)
    runtime = shim.runtime
    runtime.launch(runtime.all_tensors_kernel(), 1, (address(there), len(launches), len(columns), address(result)))
    return result


@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS.keys())
@pytest.mark.parametrize("count", [1, 2, 255, 600])
def test_sums_over_all_tensors_do_not_depend_on_their_order(
    shim: Backend, rng: np.random.Generator, numbers: Any, count: int
) -> None:
    """Nor on how tensors are spread over launches; of three totals a tensor, the second and third are joined."""
    totals = np.stack([np.full(count, 5.0), numbers(rng, count), numbers(rng, count)], axis=1)
    found = []
    for order, cuts in ((np.arange(count), [count]), (rng.permutation(count), [count // 3, count // 3, count])):
        launches = [part.copy() for part in np.split(totals[order], cuts)]
        there = [part.copy() for part in launches]
        sums.over_all([(part, [1, 2]) for part in launches])
        result = over_all_on_the_device(shim, there, [1, 2])
        assert all(same(a, b) for a, b in zip(launches, there, strict=True))
        assert all((part[:, 0] == 5).all() and same(part[:, 1:], np.tile(result, (len(part), 1))) for part in there)
        found.append(result)
    assert same(*found)
    exact = [math.fsum(column) for column in totals[:, 1:].T] if np.isfinite(totals).all() else found[0]
    slack = 2.0**-50 * np.abs(totals[:, 1:]).max(axis=0, initial=0)
    assert same(found[0], np.array(exact)) or (np.abs(found[0] - exact) <= slack).all()


@pytest.mark.parametrize("blocks", [1, 2])
def test_clipping_by_global_norm_over_several_dtypes(shim: Backend, blocks: int) -> None:
    """One norm over float64, float32 and bfloat16 launches, joined in one order everywhere."""
    results = {}
    shim.blocks = blocks
    for backend in ("numpy", "numba", "shim", "shim-device"):
        rng = np.random.default_rng(0)
        made = [(n, numpy_dtype(PARAMETERS[k % 4])) for k, n in enumerate((9000, 5, 0, 300, 77, 12_000, 1, 8192))]
        params = [rng.standard_normal(n).astype(dtype) for n, dtype in made]
        opt = gpuopt.AdamW(params, lr=0.01, max_grad_norm=1.0, backend=backend)
        for _ in range(3):
            opt.step([(100 * rng.standard_normal(n)).astype(dtype) for n, dtype in made])
        results[backend] = b"".join(p.tobytes() for p in params)
    assert len(set(results.values())) == 1


# ------------------------------------------------------------------------------------------------ prepare

# What `prepare` computes is float64, whatever rows are in: a variant of a rule that is no representative has one dtype.
ROWS = {
    f"{label}-{dtype}": Case(name, hyper, dtype, [1000], options={"max_grad_norm": 1.0}, odd=0, steps=1)
    for turn, (label, (name, hyper)) in enumerate(zip(VARIANT_LABELS, VARIANTS, strict=True))
    for k, dtype in enumerate(("float64", "float32"))
    if name in REPRESENTATIVES or turn % 2 == k
}
ROWS["adamw-state16"] = Case(
    "adamw",
    richest("adamw"),
    "float32",
    [1000],
    state_format="bfloat16",
    options={"max_grad_norm": 1.0},
    odd=0,
    steps=1,
)
ROWS["adamw-step-of-options"] = Case(
    "adamw", {"tail_ema": (100, 7), "lookahead": (3, 0.3)}, "float32", [1000], odd=0, steps=1
)
ROWS |= {
    f"{name}-{dtype}": Case(rule, HYPER[name], dtype, [1000], options={"max_grad_norm": 1.0}, odd=0, steps=1)
    for (name, rule), dtype in zip(RULES.items(), ("float32", "float64", "float32"), strict=True)
}
DEMANDS = {
    "plain": StepRequest(),
    "clipping": StepRequest(max_norm=0.5),
    "not-clipping": StepRequest(max_norm=1e9),
    "scaled": StepRequest(grad_scale=1000.1),
    "everything": StepRequest(max_norm=0.5, grad_scale=0.3, check_finite=True),
}


def run_prepare(
    shim: Backend,
    launch: Launch,
    sums: Any,
    steps: Any,
    found_inf: Any = None,
    grad_scale: Any = None,
    **fields: Any,
) -> tuple[Any, Any]:
    """Rows, and the two counters (skip, steps skipped so far), by gpuopt_prepare; it advances `steps`. sums: of all gradients,
    squares and how many are not finite, or None.
    """
    program, runtime = launch.plan.program, shim.runtime
    decision = np.zeros((), DECISION)
    defaults = {"max_norm": np.inf, "grad_scale_value": 1.0, "row_count": len(steps)}
    given = {"sums": sums, "found_inf": found_inf, "grad_scale": grad_scale}
    pointers = {name: 0 if array is None else address(array) for name, array in given.items()}
    for name, value in {**defaults, **fields, **pointers}.items():
        decision[name] = value
    rows, wide = (
        np.full((len(steps), len(program.row)), 7, program.compute),
        np.full((len(steps), len(program.wide)), 7.0),
    )
    flags, hyper = np.array([-1, 40]), launch.hyper("cuda:0", launch.counters)
    counters = np.array([[address(steps[k:]), k] for k in range(len(steps))])
    kernel = runtime.prepare_kernel(program, launch.inputs)
    written = (hyper, counters, rows, wide, flags, flags[1:])
    runtime.launch(kernel, 1, (decision, *map(address, written)))
    return beside(rows, wide), flags


def beside(rows: Any, wide: Any) -> Any:
    """Rows of scalars in the compute type and those that stay float64, in float64."""
    return np.concatenate([rows.astype(np.float64), wide.reshape(len(rows), -1)], axis=1)


class Measured(HostBackend):
    """A host that has measured these squares of gradients, all finite: it only decides."""

    def __init__(self, squares: NDArray[np.float64]) -> None:
        self.totals = np.stack([squares, np.zeros_like(squares)], axis=1)
        self.sums = np.array([sums.total(squares), 0.0])

    def gradients(self, launch: Launch) -> sums.Joined:
        return sums.Joined(self.totals.copy(), {0: "global_sum", 1: "global_sum"}, launch.plan, None)


def many_clocks(launch: Launch) -> Launch:
    """The launch with a row for each of STEPS, 300 in all: more than the threads of a block."""
    environment = launch.counters[0].environment
    counters = [StepCounter(0, STEPS[k % len(STEPS)] - 1, environment) for k in range(300)]
    return Launch(launch.plan, counters, launch.arrays, launch.flags)


@pytest.mark.parametrize("device_case", ROWS.values(), ids=ROWS.keys())
def test_rows_made_on_the_device(shim: Backend, device_case: Case, rng: np.random.Generator) -> None:
    """At every step count, under every request, the bits of the host's rows."""
    launch = many_clocks(launches_of(device_case.run("numpy")[1])[0])
    host = Measured(rng.random(700))
    for label, request in DEMANDS.items():
        multiplier, skip = host.decide([launch], request)
        steps = np.array([counter.step for counter in launch.counters])
        given = {
            "max_norm": np.inf if request.max_norm is None else request.max_norm,
            "grad_scale_value": request.grad_scale or 1.0,
            "check_finite": request.check_finite,
        }
        rows, flags = run_prepare(shim, launch, host.sums if request.sums else None, steps, **given)
        for counter in launch.counters:
            counter.step += 1
        expected = beside(launch.rows(multiplier), launch.wide)
        assert not skip and flags.tolist() == [0, 40]
        assert [counter.step for counter in launch.counters] == steps.tolist()
        for counter in launch.counters:
            counter.step -= 1
        assert same(rows, expected), label


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_skipped_step_leaves_rows_and_counts(shim: Backend, dtype: str) -> None:
    launch = many_clocks(launches_of(ROWS[f"adamw-plain-{dtype}"].run("numpy")[1])[0])
    one, zero, scale = np.ones(1, np.float32), np.zeros(1, np.float32), np.full(1, 4.0, np.float32)
    good, infinite, broken = np.array([4.0, 0.0]), np.array([np.inf, 0.0]), np.array([np.nan, 1.0])
    before = np.array([counter.step for counter in launch.counters])
    for measured, given, skipped in (
        (good, {"check_finite": 1}, False),
        (broken, {"check_finite": 1}, True),
        (infinite, {"check_finite": 1}, False),  # squares may overflow where every gradient is finite
        (broken, {"check_finite": 0}, False),
        (good, {"found_inf": zero}, False),
        (good, {"found_inf": one}, True),
        (good, {"found_inf": one, "check_finite": 1, "grad_scale": scale}, True),
    ):
        steps = before.copy()
        rows, flags = run_prepare(shim, launch, measured, steps, **given)
        assert flags.tolist() == [skipped, 40 + skipped]
        assert (steps == before + (not skipped)).all()
        assert bool((rows == 7).all()) is skipped


def test_the_scale_may_lie_on_the_device(shim: Backend) -> None:
    launch = many_clocks(launches_of(ROWS["adamw-plain-float32"].run("numpy")[1])[0])
    scale = np.full(1, 3.0, np.float32)
    steps = [np.array([counter.step for counter in launch.counters]) for _ in range(3)]
    by_pointer = run_prepare(shim, launch, None, steps[0], grad_scale=scale, grad_scale_value=5.0)[0]
    by_value = run_prepare(shim, launch, None, steps[1], grad_scale_value=3.0)[0]
    assert same(by_pointer, by_value)
    assert not same(by_value, run_prepare(shim, launch, None, steps[2])[0])
