"""Five textbook loops in plain NumPy, and the same through the public API, equal to 1e-12 in float64 after 1,000 iterations.

Each `*_listing` is the loop as textbooks print it; it must not import anything of gpuopt.
"""

from __future__ import annotations

import numpy as np
import pytest

import gpuopt
from samples import HOST_BACKENDS, Array, difference

X = np.array([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 5.0]])
Y = np.array([2.0, 3.0, 4.0, 5.0])
LR, ITERATIONS = 0.01, 1000
TOLERANCE = 1e-12
BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)


def gradient(theta: Array, rows: Array | None = None) -> Array:
    """X^T (X theta - y) / m over all rows or the given ones."""
    x, y = (X, Y) if rows is None else (X[rows], Y[rows])
    return np.asarray(x.T @ (x @ theta - y) / len(y))


def batches(seed: int) -> list[Array]:
    """Two batches of two rows an iteration, from a new permutation each time, as the SGD listing draws them."""
    np.random.seed(seed)
    permutations = [np.random.permutation(len(Y)) for _ in range(ITERATIONS)]
    return [rows for order in permutations for rows in (order[:2], order[2:])]


# ---------------------------------------------------------------------------------------------------- the listings


def gd_listing() -> Array:
    """Gradient descent: theta <- theta - a g."""
    theta = np.zeros(2)
    for _ in range(ITERATIONS):
        theta = theta - LR * (X.T @ (X @ theta - Y) / len(Y))
    return theta


def sgd_listing(seed: int) -> Array:
    """Stochastic gradient descent: the same step on each batch of a random permutation of the rows."""
    np.random.seed(seed)
    theta = np.zeros(2)
    for _ in range(ITERATIONS):
        order = np.random.permutation(len(Y))
        for begin in (0, 2):
            x, y = X[order[begin : begin + 2]], Y[order[begin : begin + 2]]
            theta = theta - LR * (x.T @ (x @ theta - y) / len(y))
    return theta


def dgd_listing() -> Array:
    """Accumulated gradient with decaying rate: v <- v + g;  theta <- theta - a v;  a <- 0.9 a."""
    theta, v, a = np.zeros(2), np.zeros(2), LR
    for _ in range(ITERATIONS):
        v = v + X.T @ (X @ theta - Y) / len(Y)
        theta = theta - a * v
        a = a * 0.9
    return theta


def adagrad_listing() -> Array:
    """Adagrad with a decaying rate: s <- s + g^2;  theta <- theta - a g / (sqrt(s) + 1e-6);  a <- 0.9 a."""
    theta, s, a = np.zeros(2), np.zeros(2), LR
    for _ in range(ITERATIONS):
        g = X.T @ (X @ theta - Y) / len(Y)
        s = s + g**2
        theta = theta - a / (np.sqrt(s) + 1e-6) * g
        a = a * 0.9
    return theta


def mislabelled_adam_listing() -> Array:
    """The listing often headed "Adam", which is Adagrad: it sums g^2 without averaging and has no first moment and no bias
    correction: s <- s + g^2;  theta <- theta - a g / (sqrt(s) + 1e-6);  a <- 0.9 a. Real Adam is Kingma and Ba's (2015).
    """
    theta = np.zeros(2)
    total, a = 0.0, LR
    for _ in range(ITERATIONS):
        g = X.T @ (X @ theta - Y) / len(Y)
        total = total + g * g
        theta -= a * g / (np.sqrt(total) + 1e-6)
        a *= 0.9
    return theta


# ------------------------------------------------------------------------------------------------- the public API


def run(optimizer: gpuopt.Optimizer, theta: Array, rows: list[Array] | None = None) -> Array:
    """`ITERATIONS` steps on the whole data, or one on each batch."""
    for chosen in rows or [None] * ITERATIONS:
        optimizer.step(gradient(theta, chosen))
    return theta


@BACKENDS
def test_gd(backend: str) -> None:
    theta = np.zeros(2)
    run(gpuopt.GD(theta, lr=LR, backend=backend), theta)
    assert difference(theta, gd_listing()) < TOLERANCE


@BACKENDS
def test_sgd(backend: str) -> None:
    theta = np.zeros(2)
    run(gpuopt.SGD(theta, lr=LR, backend=backend), theta, batches(seed=7))
    assert difference(theta, sgd_listing(seed=7)) < TOLERANCE


@BACKENDS
def test_dgd(backend: str) -> None:
    theta = np.zeros(2)
    run(gpuopt.DGD(theta, lr=LR, lr_decay=0.9, backend=backend), theta)
    assert difference(theta, dgd_listing()) < TOLERANCE


@BACKENDS
def test_adagrad(backend: str) -> None:
    """The rate that is multiplied by 0.9 every iteration is an `lr` that depends on the number of steps taken."""
    theta = np.zeros(2)
    run(gpuopt.Adagrad(theta, lr=lambda taken: LR * 0.9**taken, eps=1e-6, backend=backend), theta)
    assert difference(theta, adagrad_listing()) < TOLERANCE


@BACKENDS
def test_the_listing_mislabelled_adam_is_adagrad(backend: str) -> None:
    """theta -= a g / (sqrt(sum g^2) + 1e-6), a *= 0.9 is often printed under the name "Adam". It sums g^2 without averaging
    and is therefore Adagrad, and `gpuopt.Adagrad` reproduces it. Real Adam is Kingma and Ba's, and differs.
    """
    expected = mislabelled_adam_listing()
    results = {}
    for optimizer in (gpuopt.Adagrad, gpuopt.Adam):
        theta = np.zeros(2)
        run(optimizer(theta, lr=lambda taken: LR * 0.9**taken, eps=1e-6, backend=backend), theta)
        results[optimizer.__name__] = difference(theta, expected)
    assert results["Adagrad"] < TOLERANCE
    assert results["Adam"] > 1e-3, "Adam itself takes another path"


def test_the_listings_go_somewhere() -> None:
    """So that no two sides agree on standing still: each listing lowers the loss, whose minimum is at theta = (0, 1)."""
    start = np.sum(Y**2)
    for listing in (gd_listing, lambda: sgd_listing(7), dgd_listing, adagrad_listing, mislabelled_adam_listing):
        assert np.sum((X @ listing() - Y) ** 2) < start
