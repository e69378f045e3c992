"""scikit-learn's own checks of estimators on those of `gpuopt.sklearn`, none of which is expected to fail."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import check_estimator

import gpuopt.sklearn
from covering import elsewhere

# Under the other Pythons one stands for all, which have their ways with parameters, tags and copies from one class.
NAMES = elsewhere(map(pytest.param, gpuopt.sklearn.__all__), lambda name: name == "LogisticClassifier")


@pytest.mark.parametrize("name", NAMES)
def test_check_estimator_finds_nothing(name: str) -> None:
    """Those that are skipped need pandas, or SciPy's switch of the array API."""
    found = check_estimator(getattr(gpuopt.sklearn, name)(), on_skip=None, on_fail="raise")
    passed = [row for row in found if row["status"] == "passed"]
    assert len(passed) > 50 and {row["status"] for row in found} <= {"passed", "skipped"}
