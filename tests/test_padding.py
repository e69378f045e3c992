"""Matrices of near shapes in one batch: which ones, and that zeros beside them change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
from gpuopt import linalg
from gpuopt.launch import padding, products

PRICES = padding.Prices(batch=35e-6, copy=4e-6, flop=1 / 90e9)
NEAR = [(40, 64), (44, 64), (64, 48), (56, 64), (64, 44)]


def cube(short: int, long: int) -> float:
    """FLOPs of one matrix."""
    return 30.0 * short * short * long


def price(shapes: list[tuple[int, int, int]], groups: list[tuple[int, ...]]) -> float:
    """Seconds, summed anew."""
    total = 0.0
    for group in groups:
        short = max(min(shapes[k][1:]) for k in group)
        long = max(max(shapes[k][1:]) for k in group)
        total += PRICES.batch + sum(shapes[k][0] for k in group) * cube(short, long) * PRICES.flop
        total += len(group) * PRICES.copy if len(group) > 1 else 0
    return total


def test_near_shapes_are_together_and_far_ones_apart() -> None:
    shapes = [(1, 32, 32), (1, 30, 32), (2, 512, 512), (1, 32, 28), (1, 512, 510)]
    groups = padding.grouped(shapes, PRICES, cube)
    assert groups == [(0, 1, 3), (2,), (4,)]  # two of zeros beside 510 cost more than a batch
    assert price(shapes, groups) < price(shapes, [(k,) for k in range(5)])


@pytest.mark.parametrize("seed", range(5))
def test_it_is_never_dearer_than_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = [(int(rng.integers(1, 4)), *map(int, rng.integers(8, 160, 2))) for _ in range(9)]
    groups = padding.grouped(shapes, PRICES, cube)
    assert sorted(k for group in groups for k in group) == list(range(9))
    assert price(shapes, groups) <= price(shapes, [(k,) for k in range(9)])


def batches(kind: str) -> list[Any]:
    """One matrix of each shape, two of the first."""
    rng = np.random.default_rng(0)
    made = [rng.standard_normal((1 + (k == 0), *shape)) for k, shape in enumerate(NEAR)]
    return [torch.from_numpy(x) for x in made] if kind == "torch" else made


@pytest.mark.parametrize("coefficients", ["keller", "cubic5", "aol", "cans"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_zeros_change_nothing(kind: str, coefficients: str) -> None:
    given, alone = batches(kind), batches(kind)
    padded = padding.Padded(given)
    assert padded.matrices.shape == (6, 56, 64)
    padded.run(lambda matrices: linalg.orthogonalize(matrices, coefficients))
    for found, expected in zip(given, alone, strict=True):
        linalg.orthogonalize(expected, coefficients)
        assert np.abs(np.asarray(found) - np.asarray(expected)).max() < 1e-12


def test_a_nan_is_of_its_matrix_and_its_step() -> None:
    given, alone = batches("numpy"), batches("numpy")
    given[1][0, 3, 5] = np.nan
    padded = padding.Padded(given)
    padded.run(linalg.orthogonalize)
    assert [bool(np.isnan(x).any()) for x in given] == [False, True, False, False, False]
    given[1][...] = alone[1]
    padded.run(linalg.orthogonalize)
    assert np.isfinite(given[1]).all()


def muon(shapes: list[tuple[int, ...]]) -> list[Any]:
    """Parameters behind three steps, in float64."""
    rng = np.random.default_rng(3)
    params = [rng.standard_normal(shape) for shape in shapes]
    opt = gpuopt.create("muon", params, lr=0.02, backend="numba")
    for _ in range(3):
        opt.step([rng.standard_normal(shape) for shape in shapes])
    return params


def test_muon_by_padded_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def counted(x: Any, *words: Any) -> Any:
        calls.append(x.shape)
        return linalg.orthogonalize(x, *words)

    monkeypatch.setitem(products.RUNS, "orthogonalize", counted)  # type: ignore[arg-type]
    expected = muon(list(NEAR))
    assert len(calls) == 15, "on the host each shape by itself"
    calls.clear()
    monkeypatch.setattr(padding, "HOST", PRICES._replace(batch=1e-3))
    found = muon(list(NEAR))
    assert calls == [(5, 56, 64)] * 3
    assert max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True)) < 1e-13


def test_on_the_host_other_matrices_change_no_bit() -> None:
    rng = np.random.default_rng(0)
    p, g, others = rng.standard_normal((40, 64)), rng.standard_normal((40, 64)), rng.standard_normal((61, 107))
    both, one = [p.copy(), others.copy()], [p.copy()]
    gpuopt.create("muon", both, lr=0.02, backend="numba").step([g, others])
    gpuopt.create("muon", one, lr=0.02, backend="numba").step([g])
    assert np.array_equal(both[0], one[0])
