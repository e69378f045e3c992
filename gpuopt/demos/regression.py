"""Linear regression on scikit-learn's diabetes data with five optimizers: loss curves, steps to tolerance, time.

Called by `gpuopt/demos/__init__.py`. Plain array code; gpuopt is met only in `gpuopt.create` and `opt.step`.
The loss is 1/(2m) |X theta - y|^2 on standardised columns, so its least value is known exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import gpuopt
from gpuopt.demos.arrays import compute_type
from gpuopt.spaces import one_blas_thread, to_host, wait

Array = np.ndarray[Any, Any]

STEPS, QUICK_STEPS = 1000, 100
TOLERANCE = 0.01  # relative to the least loss
BATCH = 32
TIMED_ROUNDS, TIMED_STEPS = 5, 20


class Contestant(NamedTuple):
    """One line of the comparison: what to call it, the optimizer, its options, and the rows each step sees (0: all)."""

    label: str
    optimizer: str
    options: dict[str, float]
    batch: int


# Full-batch rates stay below 2 / L = 0.497, L = 4.02 the greatest eigenvalue of X^T X / m.
CONTESTANTS = (
    Contestant("GD", "gd", {"lr": 0.4}, 0),
    Contestant("minibatch SGD", "sgd", {"lr": 0.02}, BATCH),
    Contestant("DGD", "dgd", {"lr": 0.1, "lr_decay": 0.99}, 0),
    Contestant("Adagrad", "adagrad", {"lr": 0.1}, 0),
    Contestant("Adam", "adam", {"lr": 0.03}, 0),
)


@dataclass(frozen=True)
class Curve:
    """One optimizer's run: `losses` holds steps + 1 values, `microseconds` is the time of one update alone."""

    label: str
    losses: Array
    least: float
    steps_to_tolerance: int | None
    microseconds: float
    backend: str
    shape: str


def load() -> tuple[Array, Array]:
    """The diabetes data, float64 X (442, 10) and y (442,), every column with mean 0 and deviation 1."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def loss(x: Array, y: Array, theta: Array) -> float:
    """1/(2m) |x theta - y|^2, in the dtype of x."""
    return float(0.5 * np.mean((x @ theta - y) ** 2))


def gradient(x: Any, y: Any, theta: Any) -> Any:
    """x^T (x theta - y) / m for NumPy or CuPy arrays, in the dtype of x."""
    return x.T @ (x @ theta.astype(x.dtype) - y) / x.shape[0]


def compare(xp: Any, backend: str | None, dtype: np.dtype[Any], *, quick: bool = False, seed: int = 0) -> list[Curve]:
    """Run every contestant from theta = 0, parameters of `dtype` in the namespace `xp` (numpy or cupy)."""
    from tqdm import tqdm

    steps = QUICK_STEPS if quick else STEPS
    bar = tqdm(total=steps * len(CONTESTANTS), unit="step", desc="regression", leave=False)
    with bar, one_blas_thread():
        return [fit(c, xp, backend, dtype, steps, seed, bar.update) for c in CONTESTANTS]


def fit(
    who: Contestant,
    xp: Any,
    backend: str | None,
    dtype: np.dtype[Any],
    steps: int,
    seed: int,
    progress: Callable[[int], object] = lambda n: None,
) -> Curve:
    """Train theta of shape (10,) for `steps` steps and time the update on its own afterwards."""
    x_host, y_host = load()
    compute = compute_type(dtype)
    x, y = xp.asarray(x_host.astype(compute)), xp.asarray(y_host.astype(compute))
    theta = xp.zeros(x.shape[1], dtype)
    opt = gpuopt.create(who.optimizer, [theta], backend=backend, **who.options)
    rng = np.random.default_rng(seed)
    trace = [theta.copy()]
    for _ in range(steps):
        rows = xp.asarray(rng.choice(len(y), who.batch, replace=False)) if who.batch else slice(None)
        opt.step([gradient(x[rows], y[rows], theta).astype(dtype)])
        trace.append(theta.copy())
        progress(1)
    losses = np.array([loss(x_host, y_host, to_host(t).astype(np.float64)) for t in trace])
    best = loss(x_host, y_host, np.linalg.lstsq(x_host, y_host, rcond=None)[0])
    reached = np.flatnonzero(losses <= (1 + TOLERANCE) * best)
    return Curve(
        label=who.label,
        losses=losses,
        least=best,
        steps_to_tolerance=int(reached[0]) if reached.size else None,
        microseconds=time_step(opt, [xp.zeros_like(theta)], xp),
        backend=opt.backend,
        shape=f"{x.shape[0]} x {x.shape[1]}",
    )


def time_step(opt: Any, grads: list[Any], xp: Any) -> float:
    """Microseconds of one `opt.step(grads)`, already compiled: the least mean of a few rounds, each waiting for the device once."""
    found = []
    for _ in range(TIMED_ROUNDS):
        wait(xp)
        begin = time.perf_counter()
        for _ in range(TIMED_STEPS):
            opt.step(grads)
        wait(xp)
        found.append((time.perf_counter() - begin) / TIMED_STEPS * 1e6)
    return min(found)
