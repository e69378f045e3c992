"""The edges: memory that runs out, extreme numbers and step counts, copies of an optimizer, threads."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import gpuopt
from cases import Array, Case
from covering import REPRESENTATIVES
from samples import HOST_BACKENDS, SHAPES, Scarce, bits, difference, gradients, parameters, refused

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)

# ---------------------------------------------------------------------------------------------- memory runs out


@BACKENDS
@pytest.mark.parametrize("late", [False, True], ids=["first step", "a new group later"])
def test_every_failing_allocation_leaves_everything_untouched(
    late: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five tensors, Fortran-ordered gradients that are copied, two states each: for every k the k-th allocation fails, and
    a step after that equals one that never failed.
    """
    shapes = [(4, 5), (3,), (6, 2), (0,), (2, 3)]
    grads = [[np.asfortranarray(g) for g in gradients(step, shapes)] for step in range(4)]

    def prepared() -> tuple[Any, list[Array]]:
        params = parameters(shapes)
        optimizer = gpuopt.Adam([{"params": params[:2]}, {"params": params[2:]}][: 1 + (not late)], backend=backend)
        if late:
            optimizer.step([grads[0][:2]])
            optimizer.step([[grads[1][0], grads[1][1]]])
            optimizer.add_param_group({"params": params[2:]})
        return optimizer, params

    def step(optimizer: Any, k: int) -> None:
        optimizer.step([grads[k][:2], grads[k][2:]])

    scarce = Scarce(monkeypatch)
    expected, expected_params = prepared()
    before = scarce.calls
    step(expected, 2)
    allocations = scarce.calls - before
    assert allocations >= 9
    step(expected, 3)
    for k in range(1, allocations + 1):
        optimizer, params = prepared()
        scarce.fails_at = scarce.calls + k
        with refused(optimizer, MemoryError):
            step(optimizer, 2)
        step(optimizer, 2)
        step(optimizer, 3)
        assert bits(params) == bits(expected_params)
        assert bits(optimizer.state_dict()) == bits(expected.state_dict())


@BACKENDS
def test_a_gradient_that_could_not_be_copied_is_not_remembered(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step with (a1, b1); with (a2, b2), where copying b2 fails; then with (a2, b1): a2 must be read, not a1."""
    scarce = Scarce(monkeypatch)
    p, q = np.zeros(4), np.zeros((3, 4))
    a1, b1 = np.full(4, 1.0), np.full((3, 4), 1.0)
    optimizer = gpuopt.GD([p, q], lr=1.0, backend=backend)
    optimizer.step([a1, b1])
    a2, b2 = np.full(4, 10.0), np.asfortranarray(np.full((3, 4), 10.0))
    scarce.fails_at = scarce.calls + 1
    with refused(optimizer, MemoryError):
        optimizer.step([a2, b2])
    optimizer.step([a2, b1])
    assert p.tolist() == [-11.0] * 4
    assert q.tolist() == [[-2.0] * 4] * 3


@BACKENDS
def test_a_step_that_failed_is_not_half_remembered(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switching momentum on fails for want of memory; switched off again, the step must read the gradients it was given."""
    scarce = Scarce(monkeypatch)
    p, first, second = np.zeros(4), np.full(4, 1.0), np.full(4, 10.0)
    optimizer = gpuopt.SGD(p, lr=1.0, backend=backend)
    optimizer.step(first)
    optimizer.param_groups[0]["momentum"] = 0.9
    scarce.fails_at = scarce.calls + 1
    with refused(optimizer, MemoryError):
        optimizer.step(second)
    optimizer.param_groups[0]["momentum"] = 0.0
    optimizer.step(second)
    assert p.tolist() == [-11.0] * 4


# ---------------------------------------------------------------------------------------------- extreme numbers

TINY, HUGE = np.finfo(np.float64).smallest_subnormal, np.finfo(np.float64).max
EXTREMES = [0.0, -0.0, TINY, -TINY, 1e-310, 1e-200, -1e-160, 1e-8, 1.0, -3.0, 1e150, -1e160, HUGE / 4, -HUGE]
ROWS = [
    *(Case("SGD", {"lr": lr, "momentum": 0.9}) for lr in (0.0, 1e-300, 1.0, 1e300)),
    Case("SGD", {"lr": 0.1, "weight_decay": 1e300}),
    *(Case("Adam", {"lr": 0.1, "eps": eps}) for eps in (0.0, 1e-300, 1e-160, 1e300)),
    *(Case("AdamW", {"lr": 0.1, "betas": betas}) for betas in ((0.0, 0.0), (0.0, 0.5), (0.5, 0.0))),
    *(Case("AdamW", {"lr": lr, "weight_decay": wd, "amsgrad": True}) for lr, wd in ((0.0, 1e300), (1e300, 0.0))),
    Case("Adagrad", {"lr": 0.1, "eps": 0.0}),
    Case("Adagrad", {"lr": 0.1, "initial_accumulator_value": 1e300}),
    *(Case("RMSprop", {"lr": 0.1, "alpha": alpha, "eps": 1e-300}) for alpha in (0.0, 0.5, 1.0)),
]


@BACKENDS
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_extreme_numbers_as_in_torch(case: Case, backend: str) -> None:
    """Subnormal, tiny and huge gradients and parameters, each with each: the same elements stay finite, and agree to 1e-12.

    Where torch has an infinity there may be a NaN here (`0 * p`, see test_nonfinite). torch multiplies a gradient by lr before it
    divides by eps, and loses what then is subnormal: up to one such step over eps.
    """
    values, grads = (a.ravel() for a in np.meshgrid(EXTREMES, EXTREMES))
    p = values.copy()
    oracle = case.oracle([p])
    optimizer = getattr(gpuopt, case.optimizer)([p], backend=backend, **case.options)
    for _ in range(3):
        optimizer.step([grads])
        oracle.step([grads])
    q = oracle.params[0]
    assert np.array_equal(np.isfinite(p), np.isfinite(q))
    lost = TINY * max(1.0, 1 / (case.options.get("eps") or 1.0))
    np.testing.assert_allclose(p[np.isfinite(p)], q[np.isfinite(q)], rtol=1e-12, atol=4 * lost)


@BACKENDS
def test_lr_zero_moves_nothing(backend: str) -> None:
    """Decoupled decay and the soft threshold are multiplied by lr, so a step with lr = 0 changes no bit of a parameter. Numba has
    NumPy's bits (test_bits.py): some rules show that lr = 0 gets there.
    """
    for name in gpuopt.optimizers() if backend == "numpy" else REPRESENTATIVES:
        params = parameters(dtype=np.float32)
        options: dict[str, Any] = {"weight_decay": 0.1} if name in ("adamw", "lion") else {}
        options |= (
            {"step_sizes": (0.0, 0.0)} if name == "rprop" else {}
        )  # whose lr is the first step alone, within these
        before = bits(params)
        gpuopt.create(name, params, lr=0.0, l1=0.1, backend=backend, **options).step(gradients(0, dtype=np.float32))
        assert bits(params) == before, name


@BACKENDS
@pytest.mark.parametrize("start", [2**24 - 2, 2**31 - 2, 2**53 - 3])
def test_step_counts_that_a_float_or_an_int32_would_lose(start: int, backend: str) -> None:
    p = np.array([1.0, -2.0])
    asked: list[int] = []

    def schedule(taken: int) -> float:
        asked.append(taken)
        return 1e6

    optimizer = gpuopt.Adagrad(p, lr=schedule, lr_decay=1.0, backend=backend)
    saved = optimizer.state_dict()
    saved["state"] = {0: {"step": start, "sum": np.zeros(2)}}
    optimizer.load_state_dict(saved)
    expected, total = p.copy(), 0.0
    for t in range(start + 1, start + 5):
        optimizer.step(np.ones(2))
        total += 1.0
        expected -= 1e6 / (1 + (t - 1) * 1.0) / (math.sqrt(total) + 1e-10)
    assert list(dict.fromkeys(asked)) == list(range(start, start + 4))
    assert optimizer.state_dict()["state"][0]["step"] == start + 4
    assert difference(p, expected) < 1e-14


@BACKENDS
def test_adam_after_very_many_steps(backend: str) -> None:
    """Both bias corrections have gone to one, not to NaN."""
    p = np.array([1.0])
    optimizer = gpuopt.Adam(p, lr=0.1, eps=0.0, backend=backend)
    saved = optimizer.state_dict()
    saved["state"] = {0: {"step": 2**40, "exp_avg": np.array([2.0]), "exp_avg_sq": np.array([4.0])}}
    optimizer.load_state_dict(saved)
    optimizer.step(np.array([2.0]))
    assert difference(p, np.array([0.9])) < 1e-14


# ---------------------------------------------------------------------------------------------- copies


def trained(backend: str) -> Any:
    groups = [{"params": p} for p in parameters()]
    optimizer = gpuopt.AdamW(groups, lr=0.1, max_grad_norm=5.0, backend=backend, mask=[None] * len(groups))
    for step in range(2):
        optimizer.step(gradients(step))
    return optimizer


def arrays_of(optimizer: Any) -> list[Array]:
    return [p for group in optimizer.param_groups for p in group["params"]]


@BACKENDS
@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_goes_its_own_way(how: Callable[[Any], Any], backend: str) -> None:
    """It has its own parameters, states, counts and hyperparameters, and steps as the original would have."""
    original, expected = trained(backend), trained(backend)
    made = how(original)
    for group in made.param_groups:
        group["lr"] = 0.03
    for group in expected.param_groups:
        group["lr"] = 0.03
    before = bits([arrays_of(original), original.state_dict()])
    for step in range(2, 4):
        made.step(gradients(step))
        expected.step(gradients(step))
    assert bits([arrays_of(original), original.state_dict()]) == before
    assert bits([arrays_of(made), made.state_dict()]) == bits([arrays_of(expected), expected.state_dict()])
    assert type(made) is type(original)


def test_copies_of_a_rule_are_the_rule() -> None:
    from gpuopt.rules.adam import adam

    assert copy.deepcopy(adam) is adam and pickle.loads(pickle.dumps(adam)) is adam


# ---------------------------------------------------------------------------------------------- threads


def work(backend: str, seed: int) -> Any:
    """Enough elements that Numba uses every core for one step."""
    params = [p + seed for p in parameters([(400, 300), (50_000,), (7,)], np.float32)]
    optimizer = gpuopt.Adam(params, lr=0.1, max_grad_norm=1.0, backend=backend)
    for step in range(10):
        optimizer.step(gradients(step + seed, [(400, 300), (50_000,), (7,)], np.float32))
    return bits([params, optimizer.state_dict()])


@BACKENDS
def test_optimizers_in_several_threads(backend: str) -> None:
    expected = [work(backend, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda seed: work(backend, seed), range(4))) == expected


def test_threads_with_numbas_simplest_threading_layer() -> None:
    """It ends the process when two parallel regions meet, so the backend must not let them."""
    script = (
        "import numba; numba.config.THREADING_LAYER = 'workqueue'\n"
        "import threading, numpy as np, gpuopt\n"
        "def work():\n"
        "    p, g = np.zeros(300_000, np.float32), np.ones(300_000, np.float32)\n"
        "    optimizer = gpuopt.SGD(p, lr=1.0, max_grad_norm=1e9, backend='numba')\n"
        "    for _ in range(200): optimizer.step(g)\n"
        "    assert (p == -200).all()\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "print(numba.threading_layer(), 'fine')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "workqueue fine\n", done.stderr[-500:]


@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_shapes_of_the_samples_are_all_stepped(backend: str) -> None:
    """The tests above would pass for tensors nobody touches."""
    params = parameters()
    before = [p.copy() for p in params]
    gpuopt.Adam(params, lr=0.1, backend=backend).step([np.ones(s) for s in SHAPES])
    assert all((p != q).all() for p, q in zip(params, before, strict=True))
