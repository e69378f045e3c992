"""scikit-learn's own checks of estimators on those of `gpuopt.sklearn`, none of which is expected to fail."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import check_estimator

import gpuopt.sklearn


@pytest.mark.parametrize("name", gpuopt.sklearn.__all__)
def test_check_estimator_finds_nothing(name: str) -> None:
    """Those that are skipped need pandas, or SciPy's switch of the array API."""
    found = check_estimator(getattr(gpuopt.sklearn, name)(), on_skip=None, on_fail="raise")
    passed = [row for row in found if row["status"] == "passed"]
    assert len(passed) > 50 and {row["status"] for row in found} <= {"passed", "skipped"}
