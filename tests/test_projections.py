"""APOLLO and its projections: over checkpoints, seeds, libraries and what it refuses; its steps are compared in test_oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import InputError
from gpuopt.draws import Draw
from gpuopt.formats import philox
from matrix_steps import Steps
from samples import HOST_BACKENDS, bits

pytestmark = pytest.mark.once
STEPS = Steps((6, 8), (5,), (4, 2, 3, 3), (3, 5, 5), (9, 1), (1, 7))
OPTIONS: dict[str, Any] = {"lr": 0.01, "rank": 3, "update_proj_gap": 3}


def test_normal_numbers_are_normal_and_those_of_each_place() -> None:
    found = Draw(7, 2).normals(5, np.empty(100001))
    assert len(found) == 100001 and abs(found.mean()) < 0.01 and abs(found.std() - 1) < 0.01
    assert abs((found**4).mean() - 3) < 0.1 and abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.01
    for seed, tensor, step in ((8, 2, 5), (7, 3, 5), (7, 2, 6)):
        assert abs(np.corrcoef(found, Draw(seed, tensor).normals(step, found))[0, 1]) < 0.01
    assert np.array_equal(Draw(7, 2).normals(5, np.empty((2, 5))).ravel(), found[:10])
    large = Draw((5 << 40) + 3, 2)  # a seed of more than 32 bits
    assert np.array_equal(large.words(5, found, 11), philox.words(large.seed, 2, 5, 254, 0, 11))
    uniforms = Draw(7, 2).uniforms(5, 1000)
    assert min(uniforms) >= 0 and max(uniforms) < 1 and abs(np.mean(uniforms) - 0.5) < 0.03


def test_a_checkpoint_goes_on_bit_for_bit_and_backends_agree() -> None:
    """From between two draws, with the rank that was saved."""
    options = OPTIONS | {"max_grad_norm": 2.0, "seed": 4}
    STEPS.check_checkpoint(gpuopt.APOLLO, options, np.float16, 5, 8, other={"rank": 2})


def test_states_are_small_and_projections_those_of_seed_and_tensor() -> None:
    opts = [gpuopt.APOLLO(STEPS.arrays(0), **OPTIONS, seed=seed, backend="numpy") for seed in (0, 0, 1)]
    drawn = []
    for seeds in ((1,), (2, 3), (4,)):
        drawn.append([STEPS.stepped(opt, seeds).state_dict()["state"] for opt in opts])
    wide, vector, convolution, stack, *_ = drawn[0][0].values()
    shapes = {name: a.shape for name, a in wide.items() if name != "step"}
    assert shapes == {
        "projection": (3, 6), "projected_avg": (3, 8), "projected_avg_sq": (3, 8), "update_length": (1, 1)
    }  # fmt: skip
    assert set(vector) == {"step", "exp_avg", "exp_avg_sq"}
    assert convolution["projection"].shape == (3, 4) and convolution["projected_avg"].shape == (3, 18)
    assert stack["projection"].shape == (3, 3, 5) and stack["projected_avg"].shape == (3, 5, 3)
    kept = [[state["projection"] for state in step[0].values() if "projection" in state] for step in drawn]
    for first, second, third in zip(*kept, strict=True):
        assert np.array_equal(first, second) and not np.array_equal(first, third)
    assert bits(drawn[2][0]) == bits(drawn[2][1]) != bits(drawn[2][2])
    assert not np.array_equal(stack["projection"][0], stack["projection"][1])


def test_a_step_is_no_longer_than_allowed_and_free_behind_one_of_zeros() -> None:
    p = np.zeros((4, 6))
    opt = gpuopt.APOLLO([p], lr=1.0, betas=(0.9, 0.0), rank=4, norm_growth=1.5, backend="numpy")
    lengths = []
    for factor in (1.0, 1.0, 1.0, 0.0, 1.0):
        opt.step([np.random.default_rng(0).standard_normal((4, 6)) * factor])
        lengths.append(float(opt.state_dict()["state"][0]["update_length"].item()))
    assert lengths[1] == pytest.approx(1.5 * lengths[0], rel=1e-6)
    assert lengths[2] == pytest.approx(1.5 * lengths[1], rel=1e-6)
    assert lengths[3] == 0.0 and lengths[4] > 0.1 and np.isfinite(p).all()


@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_what_is_not_finite_spoils_its_own_matrix_alone_or_is_skipped(backend: str) -> None:
    mine, clean = STEPS.arrays(0), STEPS.arrays(0)
    opts = [
        gpuopt.APOLLO(a, backend=backend, skip_nonfinite=skip, **OPTIONS) for a, skip in ((mine, False), (clean, True))
    ]
    for opt in opts:
        wrong = STEPS.arrays(1)
        wrong[3][1, 2, 2] = np.inf
        opt.step(wrong)
        STEPS.stepped(opt, (2, 3))
    assert np.isnan(mine[3][1]).any() and all(np.isfinite(a).all() for k, a in enumerate(mine) if k != 3)
    assert np.isfinite(mine[3][[0, 2]]).all()
    assert all(np.isfinite(a).all() for a in clean) and opts[1].skipped == 1


def test_what_nobody_could_mean_is_refused() -> None:
    with pytest.raises(InputError, match=r"rank = 1\.5: expected a whole number"):
        gpuopt.APOLLO(np.ones((4, 4)), rank=1.5)
    with pytest.raises(InputError, match=r"rank = 0: expected a number in \[1, inf\)"):
        gpuopt.APOLLO(np.ones((4, 4)), rank=0)
    with pytest.raises(InputError, match="unknown option 'split_heads' of APOLLO"):
        gpuopt.APOLLO(np.ones((4, 4)), split_heads=2)
