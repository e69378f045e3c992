"""Linear models on large data: products of rows where they lie, the threads that help, and how classes of many rows are found."""

from __future__ import annotations

import threading
from typing import Any

import numba
import numpy as np
import pytest
from scipy import sparse

from gpuopt.sklearn import LinearRegressor, LogisticClassifier, batches, in_place, kinds
from gpuopt.sklearn.batches import Augmentation, Batches, Data
from gpuopt.sklearn.in_place import PART, Helper, Lying, Rows

pytestmark = pytest.mark.once

Array = np.ndarray[Any, Any]


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, Helper)]


def products(of: Lying, order: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """The column, what the rows give with it, and what they give back with that."""
    column = rng.standard_normal((of.array.shape[1], 1)).astype(of.dtype)
    out, back = np.full((len(order), 1), np.nan, of.dtype), np.full_like(column, np.nan)
    rows = Rows(of, order)
    assert rows.shape == (len(order), of.array.shape[1])
    rows.times(column, out)
    rows.back(out, back)
    return column, out, back


@pytest.mark.parametrize("read", ["float32", "float64"])
@pytest.mark.parametrize("compute", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 3, 4, PART, PART + 1, 3 * PART + 7])
def test_products_are_those_of_gathered_rows(read: str, compute: str, count: int) -> None:
    data = np.random.default_rng(0).standard_normal((1000, 37)).astype(read)
    order = np.random.default_rng(1).integers(0, 1000, count)
    of = Lying(data, compute, 3 * PART + 7)
    column, out, back = products(of, order, np.random.default_rng(2))
    rows = data[order].astype(compute).astype(np.float64)
    close = {"rtol": 0, "atol": 1e-4 if compute == "float32" else 1e-12}
    np.testing.assert_allclose(out, rows @ column, **close)
    np.testing.assert_allclose(back, rows.T @ out, **close | {"atol": 30 * close["atol"]})


def test_threads_change_no_bit_and_are_gone_afterwards() -> None:
    data = np.random.default_rng(0).standard_normal((5000, 37)).astype(np.float32)
    order = np.random.default_rng(1).permutation(5000)[:4001]
    of, usual = Lying(data, np.float32, 5000), numba.get_num_threads()
    expected = products(of, order, np.random.default_rng(2))
    for threads in (1, 2):
        numba.set_num_threads(threads)
        try:
            with pytest.raises(KeyboardInterrupt), of.helped():
                assert len(helpers()) == threads - 1
                for _ in range(200):
                    found = products(of, order, np.random.default_rng(2))
                    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
                raise KeyboardInterrupt
        finally:
            numba.set_num_threads(usual)
        assert not helpers()


def test_a_helper_that_comes_late_is_not_waited_for_and_touches_nothing() -> None:
    """It is called to a product, and gets to it when the next one has begun."""
    data = np.random.default_rng(0).standard_normal((3000, 5)).astype(np.float32)
    of, order = Lying(data, np.float32, 3000), np.arange(3000)
    expected = [products(of, order, np.random.default_rng(seed)) for seed in range(3)]
    jobs: list[in_place.Job] = []

    class Late:
        """Works on what it was called to before."""

        def call(self, job: in_place.Job) -> None:
            for function, arguments, _ in jobs[-1:]:
                function(*arguments)
            jobs.append(job)

    of.helpers = [Late()]  # type: ignore[list-item]
    for seed in range(3):
        found = products(of, order, np.random.default_rng(seed))
        assert all(np.array_equal(a, b) for a, b in zip(found, expected[seed], strict=True))
    assert len(jobs) == 6


def problem(rows: int = 3000) -> tuple[Array, Array]:
    rng = np.random.default_rng(3)
    X = rng.standard_normal((rows, 12)).astype(np.float32)
    return X, X @ rng.standard_normal(12).astype(np.float32)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [False, True])
def test_a_fit_finds_what_it_finds_with_gathered_rows(
    classes: bool, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, line = problem()
    y, made = (line > 0, LogisticClassifier) if classes else (line, LinearRegressor)
    weights = np.random.default_rng(4).random(len(X)) if weighted else None
    monkeypatch.setattr(batches, "NEAR", 0)
    used: list[int] = []
    times = Rows.times
    monkeypatch.setattr(Rows, "times", lambda self, *given: (used.append(1), times(self, *given))[1])

    def fitted(**options: Any) -> Any:
        return made(batch_size=200, max_iter=5, random_state=0, **options).fit(X, y, sample_weight=weights)

    first, again = fitted(), fitted()
    assert len(used) == 2 * 5 * 15
    assert np.array_equal(first.coef_, again.coef_) and not helpers()
    monkeypatch.setattr(Batches, "lies", lambda *given: False)
    gathered = fitted()
    assert len(used) == 2 * 5 * 15
    np.testing.assert_allclose(first.coef_, gathered.coef_, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(first.loss_curve_, gathered.loss_curve_, rtol=1e-4)


def test_rows_stay_where_they_lie_only_where_nothing_else_needs_them(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, line = problem(300)
    data = Data(X, line[:, None])

    def lying(data: Data = data, rows: int = 64, **options: Any) -> bool:
        return Batches(data, rows, rng, **{"column": True} | options).lying is not None

    assert not lying(), "data that a cache holds"
    monkeypatch.setattr(batches, "NEAR", 0)
    assert lying()
    assert not lying(column=False) and not lying(shuffle=False) and not lying(rows=300)
    assert not lying(Data(sparse.csr_array(X), line[:, None]))
    assert not lying(augmentation=Augmentation(input_noise=0.1)) and not lying(augmentation=Augmentation(mixup=0.1))


@pytest.mark.parametrize(
    "values",
    [
        np.array([3, -5, 3, 900], np.int16), np.array([127, -128, 0], np.int8), np.array([250, 3, 3], np.uint8),
        np.array([2**63 + 5, 2**63], np.uint64), np.array([-(2**63), 2**63 - 1]), np.array([True, False, True]), np.array([5, 5]),
        np.array(["b", "a", "b"]), np.array([0.5, -1.0, 0.5]), np.array([1, 2000, 1]),
    ],
    ids=lambda values: str(values.dtype),
)  # fmt: skip
def test_classes_are_those_of_numpy(values: Array) -> None:
    found = kinds.distinct(values)
    expected, places = np.unique(values, return_inverse=True)
    assert np.array_equal(found, expected) and found.dtype == values.dtype
    assert np.array_equal(kinds.numbered(values, found), places)
