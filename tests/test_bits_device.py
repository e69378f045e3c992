"""Sums, decisions and rows as the device makes them: the bits of the host, and nothing written where a step is skipped.

The kernels gpuopt_sums and gpuopt_prepare run under g++ with one thread for each CUDA thread (shim.backend).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gpuopt
from gpuopt import arrays, backends, rules
from gpuopt.backends.host import HostBackend
from gpuopt.backends.runtime import DECISION
from gpuopt.compiler import to_cuda
from gpuopt.errors import DtypeError, InputError
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.launch.launcher import Clock, Demand, Launch
from gpuopt.launch.plan import join
from gpuopt.launch.table import CHUNK
from gpuopt.optim.optimizer import Optimizer
from launches import OnGpu, one_of_its_kind
from shim.arena import Case, assert_same, launches_of, slots_of
from shim.backend import Backend, address, installed
from shim.build import prefetch
from shim.variants import VARIANT_LABELS, VARIANTS, richest

PARAMETERS = ("float64", "float32", "float16", "bfloat16")
STEPS = [1, 2, 3, 4, 7, 10, 100, 1000, 12_345, 2**24 + 1, 2**31 + 5, 2**40]
LENGTHS = [0, 1, 7, 8, 9, 2047, 2048, 2049, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17, 0, 100]
MIXED = [0, 5, 33, 1000, 3, 4097, 8, 10_000, 0]


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


def counts(made: Optimizer) -> list[int]:
    """The step count of every tensor."""
    made.skipped  # noqa: B018 waits for the device
    return [slot.clock.step for slot in slots_of(made)]


def same(a: Any, b: Any) -> bool:
    """Bit for bit, any NaN equal to any NaN."""
    a, b = np.asarray(a), np.asarray(b)
    both = np.isnan(a) & np.isnan(b)
    bits = [x.view(f"u{x.itemsize}") for x in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and bool((both | (bits[0] == bits[1])).all())


@pytest.mark.parametrize("odd", [0.0, 0.02])
@pytest.mark.parametrize("dtype", [*PARAMETERS, "float32-bfloat16"])
def test_sums_of_every_chunk(shim: Backend, dtype: str, odd: float) -> None:
    param, _, grad = dtype.partition("-")
    case = Case("gd", {"lr": 0.1}, param, LENGTHS, grad_dtype=grad or None, odd=odd, offsets=places(len(LENGTHS)))
    (launch,) = launches_of(case.run("numpy")[1])
    expected = backends.get("numpy").sums(launch).astype(np.float64)
    assert len(expected) == len(launch.plan.chunks) == 16
    assert same(backends.get("numba").sums(launch).astype(np.float64), expected)
    for shim.blocks in (1, 3):
        assert same(shim.sums(launch), expected)
    if not odd:
        exact = np.concatenate([a.astype(np.float64) for a in case.start["g"].arrays])
        assert np.isclose(join(expected)[0], (exact**2).sum(), rtol=1e-5) and join(expected)[1] == 0


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

ROWS = {
    f"{label}-{dtype}": Case(name, hyper, dtype, [1000], options={"max_grad_norm": 1.0}, odd=0, steps=1)
    for label, (name, hyper) in zip(VARIANT_LABELS, VARIANTS, strict=True)
    for dtype in ("float64", "float32")
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
DEMANDS = {
    "plain": Demand(),
    "clipping": Demand(max_norm=0.5),
    "not-clipping": Demand(max_norm=1e9),
    "scaled": Demand(grad_scale=1000.1),
    "everything": Demand(max_norm=0.5, grad_scale=0.3, check_finite=True),
}


def run_prepare(
    shim: Backend,
    launch: Launch,
    partials: Any,
    steps: Any,
    found_inf: Any = None,
    grad_scale: Any = None,
    **fields: Any,
) -> tuple[Any, Any]:
    """Rows, and the two counters (skip, steps skipped so far), by gpuopt_prepare; it advances `steps`."""
    program, runtime = launch.plan.program, shim.runtime
    decision = np.zeros((), DECISION)
    defaults = {"chunk_count": len(partials), "max_norm": np.inf, "grad_scale_value": 1.0, "row_count": len(steps)}
    for name, value in {**defaults, **fields}.items():
        decision[name] = value
    decision["found_inf"] = 0 if found_inf is None else address(found_inf)
    decision["grad_scale"] = 0 if grad_scale is None else address(grad_scale)
    rows = np.full((len(steps), len(program.row)), 7, program.compute)
    flags, hyper = np.array([-1, 40]), launch.hyper("cuda:0")
    pointers = (partials, hyper, steps, rows, flags, flags[1:])
    kernel = runtime.prepare_kernel(program, launch.inputs)
    runtime.launch(kernel, 1, (decision, *map(address, pointers)))
    return rows, flags


class Measured(HostBackend):
    """A host that has measured these squares of gradients, all finite: it only decides."""

    def __init__(self, squares: NDArray[np.float64]) -> None:
        self.partials = np.stack([squares, np.zeros_like(squares)], axis=1)

    def sums(self, launch: Launch) -> NDArray[np.float64]:
        return self.partials


def many_clocks(launch: Launch) -> Launch:
    """The launch with a row for each of STEPS, 300 in all: more than the threads of a block."""
    environment = launch.clocks[0].environment
    clocks = [Clock(0, STEPS[k % len(STEPS)] - 1, environment) for k in range(300)]
    return Launch(launch.plan, clocks, launch.arrays, launch.flags)


@pytest.mark.parametrize("device_case", ROWS.values(), ids=ROWS.keys())
def test_rows_made_on_the_device(shim: Backend, device_case: Case, rng: np.random.Generator) -> None:
    """At every step count, under every demand, the bits of the host's rows."""
    launch = many_clocks(launches_of(device_case.run("numpy")[1])[0])
    host = Measured(rng.random(700))
    for label, demand in DEMANDS.items():
        multiplier, skip = host.decide([launch], demand)
        steps = np.array([clock.step for clock in launch.clocks])
        given = {
            "max_norm": np.inf if demand.max_norm is None else demand.max_norm,
            "grad_scale_value": demand.grad_scale or 1.0,
            "check_finite": demand.check_finite,
        }
        rows, flags = run_prepare(shim, launch, host.partials if demand.sums else np.empty((0, 2)), steps, **given)
        for clock in launch.clocks:
            clock.step += 1
        expected = launch.rows(multiplier)
        assert not skip and flags.tolist() == [0, 40]
        assert [clock.step for clock in launch.clocks] == steps.tolist()
        for clock in launch.clocks:
            clock.step -= 1
        assert same(rows, expected), label


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_skipped_step_leaves_rows_and_counts(shim: Backend, dtype: str) -> None:
    launch = many_clocks(launches_of(ROWS[f"adamw-plain-{dtype}"].run("numpy")[1])[0])
    one, zero, scale = np.ones(1, np.float32), np.zeros(1, np.float32), np.full(1, 4.0, np.float32)
    good = np.array([[4.0, 0.0]] * 300)
    infinite, broken = good.copy(), good.copy()
    infinite[299, 0], broken[299] = np.inf, (np.nan, 1.0)
    before = np.array([clock.step for clock in launch.clocks])
    for partials, given, skipped in (
        (good, {"check_finite": 1}, False),
        (broken, {"check_finite": 1}, True),
        (infinite, {"check_finite": 1}, False),  # squares may overflow where every gradient is finite
        (broken, {"check_finite": 0}, False),
        (good, {"found_inf": zero}, False),
        (good, {"found_inf": one}, True),
        (good, {"found_inf": one, "check_finite": 1, "grad_scale": scale}, True),
    ):
        steps = before.copy()
        rows, flags = run_prepare(shim, launch, partials, steps, **given)
        assert flags.tolist() == [skipped, 40 + skipped]
        assert (steps == before + (not skipped)).all()
        assert bool((rows == 7).all()) is skipped


def test_the_scale_may_lie_on_the_device(shim: Backend) -> None:
    launch = many_clocks(launches_of(ROWS["adamw-plain-float32"].run("numpy")[1])[0])
    scale, empty = np.full(1, 3.0, np.float32), np.empty((0, 2))
    steps = [np.array([clock.step for clock in launch.clocks]) for _ in range(3)]
    by_pointer = run_prepare(shim, launch, empty, steps[0], grad_scale=scale, grad_scale_value=5.0)[0]
    by_value = run_prepare(shim, launch, empty, steps[1], grad_scale_value=3.0)[0]
    assert same(by_pointer, by_value)
    assert not same(by_value, run_prepare(shim, launch, empty, steps[2])[0])


# ------------------------------------------------------------------------------------------------ whole steps

WHOLE = {f"{name}-float32": Case(name, richest(name), "float32", MIXED) for name in rules.NAMES}
WHOLE |= {f"adamw-{dtype}": Case("adamw", richest("adamw"), dtype, MIXED) for dtype in PARAMETERS}
WHOLE |= {
    f"{name}-state16": Case(name, richest(name), dtype, MIXED, state_format="bfloat16")
    for name, dtype in (("adamw", "float32"), ("lion", "bfloat16"), ("rmsprop", "float16"))
}


@pytest.mark.parametrize("case", WHOLE.values(), ids=WHOLE.keys())
def test_steps_of_the_device_backend(shim: Backend, case: Case) -> None:
    """Three groups, two step counts each, clip and check: the kernels decide as the host does."""
    groups = [{"lr": 0.01}, {"lr": 0.02}, {"lr": 0.03}]
    seen = [range(9), range(0, 9, 2), range(9)]
    options = {"max_grad_norm": 0.5, "grad_scale": 2.0, "skip_nonfinite": True}
    whole = replace(case, odd=0, steps=3, groups=groups, seen=seen, options=options)
    expected, reference = whole.run("numpy")
    found, made = whole.run("shim-device")
    assert_same(expected, found)
    assert reference.skipped == made.skipped == 0
    assert counts(made) == counts(reference)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, str], OnGpu]:
    """Makes numbers on a GPU."""
    monkeypatch.setattr(arrays, "KINDS", arrays.KINDS)
    monkeypatch.setattr(arrays, "_by_type", {})
    arrays.register(one_of_its_kind())
    return OnGpu


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.5}, {"skip_nonfinite": True}], ids=str)
def test_a_rate_on_the_gpu_is_read_there(
    shim: Backend, on_gpu: Callable[[float, str], OnGpu], dtype: str, options: dict[str, Any]
) -> None:
    """At every step anew, and the host asks for it once, to check it."""
    rates, beta = [on_gpu(0.5, dtype), on_gpu(0.25, dtype)], on_gpu(0.5, dtype)
    gradient = np.linspace(-1, 1, 33, dtype=np.float32)
    found, expected = (np.ones((2, 33), np.float32) for _ in range(2))
    first = {"betas": (0.5, 0.75)}
    there = gpuopt.AdamW(
        [{"params": [found[0]], "lr": rates[0]}, {"params": [found[1]], "betas": (beta, 0.75)}],
        lr=rates[1],
        **first,
        backend="shim-device",
        **options,
    )
    here = gpuopt.AdamW(
        [{"params": [expected[0]], "lr": 0.5}, {"params": [expected[1]]}], lr=0.25, **first, backend="numpy", **options
    )
    asked = []
    for step in range(5):
        for opt in (here, there):
            opt.step([[gradient], [gradient]])
        asked.append([number.asked for number in (*rates, beta)])
        for group, rate in zip(here.param_groups, rates, strict=True):
            group["lr"] = rate.memory[0] = (step + 1) / 8
    assert same(found, expected)
    assert asked == [asked[0]] * 5
    assert counts(there) == [5, 5]


def test_what_cannot_be_a_rate_on_the_gpu(on_gpu: Callable[[float, str], OnGpu]) -> None:
    with pytest.raises(DtypeError, match=r"lr: float16 .*expected one float32 or float64"):
        gpuopt.AdamW(np.ones(3), lr=on_gpu(0.5, "float16"), backend="numpy")
    with pytest.raises(DtypeError, match="betas: float16"):
        gpuopt.AdamW(np.ones(3), betas=(0.9, on_gpu(0.5, "float16")), backend="numpy")
    with pytest.raises(InputError, match=r"lr = .*expected a number in"):
        gpuopt.AdamW(np.ones(3), lr=on_gpu(-1.0, "float32"), backend="numpy")


def test_a_schedule_is_asked_once_a_step(shim: Backend) -> None:
    """Where the rows are made on the device too."""
    asked: list[int] = []
    opt = gpuopt.GD(np.ones(3), lr=lambda t: asked.append(t) or 0.1, max_grad_norm=1.0, backend="shim-device")
    for _ in range(3):
        opt.step(np.ones(3))
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("option", ["capturable", "skip_nonfinite"])
def test_counts_change_sides_with_the_options(shim: Backend, option: str) -> None:
    """Step counts live on the device only as long as something there decides."""
    found, expected = np.ones(33, np.float32), np.ones(33, np.float32)
    made = [gpuopt.Adam(p, lr=0.1, backend=b) for p, b in ((found, "shim-device"), (expected, "numpy"))]
    for number in range(8):
        for opt in made:
            setattr(opt._engine.settings, option, number in (2, 3, 6))
            opt.step(np.full(33, 1.0 + number, np.float32))
    assert same(found, expected)
    assert counts(made[0]) == counts(made[1]) == [8]


def test_an_empty_tensor_counts_its_steps_on_the_device_too(shim: Backend) -> None:
    """Even where no other tensor has missed the same gradients, so that no kernel touches anything for its sake."""
    seen = [[0, 1], [1], [0, 1]]
    case = Case(
        "adamw", richest("adamw"), "float32", [5, 0], odd=0, steps=3, seen=seen, options={"skip_nonfinite": True}
    )
    found = {}
    for backend in ("numpy", "shim-device"):
        made = case.run(backend)[1]
        found[backend] = counts(made)
    assert found == {"numpy": [2, 3], "shim-device": [2, 3]}


@pytest.mark.parametrize("backend", ["numpy", "numba", "shim", "shim-device"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_gradient_anywhere_changes_nothing(shim: Backend, backend: str, bad: float) -> None:
    """Parameters, states and step counts; the next good step goes on as if the bad one had not been."""
    case = Case("adamw", richest("adamw"), "float32", MIXED, odd=0, options={"skip_nonfinite": True})
    arenas = {role: arena.copy() for role, arena in case.start.items()}
    made = case.optimizer(arenas, backend)
    grads = arenas["g"].arrays
    made.step([grads])
    before = {role: arena.memory.copy() for role, arena in arenas.items()}
    for tensor, element in ((1, 0), (2, 32), (5, 4096), (7, 9999)):
        kept = grads[tensor][element]
        grads[tensor][element] = bad
        made.step([grads])
        grads[tensor][element] = kept
        assert all((arena.memory == before[role]).all() for role, arena in arenas.items())
    assert made.skipped == 4
    made.step([grads])
    assert made.skipped == 4
    assert counts(made) == [2] * len(MIXED)
    assert_same(case.run("numpy")[0], arenas)


@pytest.mark.parametrize("backend", ["numpy", "numba", "shim", "shim-device"])
def test_gradients_whose_squares_overflow_are_finite(shim: Backend, backend: str) -> None:
    """The check for bad gradients neither skips the step nor spoils it, though their norm is infinite in float32."""
    plain, checked = (np.ones(9, np.float32) for _ in range(2))
    grad = np.full(9, 1e25, np.float32)
    for params, more in ((plain, {}), (checked, {"skip_nonfinite": True})):
        opt = gpuopt.GD(params, lr=1e-25, maximize=True, backend=backend, **more)
        opt.step(grad)
        assert opt.skipped == 0
    assert same(plain, checked) and np.allclose(plain, 2)
