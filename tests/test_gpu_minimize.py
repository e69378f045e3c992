"""`gpuopt.minimize` on CuPy arrays: losses stay on the GPU, and the best point is found there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gpuopt

pytestmark = pytest.mark.gpu
BACKENDS = pytest.mark.parametrize("backend", ["cupy", "numba-cuda"])


class Falling:
    """A function on the GPU whose losses are these, without a sum, and which counts how often they are read."""

    def __init__(self, losses: list[float]) -> None:
        import cupy

        self.losses = cupy.asarray(np.array(losses))
        self.calls = 0

    def __call__(self, x: Any) -> tuple[Any, Any]:
        import cupy

        self.calls += 1
        return self.losses[self.calls - 1], cupy.ones_like(x)


LOSSES = [9.0, 7, 5, 6, 4, 8, 3, 3.5, 5, 6, 7, 8, 9]


@BACKENDS
def test_the_best_point_is_found_without_the_host(backend: str) -> None:
    import cupy

    for check in (1, 4, None):
        fun = Falling(LOSSES)
        x0 = {"a": cupy.zeros(3), "b": [cupy.zeros((2, 2))]}
        found = gpuopt.minimize(
            lambda x: (fun(x["a"])[0], {"a": cupy.ones(3), "b": [cupy.ones((2, 2))]}),  # noqa: B023
            x0, "gd", lr=1.0, maxiter=12, gtol=0, check_every=check, backend=backend,
        )  # fmt: skip
        assert isinstance(found.x["a"], cupy.ndarray) and found.fun == 3.0
        assert found.x["a"].get().tolist() == [-6] * 3 and found.x["b"][0].get().tolist() == [[-6, -6]] * 2
        assert found.losses.tolist() == LOSSES and found.nit == 12 and found.nfev == 13


@BACKENDS
def test_bounds_hold_and_a_bad_loss_ends_it_at_the_next_look(backend: str) -> None:
    import cupy

    fun = Falling([9.0, 7, 5, math.nan, 4, 3, 2, 1, 0])
    found = gpuopt.minimize(
        fun, cupy.full(3, 5.0), "gd", lr=1.0, gtol=0, bounds=(cupy.full(3, 2.5), 4.0), check_every=4, backend=backend
    )
    assert found.status == 3 and "iteration 3" in found.message and found.nit == 4 and len(found.losses) == 5
    assert found.fun == 5.0, "what came behind it is not trusted"
    assert found.x.get().tolist() == [2.5] * 3, "the start was brought to 4, and the steps ended at 2.5"


@BACKENDS
def test_a_callback_sees_every_iteration(backend: str) -> None:
    import cupy

    seen = []

    def callback(intermediate_result: Any) -> None:
        seen.append((intermediate_result.fun, intermediate_result.x.get().tolist()))

    gpuopt.minimize(Falling(LOSSES), cupy.zeros(2), "gd", lr=1.0, maxiter=3, gtol=0, callback=callback, backend=backend)
    assert seen == [(7.0, [-1, -1]), (5.0, [-2, -2]), (6.0, [-3, -3])]
