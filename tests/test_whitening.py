"""Kron and its factors: what they whiten and when they learn, triangular systems, checkpoints; test_oracle compares its steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import InputError, whitening
from gpuopt.draws import Draw
from matrix_steps import Steps

pytestmark = pytest.mark.once
STEPS = Steps((6, 8), (5,), (4, 2, 3, 3), (3, 5, 5), (9, 1), (1, 7))
OPTIONS: dict[str, Any] = {"lr": 0.01, "max_prob": 0.6, "max_size_triangular": 8}


def test_triangular_systems_are_solved_and_bounds_are_near_the_largest_eigenvalue() -> None:
    rng = np.random.default_rng(0)
    lower = np.tril(rng.standard_normal((2, 75, 75)) / 10) + 2 * np.eye(75)
    x = rng.standard_normal((2, 75, 9))
    assert np.allclose(lower @ whitening.solved(lower, x), x, atol=1e-12)
    symmetric = rng.standard_normal((3, 20, 30))
    symmetric = symmetric @ symmetric.swapaxes(1, 2)
    found, exact = whitening.spectral(symmetric), np.linalg.eigvalsh(symmetric)[:, -1]
    assert (found <= exact * (1 + 1e-12)).all() and (found > exact / 2).all()


def test_factors_whiten_what_gradients_have_in_common() -> None:
    rng = np.random.default_rng(0)
    tall, wide = np.diag(np.linspace(0.2, 3, 6)) + 0.1 * rng.standard_normal((6, 6)), np.diag(np.linspace(0.5, 2, 8))
    left, right = np.zeros((1, 6, 6)), np.zeros((1, 8, 8))
    for count in range(1, 1501):
        g = tall @ rng.standard_normal((1, 6, 8)) @ wide
        whitening.whiten(g, left, right, count, 1.0, 0.1 if count < 1000 else 0.01, 1.0, Draw(0, 0))
    assert np.array_equal(left, np.triu(left)) and np.array_equal(right, np.triu(right))
    whitened = left[0].T @ left[0] @ tall
    assert np.linalg.cond(tall @ tall.T) > 100 and np.linalg.cond(whitened @ whitened.T) < 2
    before = left.copy(), right.copy()
    whitening.level(left, right)
    assert abs(left).max() == pytest.approx(abs(right).max())
    assert np.allclose(np.kron(left[0], right[0]), np.kron(before[0][0], before[1][0]))


def test_factors_learn_with_their_chance_and_long_sides_have_a_diagonal() -> None:
    opt = gpuopt.Kron(
        [np.ones((4, 6))], max_size_triangular=4, max_prob=0.5, flat_start=40, prob_decay=10.0, min_prob=0.0
    )
    states, learned = [], []
    for seed in range(60):
        opt.step([np.random.default_rng(seed).standard_normal((4, 6))])
        states.append(opt.state_dict()["state"][0])
        learned.append(seed > 0 and not np.array_equal(states[-1]["factor_left"], states[-2]["factor_left"]))
    assert states[0]["factor_left"].shape == (4, 4) and states[0]["factor_right"].shape == (1, 6)
    assert 10 < sum(learned[:40]) < 30 and not any(learned[41:])
    assert learned == [
        seed > 0 and Draw(0, 0).uniforms(seed + 1, 1)[0] < (0.5 if seed < 41 else 0) for seed in range(60)
    ]


def test_a_checkpoint_goes_on_bit_for_bit_and_backends_agree() -> None:
    options = OPTIONS | {"max_grad_norm": 2.0, "seed": 4}
    STEPS.check_checkpoint(gpuopt.Kron, options, np.float32, 3, 6)


def test_zeros_and_what_is_not_finite_spoil_no_other_matrix() -> None:
    mine = STEPS.arrays(0)
    opt = gpuopt.Kron(mine, backend="numpy", lr=0.01)
    wrong = STEPS.arrays(1)
    wrong[0][...] = 0
    wrong[3][1, 2, 2] = np.inf
    before = mine[0].copy()
    opt.step(wrong)
    assert np.array_equal(mine[0], before)
    late = gpuopt.Kron([{"params": [np.ones((3, 4))], "matrix": False}])
    for group_says in (False, True):
        late.param_groups[0]["matrix"] = group_says
        late.step([[np.random.default_rng(0).standard_normal((3, 4))]])
    assert np.isfinite(late.param_groups[0]["params"][0]).all()
    assert late.state_dict()["state"][0]["factor_left"].diagonal().all()
    STEPS.stepped(opt, (2, 3))
    assert np.isnan(mine[3][1]).any() and np.isfinite(mine[3][[0, 2]]).all()
    assert all(np.isfinite(a).all() for k, a in enumerate(mine) if k != 3)


def test_what_nobody_could_mean_is_refused() -> None:
    with pytest.raises(InputError, match=r"max_prob = 2\.0: expected a number in \[0, 1\]"):
        gpuopt.Kron(np.ones((4, 4)), max_prob=2.0)
    with pytest.raises(InputError, match="unknown option 'split_heads' of Kron"):
        gpuopt.Kron(np.ones((4, 4)), split_heads=2)
