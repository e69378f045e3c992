"""`state_device="host"`: states in host memory travel through two buffers, portion by portion, and no bit changes.

On a CPU by plain copies, in the order that a GPU's streams have; tests marked `gpu` are of the streams.
"""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gpuopt
from gpuopt import arrays, backends, driver
from gpuopt.backends import numpy as reference
from gpuopt.backends.host_ferry import HostFerry
from gpuopt.errors import GpuoptError, InputError
from gpuopt.launch import ferry
from graphs import BACKENDS, captured, device_array, new_stream, on

HALF = ml_dtypes.bfloat16
SHAPES = [(64, 80), (11,), (0,), (200, 90), (3, 5, 7), (9, 8, 70), (1,)]  # (200, 90): more than a portion
FORMATS = {"param_format": "split8", "dtype": HALF}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("adamw", {}),
    "dtypes": ("adamw", {"dtypes": [np.float32, HALF, np.float64], "state_format": "bfloat16", "max_grad_norm": 1.0}),
    "int8 split8": ("adamw", {"state_format": "int8", **FORMATS}),
    "int4 split8": ("adamw", {"state_format": "int4", **FORMATS}),
    "sums of tensors": ("lamb", {"lr": 0.01}),
    "rows and columns": ("came", {"lr": 0.01}),
    "sums over all": ("prodigy", {"d_coef": 1e6}),
    "products and sums": ("normuon", {"lr": 0.01}),
}


SMALL = 800  # bytes of a portion where kernels are interpreted


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(ferry, "PORTION", SMALL if request.node.get_closest_marker("gpu") else 40_000)


def drawn(rng: np.random.Generator, dtypes: list[Any]) -> list[Any]:
    return [rng.standard_normal(s).astype(dtypes[k % len(dtypes)]) for k, s in enumerate(SHAPES)]


def made(name: str, backend: str, where: str, **options: Any) -> tuple[Any, list[Any], Callable[[], None]]:
    """An optimizer of two groups, its parameters, and what makes a step."""
    dtypes = options.pop("dtypes", None) or [options.pop("dtype", np.float32)]
    rng = np.random.default_rng(0)
    params = drawn(rng, dtypes)
    groups = [{"params": params[:3]}, {"params": params[3:], "weight_decay": 0.1}]
    opt = gpuopt.create(name, groups, backend=backend, state_device=where, **options)

    def step() -> None:
        grads = drawn(rng, dtypes)
        opt.step([grads[:3], grads[3:]])

    return opt, params, step


def bits(opt: Any, params: list[Any]) -> tuple[list[bytes], dict[Any, Any]]:
    """Of the parameters and of all states."""
    saved = opt.state_dict()["state"]
    states = {
        (i, k): v if k == "step" else arrays.on_host(v).tobytes() for i, of in saved.items() for k, v in of.items()
    }
    return [p.tobytes() for p in params], states


def after(steps: int, name: str, backend: str, where: str, **options: Any) -> Any:
    opt, params, step = made(name, backend, where, **options)
    for _ in range(steps):
        step()
    return bits(opt, params)


@pytest.mark.parametrize("case", CASES)
def test_no_bit_changes(case: str) -> None:
    name, options = CASES[case]
    expected = after(3, name, "numpy", "device", **options)
    for backend in ("numpy", "numba"):
        assert after(3, name, backend, "host", **options) == expected, backend


# ---------------------------------------------------------------------------------------------------- the order


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is done from now on: ("in", portion), ("run", launch), ("out", portion, whether states were changed)."""
    log: list[tuple[Any, ...]] = []
    bring, take, update = HostFerry.bring, HostFerry.take, reference.Backend.update

    def number(self: Any, portion: Any) -> int:
        return next(k for k, p in enumerate(self.portions) if p is portion)

    def brought(self: Any, portion: Any) -> None:
        log.append(("in", number(self, portion)))
        bring(self, portion)

    def taken(self: Any, portion: Any, changed: bool, stream: Any) -> None:
        log.append(("out", number(self, portion), changed))
        take(self, portion, changed, stream)

    def updated(self: Any, launch: Any, multiplier: float) -> None:
        log.append(("run", launch.portion))
        update(self, launch, multiplier)

    monkeypatch.setattr(HostFerry, "bring", brought)
    monkeypatch.setattr(HostFerry, "take", taken)
    monkeypatch.setattr(reference.Backend, "update", updated)
    return log


def test_the_next_portion_is_brought_while_one_is_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    log = watched(monkeypatch)
    opt, _, step = made("adamw", "numpy", "host")
    step()
    travels = opt._engine._launches[0][1][0].private["ferry"]
    assert [p.launches for p in travels.portions] == [[0], [1], [2], [3], [4], [5]] and opt.launches == 6
    assert log == [
        *[("in", 0), ("in", 1), ("run", 0), ("out", 0, True), ("in", 2), ("run", 1), ("out", 1, True), ("in", 3)],
        *[
            ("run", 2),
            ("out", 2, True),
            ("in", 4),
            ("run", 3),
            ("out", 3, True),
            ("in", 5),
            ("run", 4),
            ("out", 4, True),
        ],
        *[("run", 5), ("out", 5, True)],
    ]
    assert [p.buffer for p in travels.portions] == [0, 1, 0, 1, 0, 1]
    sizes = [sum(move.nbytes for move in p.moves) for p in travels.portions]
    assert sizes == [8 * n for n in (5120, 11, 18000, 105, 5040, 1)]  # whole tensors; (200, 90) alone
    for portion in travels.portions:
        ends = [(m.offset, m.offset + m.nbytes) for m in portion.moves]
        assert all(a[1] <= b[0] for a, b in pairwise(ends)), "states overlap in a buffer"


def test_sums_over_all_tensors_bring_all_portions_once_more_and_take_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    log = watched(monkeypatch)
    _, _, step = made("prodigy", "numpy", "host")
    step()
    count = 1 + max(entry[1] for entry in log)
    out = [entry[1:] for entry in log if entry[0] == "out"]
    assert out[-count:] == [(k, True) for k in range(count)], "taken back at the end"
    assert out[:-count] and not any(changed for _, changed in out[:-count]), "and not before"
    assert [k for what, k, *_ in log if what == "in"] == [*range(count)] * (len(out) // count)


def test_nothing_travels_where_states_are_beside_their_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    log = watched(monkeypatch)
    for where, name in (("device", "adamw"), ("host", "gd")):
        opt, _, step = made(name, "numpy", where, **({} if name == "adamw" else {"lr": 0.1}))
        step()
        assert opt.launches == 1 and {what for what, *_ in log} == {"run"} and not opt.nbytes_on_host


# ---------------------------------------------------------------------------------------------------- between steps


def test_states_are_saved_loaded_copied_and_counted() -> None:
    """A checkpoint goes from one memory into the other, in the middle of training."""
    expected = after(4, "adamw", "numpy", "device")
    opt, params, step = made("adamw", "numpy", "host")
    step()
    step()
    twins = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    saved = pickle.loads(pickle.dumps(opt.state_dict()))
    assert all(twin.settings.state_device == "host" and bits(twin, params) == bits(opt, params) for twin in twins)
    assert opt.nbytes == opt.nbytes_on_host == 8 * sum(p.size for p in params)
    for where in ("device", "host"):
        opt.load_state_dict(saved)
        other = gpuopt.AdamW([{"params": params[:3]}, {"params": params[3:]}], backend="numpy", state_device=where)
        other.load_state_dict(saved)
        assert bits(other, params) == bits(opt, params)
    step()
    step()
    assert bits(opt, params) == expected


def test_groups_come_later_and_skipped_steps_change_nothing() -> None:
    results = []
    for where in ("device", "host"):
        opt, params, step = made("adamw", "numpy", where, skip_nonfinite=True)
        more = [np.ones((64, 80), np.float32), np.ones(5, np.float32)]
        step()
        opt.add_param_group({"params": more})
        zeros = [np.zeros_like(p) for p in params]
        opt.step([zeros[:3], zeros[3:], [np.full_like(m, 0.5) for m in more]])
        before = bits(opt, [*params, *more])
        opt.step([zeros[:3], zeros[3:], [np.full_like(m, np.inf) for m in more]])
        assert bits(opt, [*params, *more]) == before and opt.skipped == 1
        results.append(before)
    assert results[0] == results[1]


def test_what_cannot_be_is_refused_in_words() -> None:
    weights = np.ones(3, np.float32)
    for wrong in ("cpu", None, True, ["host"]):
        with pytest.raises(InputError, match=r"state_device = .*: expected one of device, host"):
            gpuopt.AdamW(weights, state_device=wrong)
    with pytest.raises(InputError, match="state_device = 'host' cannot go with capturable=True"):
        gpuopt.AdamW(weights, state_device="host", capturable=True)


# ---------------------------------------------------------------------------------------------------- torch


def test_torch_shows_the_states_and_goes_on_from_checkpoints() -> None:
    import torch

    from gpuopt.torch import AdamW, release_gradients

    def trained(where: str, released: bool = False) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(70, 80), torch.nn.Linear(80, 90), torch.nn.Linear(90, 1))
        opt = AdamW(model.parameters(), lr=0.01, state_device=where)
        if released:
            release_gradients(model, opt)
        for turn in range(4):
            opt.zero_grad()
            model(torch.randn(8, 70)).square().mean().backward()
            opt.step()
            if turn == 1:
                opt.load_state_dict(copy.deepcopy(opt.state_dict()))
        return opt, list(model.parameters())

    expected, params = trained("device")
    for released in (False, True):
        opt, mine = trained("host", released)
        assert opt.nbytes == opt.nbytes_on_host == expected.nbytes and expected.nbytes_on_host == 0
        for p, q in zip(params, mine, strict=True):
            assert torch.equal(p, q)
            for key, value in expected.state[p].items():
                assert torch.equal(value, opt.state[q][key]) and opt.state[q][key].device.type == "cpu", key
    with pytest.raises(InputError, match="differentiable=True cannot go with state_device = 'host'"):
        AdamW(mine, state_device="host", differentiable=True)
    with pytest.raises(InputError, match="cannot go with capturable"):
        AdamW(mine, state_device="host", capturable=True)


def test_torch_waits_for_states_when_they_are_looked_at_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from gpuopt.optim.engine import Engine
    from gpuopt.torch import AdamW

    waits: list[int] = []
    p = torch.nn.Parameter(torch.ones(3))
    opt = AdamW([p], state_device="host")
    monkeypatch.setattr(Engine, "wait", lambda self: waits.append(len(waits)))
    looks = (lambda: opt.state[p], lambda: opt.state.get(p), opt.state_dict, lambda: [*opt.state.values()])
    for look in looks:  # at the first step and later ones
        p.grad = torch.ones(3)
        opt.step()
        assert not waits
        look()
        look()
        assert len(waits) == 1
        waits.clear()


# ---------------------------------------------------------------------------------------------------- GPUs

FEW = [(40,), (3, 30), (0,), (400,), (25,), (60,)]
OF_GPUS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("adamw", {}),
    "norm": ("adamw", {"max_grad_norm": 1.0, "skip_nonfinite": True, "state_format": "bfloat16"}),
    "sums over all": ("prodigy", {"d_coef": 1e6}),
}
ON_GPUS = [("cupy", case) for case in OF_GPUS] + [("numba-cuda", "adamw"), ("numba-cuda", "sums over all")]


def on_gpu(arrays: list[Any]) -> list[Any]:
    import cupy

    found = [cupy.asarray(a) for a in arrays]
    cupy.cuda.Device().synchronize()
    return found


def some(seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in FEW]


def two_runs(case: str, backend: str, steps: int = 4) -> None:
    """NumPy, and a GPU: two steps on the default stream, two on one that was made later, behind which nothing waits."""
    import cupy

    name, options = OF_GPUS[case]
    here, there = some(0), on_gpu(some(0))
    grads = [some(k) for k in range(1, steps + 1)]
    opt = gpuopt.create(name, here, backend="numpy", **options)
    far = gpuopt.create(name, there, backend=backend, state_device="host", **options)
    given = [on_gpu(g) for g in grads]
    for each in given[:2]:
        far.step(each)
    stream = new_stream()
    with on(stream):
        for each in given[2:]:
            far.step(each)
        states = bits(far, [])[1]  # before anything waits for the stream
        found = [cupy.asnumpy(p, stream=stream).tobytes() for p in there]
    for each in grads:
        opt.step(each)
    assert (found, states) == bits(opt, here)
    assert far.launches > 2 and 0 < far.nbytes_on_host <= far.nbytes == opt.nbytes


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "case"), ON_GPUS)
def test_streams_bring_and_take(backend: str, case: str) -> None:
    two_runs(case, backend)


def states_change_buffers(backend: str = "cupy") -> None:
    """Another plan, in which a state travels in another buffer, while what made the last one is still there."""
    here, there = some(0), on_gpu(some(0))
    opt = gpuopt.AdamW(here, backend="numpy")
    far = gpuopt.AdamW(there, backend=backend, state_device="host")
    held, given = [], {seed: on_gpu(some(seed)) for seed in range(1, 6)}
    for seed, absent in ((1, ()), (2, (0, 1)), (3, ()), (4, (1, 3)), (5, ())):
        opt.step([None if k in absent else g for k, g in enumerate(some(seed))])
        far.step([None if k in absent else g for k, g in enumerate(given[seed])])
        held.append(list(far._engine._launches))
    assert bits(far, [p.get() for p in there]) == bits(opt, here)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_states_change_buffers(backend: str) -> None:
    states_change_buffers(backend)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_states_are_pinned_and_a_capture_is_refused(backend: str) -> None:
    there, grad = [device_array(0)], device_array(1)
    far = gpuopt.AdamW(there, backend=backend, state_device="host", state_format={"m": "bfloat16"})
    far.step([grad])
    states = far._engine.parameters[0].states
    assert all(isinstance(a, np.ndarray) and driver.pinned(a.ctypes.data) for a in states.values())
    assert not driver.pinned(np.ones(3).ctypes.data)
    there_is: Any = backends.get(backend, "cuda:0")
    held = there_is.buffers[far._engine._launches[0][1][0].private["ferry"].key]
    arrays_held = {id(a) for a in held if isinstance(a, np.ndarray)}
    assert arrays_held == set(map(id, states.values())), "states, and no gradient, live as long as their copies"
    far.load_state_dict(far.state_dict())
    far.step([grad])
    assert all(driver.pinned(a.ctypes.data) for a in far._engine.parameters[0].states.values())
    other = gpuopt.AdamW([device_array(2)], backend=backend, state_device="host")
    other.step([grad])
    berths = there_is.harbour().berths
    assert berths[0].memory is not None
    with pytest.raises(GpuoptError, match="states in host memory travel on other streams"):
        captured(new_stream(), partial(other.step, [grad]))
    del far, other
    gc.collect()
    assert all(berth.memory is None for berth in berths), (
        "buffers outlive the last optimizer that has states on the host"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["cupy", "numba"])
def test_other_parameters_and_gradients_between_steps(kind: str) -> None:
    """What is asked between two steps brings states to the parameters, and what it changes back."""
    from numba import cuda

    placed = on_gpu if kind == "cupy" else lambda arrays: [cuda.to_device(a) for a in arrays]
    fetched = (lambda a: a.get()) if kind == "cupy" else lambda a: a.copy_to_host()
    shapes = [(7, 9), (5,)]
    first, second = ([np.full(s, x, np.float32) for s in shapes] for x in (0.5, -0.25))
    results = []
    for place, back, where in ((list, np.copy, "device"), (placed, fetched, "host")):
        params = place([np.ones(s, np.float32) for s in shapes])
        opt: Any = gpuopt.SophiaG(params, lr=0.1, state_device=where)
        opt.update_hessian(place(first))
        opt.step(place(second))
        free: Any = gpuopt.ScheduleFreeAdamW(params, lr=0.1, state_device=where)
        free.step(place(first))
        average = [back(a).tobytes() for a in free.averaged_params()]
        free.eval()
        shown = [back(a).tobytes() for a in params]
        free.train()
        results.append((average, shown, bits(opt, [back(a) for a in params]), bits(free, [])))
    assert results[0] == results[1]
