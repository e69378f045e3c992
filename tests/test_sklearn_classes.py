"""How the classes of many rows are found, and the order in which rows are taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpuopt.sklearn import batches, kinds

pytestmark = pytest.mark.once

Array = np.ndarray[Any, Any]


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


@pytest.mark.parametrize(("count", "run"), [(1000, 8), (1001, 8), (1007, 8), (5, 8), (12, 1)])
def test_every_row_is_taken_once_in_runs(count: int, run: int) -> None:
    order = batches.shuffled(count, run, np.random.default_rng(0))
    assert np.array_equal(np.sort(order), np.arange(count))
    breaks = np.flatnonzero(np.diff(order) != 1)
    assert (order[breaks + 1] % run == 0).all() and (count < 100 or len(breaks) > 50)
