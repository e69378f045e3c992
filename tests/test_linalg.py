"""Products of matrices: what iterations make of singular values, of every shape, and how many there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from formulas_matrices import TABLES, newton_schulz
from gpuopt import InputError, linalg
from samples import difference

# Least and largest singular value of those that were 0.01 to 1, as the authors of the coefficients and of tables of them have it.
RANGES = {
    "keller": (0.67, 1.14),
    "polar_express": (0.84, 1.15),
    "cubic5": (0.76, 1.31),
    "cans": (0.87, 1.13),
    "deepseek": (0.999, 1.001),
    "converging": (0.99999, 1.00001),
}
SHAPES = ((1, 8, 8), (2, 5, 12), (2, 12, 5), (1, 1, 7), (1, 7, 1), (3, 4, 64), (1, 64, 4), (1, 1, 1))


def with_values(rows: int, columns: int, values: Any, seed: int = 0) -> Any:
    """A matrix that has these singular values."""
    rng, short = np.random.default_rng(seed), min(rows, columns)
    u = np.linalg.qr(rng.standard_normal((rows, short)))[0]
    v = np.linalg.qr(rng.standard_normal((columns, short)))[0]
    return (u * values) @ v.T


@pytest.mark.parametrize("shape", [(24, 24), (24, 120), (120, 24)])
@pytest.mark.parametrize("name", RANGES)
def test_singular_values_come_into_the_range_of_the_coefficients(name: str, shape: tuple[int, int]) -> None:
    """The largest is 1 before the first step, as the coefficients suppose: the norm of the matrix is undone."""
    x = with_values(*shape, np.geomspace(0.01, 1, 24))
    table = linalg.COEFFICIENTS[name].steps(None)
    for by in (linalg.by_matrix, linalg.by_rows):
        found = np.linalg.svd(by(x[None].copy(), table, linalg.library_of(x[None]))[0], compute_uv=False)
        assert RANGES[name][0] < found.min() and found.max() < RANGES[name][1], by
    directions = np.linalg.svd(x)
    assert (
        np.abs(directions[0][:, 0] @ by(x[None].copy(), table, linalg.library_of(x[None]))[0] @ directions[2][0])
        > RANGES[name][0]
    )


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_is_as_one_matrix_at_a_time_gives_it(name: str, shape: tuple[int, int, int]) -> None:
    x = np.random.default_rng(1).standard_normal(shape)
    for steps in (None, 2):  # two show where it begins
        expected = np.array([newton_schulz(each, name, steps) for each in x])
        assert difference(linalg.orthogonalize(x.copy(), name, steps), expected) < 1e-12


def test_wide_and_tall_are_transposes_of_each_other() -> None:
    x = np.random.default_rng(2).standard_normal((2, 30, 7))
    for name in linalg.COEFFICIENTS:
        tall, wide = linalg.orthogonalize(x.copy(), name), linalg.orthogonalize(x.swapaxes(1, 2).copy(), name)
        assert difference(tall, wide.swapaxes(1, 2)) < 1e-12, name


def test_rows_scaled_one_by_one_leave_no_value_above_one_and_come_near_it() -> None:
    """AOL: other singular vectors, so only the values are looked at."""
    x = with_values(16, 40, np.geomspace(0.05, 1, 16))[None]
    linalg.balance(x, linalg.library_of(x))
    assert np.linalg.svd(x[0], compute_uv=False).max() <= 1 + 1e-12
    found = np.linalg.svd(
        linalg.orthogonalize(with_values(16, 40, np.geomspace(0.05, 1, 16))[None], "aol")[0], compute_uv=False
    )
    assert found.min() > 0.5 and found.max() < 1.3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-30, 1e-18, 1.0, 1e18, 1e30])
def test_the_size_of_numbers_does_not_matter(size: float, dtype: Any) -> None:
    x = np.random.default_rng(3).standard_normal((2, 6, 9)).astype(dtype)
    found = linalg.orthogonalize((x * dtype(size)).astype(dtype), "polar_express") if size > 1e-7 else None
    expected = linalg.orthogonalize(x.copy(), "polar_express")
    if found is None:  # below the floor a matrix is not brought to length 1, and stays small
        found = linalg.orthogonalize((x * dtype(size)).astype(dtype), "polar_express")
        assert np.isfinite(found).all() and np.abs(found).max() < 1e-6
    else:
        assert difference(found, expected) < 64 * np.finfo(dtype).eps


def test_zeros_low_ranks_and_what_is_not_finite() -> None:
    assert not linalg.orthogonalize(np.zeros((2, 3, 4))).any()
    low = np.outer(np.arange(1.0, 5), np.arange(1.0, 7))[None]
    values = np.linalg.svd(linalg.orthogonalize(low, "deepseek")[0], compute_uv=False)
    assert abs(values[0] - 1) < 1e-3 and values[1:].max() < 1e-6
    both = np.ones((2, 3, 3))
    both[0, 1, 1] = np.nan
    found = linalg.orthogonalize(both)
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all(), "of the same batch, but another matrix"
    assert linalg.orthogonalize(np.ones((0, 3, 3))).shape == (0, 3, 3)


def test_an_unknown_name_is_refused_in_words() -> None:
    with pytest.raises(InputError, match=r"coefficients = 'newton': expected one of keller, polar_express"):
        linalg.orthogonalize(np.ones((1, 2, 2)), "newton")


@pytest.mark.parametrize("panels", [1, 4])
@pytest.mark.parametrize(
    ("name", "ratio", "gram"), [("keller", 1, False), ("keller", 4, True), ("cubic5", 1, False), ("cubic5", 4, True)]
)
def test_products_of_rows_are_taken_where_they_multiply_less(
    name: str, ratio: int, gram: bool, panels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is planned is what is done, counted in products of two square matrices, whether or not by panels."""
    monkeypatch.setattr(linalg, "LEAST", 1 if panels > 1 else 256)
    table, counted = linalg.COEFFICIENTS[name].steps(None), []
    x = with_values(8, 8 * ratio, np.linspace(0.1, 1, 8))[None]
    by, plain = linalg.library_of(x), linalg.Library(x)

    def counting(a: Any, b: Any, out: Any = None) -> Any:
        half = np.shares_memory(a, b) and a.shape[1] == b.shape[2]
        counted.append(a.shape[1] * a.shape[2] * b.shape[2] / 8**3 / (2 if half else 1))
        return np.matmul(a, b, out=out)

    by.product = counting
    found = {}
    for way in (linalg.by_matrix, linalg.by_rows):
        counted.clear()
        made = way(x.copy(), table, by)
        found[way] = sum(counted)
        assert difference(made, linalg.by_matrix(x.copy(), table, plain)) < 1e-12
    work = linalg.plan(table, ratio, by)
    assert work.gram is gram and work.cost == min(found.values())
    assert (found[linalg.by_rows] < found[linalg.by_matrix]) is gram


@pytest.mark.parametrize("rank", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("n", [5, 256, 300, 520])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_orthogonal_factors_by_panels_are_lapacks(dtype: Any, n: int, rank: float) -> None:
    rng = np.random.default_rng(0)
    a = (rng.standard_normal((n, int(n * rank))) @ rng.standard_normal((int(n * rank), n))).astype(dtype)
    before, eps = a.copy(), float(np.finfo(dtype).eps)
    found, expected = linalg.library_of(a[None]).orthogonal(a), np.linalg.qr(a)[0]
    sizes = abs(expected.T @ a).max() + 1
    assert found.dtype == dtype and np.array_equal(a, before)
    assert abs(found.T @ found - np.eye(n)).max() < 20 * eps
    assert abs(np.tril(found.T @ a, -1)).max() < 20 * eps * sizes
    if rank == 1:  # the condition of such a matrix is some thousands
        assert abs(found - expected).max() < 1e4 * eps


def test_orthogonal_factors_of_what_is_not_finite_are_none() -> None:
    a = np.random.default_rng(0).standard_normal((300, 300))
    a[3, 200] = np.inf
    with np.errstate(all="ignore"):
        assert np.isnan(linalg.library_of(a[None]).orthogonal(a)[:, -1]).all()


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("shape", [(2, 7, 5), (1, 1100, 3), (1, 3, 1100)])
def test_averages_of_products_follow_by_panels(shape: tuple[int, int, int], tall: bool) -> None:
    rng, n = np.random.default_rng(0), shape[2 if tall else 1]
    x, average = rng.standard_normal(shape), np.zeros((shape[0], n, n))
    average += rng.standard_normal((shape[0], n, n))
    average += average.swapaxes(1, 2)
    made = x.swapaxes(1, 2) @ x if tall else x @ x.swapaxes(1, 2)
    expected = average + (made - average) * 0.25
    linalg.library_of(x).follow(average, x, 0.25, tall)
    assert difference(average, expected) < 1e-14
