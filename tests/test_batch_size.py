"""`gpuopt.training.find_batch_size`: the noise scale against what is known exactly, the advice, and what is refused."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import training
from gpuopt.training.batches import noise_scale
from training_problems import digits_mlp

pytestmark = pytest.mark.once

EXAMPLES, AXES = 4000, 8
RNG = np.random.default_rng(0)
CENTRES = RNG.normal(0.5, 2.0, (EXAMPLES, AXES))


def pull(params: Any, rows: Any) -> Any:
    """Half the mean squared distance to points: the gradient of one example is params less its point."""
    away = params - CENTRES[rows]
    return 0.5 * float((away**2).sum(1).mean()), away.mean(0)


def exact() -> float:
    """Trace of the covariance of the examples' gradients over the squared norm of their mean, at 0."""
    return float(CENTRES.var(0).sum() / (CENTRES.mean(0) ** 2).sum())


def test_the_noise_scale_is_the_exact_one() -> None:
    found = training.find_batch_size(np.zeros(AXES), pull, EXAMPLES, repeats=200, sizes=(16, 1024))
    assert found.noise_scale == pytest.approx(exact(), rel=0.15)


def test_the_formula_has_no_bias() -> None:
    """From expected squared norms, |G|^2 + S / B, it gives S / |G|^2 back."""
    assert noise_scale(8, 2 + 30 / 8, 512, 2 + 30 / 512) == pytest.approx(15)
    assert noise_scale(8, 1.0, 512, 1.0) == 0
    assert noise_scale(8, 64.0, 512, 1.0) == math.inf, "all of it is noise"


def test_the_advice_weighs_time_against_noise() -> None:
    """Where a step takes equally long for any batch, the greatest; where it takes longer by the example, one below the noise."""

    def slow_start(params: Any, rows: Any) -> Any:
        time.sleep(0.003)
        return pull(params, rows)

    def slow_examples(params: Any, rows: Any) -> Any:
        time.sleep(2e-5 * len(rows))
        return pull(params, rows)

    sizes = (8, 64, 512)
    found = training.find_batch_size(np.zeros(AXES), slow_start, EXAMPLES, sizes=sizes, repeats=4)
    assert found.advised == 512
    found = training.find_batch_size(np.zeros(AXES), slow_examples, EXAMPLES, sizes=sizes, repeats=4)
    assert found.advised < 512
    assert min(row.relative_time for row in found.rows) == 1
    assert [row.size for row in found.rows] == list(sizes)
    assert all(row.throughput == row.size / row.seconds for row in found.rows)


def test_on_the_digits(tmp_path: Path) -> None:
    problem = digits_mlp()
    before = {name: a.tobytes() for name, a in problem.params.items()}
    found = training.find_batch_size(problem.params, problem.of, problem.examples, "adamw", repeats=3)
    assert {name: a.tobytes() for name, a in problem.params.items()} == before
    assert [row.size for row in found.rows] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert 0 < found.noise_scale < math.inf and found.advised in [row.size for row in found.rows]
    assert len(found.table().splitlines()) == 10 and str(found.advised) in found.table().splitlines()[-1]
    assert found.plot(tmp_path / "batches.png").read_bytes().startswith(b"\x89PNG")


def test_rows_are_those_of_the_seed() -> None:
    seen: list[bytes] = []

    def loss(params: Any, rows: Any) -> Any:
        assert rows.dtype == np.int64 and rows.min() >= 0 and rows.max() < 5
        seen.append(rows.tobytes())
        return pull(params, rows)

    for seed in (0, 0, 1):
        training.find_batch_size(np.zeros(AXES), loss, 5, repeats=2, random_state=seed)
    third = len(seen) // 3
    assert seen[:third] == seen[third : 2 * third] != seen[2 * third :]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"num_examples": 1}, "num_examples = 1: expected a whole number, 2 or more"),
        ({"num_examples": "all"}, "num_examples = 'all'"),
        ({"sizes": (8,)}, r"sizes = \(8,\): expected at least two different ones"),
        ({"sizes": (8, 0)}, r"sizes\[1\] = 0: expected a whole number, 1 or more"),
        ({"sizes": 8}, "sizes = 8: expected batch sizes"),
        ({"repeats": 0}, "repeats = 0: expected a whole number, 1 or more"),
        ({"random_state": -1}, "random_state = -1: expected a whole number, 0 or more"),
        ({"loss": None}, "loss = None: expected a function"),
        ({"params": {}}, "params: expected at least one array"),
        ({"optimizer": "sdg"}, "did you mean 'sgd'"),
        ({"loss": lambda p, rows: (1.0, p * np.nan)}, "squared norms of gradients .*: expected finite ones"),
    ],
)
def test_what_is_refused(wrong: dict[str, Any], words: str) -> None:
    given = {"params": np.zeros(AXES), "loss": pull, "num_examples": EXAMPLES, "backend": "numpy"} | wrong
    with pytest.raises(gpuopt.InputError, match=words):
        training.find_batch_size(**given)
