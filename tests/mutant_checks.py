"""A few checks, each under a second, that an engine broken on purpose must not survive. `test_mutants.py` runs them by name
in a process of its own, on a copy of the package: `python mutant_checks.py adam tiles`.

Expected values come from formulas written here; uses nothing of the suite and only the public API.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import gpuopt

RNG = np.random.default_rng(0)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def adam() -> None:
    """Three steps of Kingma and Ba's Adam."""
    p, m, v = np.ones(5), np.zeros(5), np.zeros(5)
    q = p.copy()
    optimizer = gpuopt.Adam(q, lr=0.1, betas=(0.8, 0.95), eps=1e-3, backend="numpy")
    for t in range(1, 4):
        g = RNG.standard_normal(5)
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        p = p - 0.1 * m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3)
        optimizer.step(g)
    close(q, p)


def rates() -> None:
    """What depends on the step count: Adagrad's rate, DGD's, SGD's first gradient, a schedule."""
    p, q, r, s = np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2)
    one = np.ones(2)
    optimizers = [
        gpuopt.Adagrad(p, lr=1.0, lr_decay=1.0, eps=0.0, backend="numpy"),
        gpuopt.DGD(q, lr=1.0, lr_decay=0.5, backend="numpy"),
        gpuopt.SGD(r, lr=1.0, momentum=0.5, dampening=0.75, backend="numpy"),
        gpuopt.GD(s, lr=lambda taken: 10.0**-taken, backend="numpy"),
    ]
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.step(one)
    close(p, -1 - 1 / 2 / np.sqrt(2.0))
    close(q, -1 - 0.5 * 2)
    close(r, -1 - 0.75)
    close(s, -1.1)


def counts() -> None:
    """A tensor that missed a gradient has a step count of its own."""
    p, q = np.zeros(1), np.zeros(1)
    optimizer = gpuopt.GD([p, q], lr=lambda taken: 10.0**-taken, backend="numpy")
    for grads in ([np.ones(1), np.ones(1)], [np.ones(1), None], [np.ones(1), np.ones(1)]):
        optimizer.step(grads)
    close([p[0], q[0]], [-1.11, -1.1])


def options() -> None:
    """l1, clipping by value and by norm, maximize; twice on the second group."""
    for extra, expected in (
        ({"l1": 0.5}, 3 - 0.5 * 2 - 0.5 * 0.5),
        ({"clip_value": 0.25}, 3 - 0.5 * 0.25),
        ({"maximize": True}, 3 + 0.5 * 2),
        ({"max_grad_norm": 2.0}, 3 - 0.5 * 2 * 2 / (4 + 1e-6)),
        ({"max_grad_norm": 8.0}, 3 - 0.5 * 2),
        ({"grad_scale": 4.0}, 3 - 0.5 * 0.5),
    ):
        p = np.full(4, 3.0)
        gpuopt.GD(p, lr=0.5, backend="numpy", **extra).step(np.full(4, 2.0))
        close(p, expected)


def decays() -> None:
    """Every mode of weight decay, where the update moves towards zero and away from it, at a quarter of the largest rate."""
    for mode, towards, away in (
        ("coupled", 3 - 0.5 * (2 + 0.25 * 3), 3 - 0.5 * (-2 + 0.25 * 3)),
        ("decoupled", 3 * (1 - 0.5 * 0.25) - 1, 3 * (1 - 0.5 * 0.25) + 1),
        ("lr_ratio", 3 * (1 - 0.5 * 0.25 / 2.0) - 1, 3 * (1 - 0.5 * 0.25 / 2.0) + 1),
        ("corrected", 3 * (1 - 0.25 * 0.25 / 2.0) - 1, 3 * (1 - 0.25 * 0.25 / 2.0) + 1),
        ("proximal", (3 - 1) / (1 + 0.5 * 0.25), (3 + 1) / (1 + 0.5 * 0.25)),
        ("cautious", 3 - 1 - 0.5 * 0.25 * 3, 3 + 1),
    ):
        p = np.full(2, 3.0)
        options = {"weight_decay": 0.25, "weight_decay_mode": mode, "lr_max": 2.0, "backend": "numpy"}
        gpuopt.GD(p, lr=0.5, **options).step(np.array([2.0, -2.0]))
        close(p, [towards, away])


def skipping() -> None:
    """A step with a NaN has not happened."""
    p = np.ones(3)
    optimizer = gpuopt.Adam(p, backend="numpy", skip_nonfinite=True)
    optimizer.step(np.array([1.0, np.nan, 1.0]))
    assert p.tolist() == [1, 1, 1]
    optimizer.step(np.ones(3))
    assert optimizer.state_dict()["state"][0]["step"] == 1


def refusals() -> None:
    """Memory that two tensors share is refused before anything is written."""
    memory = np.ones(10)
    optimizer = gpuopt.GD([memory[:5], memory[5:]], lr=0.1, backend="numpy")
    for attempt in (
        lambda: gpuopt.GD([memory[:6], memory[5:]], lr=0.1, backend="numpy"),
        lambda: optimizer.step([np.ones(5), memory[:5]]),
        lambda: optimizer.step([np.ones(5), np.ones(4)]),
    ):
        try:
            attempt()
        except gpuopt.InputError:
            continue
        raise AssertionError("was accepted")
    assert memory.tolist() == [1] * 10


def layouts() -> None:
    """A gradient in another memory order."""
    p, g = np.zeros((2, 3)), np.arange(6.0).reshape(2, 3)
    gpuopt.GD(p, lr=1.0, backend="numpy").step(np.asfortranarray(g))
    close(p, -g)


def tiles() -> None:
    """Every element of several tiles, once, at addresses that need a head; new gradients each step."""
    buffers = [np.zeros(40_008, np.float32) for _ in range(2)]
    params = [b[o : o + n] for b, o, n in zip(buffers, (1, 5), (2 * 16384 + 9, 16384 + 7), strict=True)]
    optimizer = gpuopt.GD(params, lr=1.0, backend="numba")
    keep = []
    for step in range(2):
        grads = [np.full(len(p) + 4, step + 1, np.float32)[o : o + len(p)] for p, o in zip(params, (1, 1), strict=True)]
        keep.append(grads)
        optimizer.step(grads)
    for buffer, p in zip(buffers, params, strict=True):
        assert (p == -3).all() and (buffer != 0).sum() == len(p)


def stalling() -> None:
    """A second moment in 16 bits decays, though 0.001 of it is less than half of what they resolve."""
    for backend in ("numpy", "numba"):
        p = np.zeros(64, np.float32)
        optimizer = gpuopt.Adam(p, state_format="bfloat16", backend=backend)
        for g in (1.0, *(0.0,) * 300):
            optimizer.step(np.full(64, g, np.float32))
        mean = optimizer.state_dict()["state"][0]["exp_avg_sq"].astype(np.float64).mean()
        np.testing.assert_allclose(mean, 0.001 * 0.999**300, rtol=0.01)


def sums() -> None:
    """The norm counts every element once, beyond a chunk and in its tail."""
    for size in (8192 + 513, 1):
        p = np.zeros(size)
        gpuopt.GD(p, lr=1.0, max_grad_norm=1.0, backend="numba").step(np.ones(size))
        close(p, -1 / (np.sqrt(size) + 1e-6))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        globals()[name]()
