"""Small real problems with gradients by hand that the tests of `gpuopt.training` share, each the same in every run.

Each maker returns a Problem. Knows no search.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from gpuopt.demos import digits, regression, training

Array = np.ndarray[Any, Any]
BATCHES = 400
STEPS = 100


@dataclass(frozen=True)
class Problem:
    """loss(params, step) -> (loss, gradients); whole(params) -> the loss of all; of(params, rows): as loss, of these."""

    params: Any
    loss: Callable[[Any, int], Any]
    whole: Callable[[Any], float]
    of: Callable[[Any, Any], Any] | None = None
    examples: int = 0
    steps: int = STEPS


def batched(params: Any, of: Callable[[Any, Any], Any], examples: int, size: int) -> Problem:
    """Batches by the number of the step, the same for the same number."""
    rows = [np.random.default_rng(1000 + k).integers(0, examples, size) for k in range(BATCHES)]
    return Problem(
        params,
        lambda p, step: of(p, rows[step % BATCHES]),
        lambda p: float(of(p, slice(None))[0]),
        of,
        examples,
    )


@cache
def images() -> tuple[Array, Array, Array, Array]:
    """Of the digits, in float32: training images, test images, labels of both."""
    x, test, y, y_test = digits.load()
    return x.astype(np.float32), test.astype(np.float32), y, y_test


def digits_mlp() -> Problem:
    """The demo's network of 64, 256 and 10 units, float32."""
    x, _, y, _ = images()
    params = digits.initial_weights(np, np.dtype("float32"), np.random.default_rng(0))
    return batched(params, lambda p, rows: digits.loss_and_gradients(p, x[rows], y[rows], np), len(y), 64)


def diabetes() -> Problem:
    """Linear regression, float64."""
    x, y = regression.load()

    def of(p: Any, rows: Any) -> tuple[float, Any]:
        error = x[rows] @ p["w"] + p["b"] - y[rows]
        grads = {"w": x[rows].T @ error / len(error), "b": error.mean(keepdims=True)}
        return 0.5 * float(np.mean(error**2)), grads

    return batched({"w": np.zeros(10), "b": np.zeros(1)}, of, len(y), 32)


def breast_cancer() -> Problem:
    """Logistic regression with a small L2 penalty, float64; a list of arrays."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x, sign = (x - x.mean(0)) / x.std(0), 2.0 * y - 1

    def of(p: Any, rows: Any) -> tuple[float, Any]:
        w, b = p
        margin = sign[rows] * (x[rows] @ w + b)
        slope = -sign[rows] / (1 + np.exp(margin))
        grads = [x[rows].T @ slope / len(slope) + 1e-3 * w, slope.mean(keepdims=True)]
        return float(np.logaddexp(0, -margin).mean()), grads

    return batched([np.zeros(30), np.zeros(1)], of, len(y), 32)


def transformer() -> Problem:
    """The demo's small transformer on text, float32, gradients cut to a length of 1."""
    known = training.text()
    start = training.initial(int(known.max()) + 1, np.random.default_rng(0))
    params = {name: value.astype(np.float32) for name, value in start.items()}

    def of(p: Any, rows: Any) -> tuple[float, Any]:
        at = np.asarray(rows)[:, None] + np.arange(training.CONTEXT)
        loss, grads = training.loss_and_gradients(p, known[at], known[at + 1])
        cut = training.cut([grads[name] for name in p])
        return loss, {name: g.astype(np.float32) for name, g in zip(p, cut, strict=True)}

    made = batched(params, of, len(known) - training.CONTEXT - 1, training.BATCH)
    every = np.arange(0, len(known) - training.CONTEXT - 1, 4)
    return Problem(made.params, made.loss, lambda p: of(p, every)[0], of, made.examples)


def valley() -> Problem:
    """Rosenbrock's valley from (-1.2, 1), one array, without noise; four times the steps."""
    start = np.array(training.VALLEY_START)
    return Problem(start, lambda p, step: training.rosenbrock(p), lambda p: training.rosenbrock(p)[0], steps=4 * STEPS)


FIVE: dict[str, tuple[Callable[[], Problem], str, dict[str, Any]]] = {
    "digits": (digits_mlp, "adamw", {}),
    "diabetes": (diabetes, "sgd", {"momentum": 0.9}),
    "breast cancer": (breast_cancer, "lion", {}),
    "transformer": (transformer, "adam", {}),
    "valley": (valley, "adamw", {}),
}
