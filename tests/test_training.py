"""Every optimizer gets on where a loss is hard (Rosenbrock's valley) and where it is large and noisy (a small transformer)."""

from __future__ import annotations

import csv

import numpy as np
import pytest

import gpuopt
from gpuopt.demos import training
from repository import ROOT

pytestmark = pytest.mark.once


def test_gradients_of_the_transformer_agree_with_differences() -> None:
    rng = np.random.default_rng(0)
    w, (x, target) = training.initial(7, rng), rng.integers(0, 7, (2, 3, 5))
    _, grads = training.loss_and_gradients(w, x, target)
    for name, value in w.items():
        direction = 1e-6 * rng.normal(size=value.shape)
        ahead, behind = (training.loss_and_gradients(w | {name: value + s * direction}, x, target)[0] for s in (1, -1))
        assert (ahead - behind) / 2 == pytest.approx(np.sum(grads[name] * direction), rel=1e-6)


@pytest.mark.parametrize("optimizer", gpuopt.optimizers())
def test_every_optimizer_goes_down_the_valley_and_learns_text(optimizer: str) -> None:
    losses = training.transformer(optimizer)
    assert np.mean(losses[-5:]) < losses[0] - 0.3
    losses = training.valley(optimizer, steps=200)
    assert losses[-1] < 0.5 * losses[0]


def test_committed_rows_of_the_digits_with_documented_defaults() -> None:
    """Every optimizer had 95 % right at the end, all but those with small default rates within the demo's 30 epochs."""
    with (ROOT / "benchmarks" / "results" / "digits_defaults.csv").open(newline="") as file:
        last = {row["optimizer"]: row for row in csv.DictReader(file)}
    assert sorted(last) == sorted(gpuopt.optimizers())
    assert [name for name, row in last.items() if float(row["accuracy"]) < 0.95] == []
    assert {n for n, row in last.items() if int(row["to_95"]) > 30} == {"adamatan2", "asgd", "lion", "sgd", "sophiag"}
    assert {n for n, row in last.items() if row["lr"] != "default"} == {"dgd", "gd", "stableadamw"}
