"""`benchmarks/bench_sklearn.py`: it runs on small data, and the rows that are kept have its columns."""

from __future__ import annotations

import csv
import importlib.util
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from repository import ROOT

pytestmark = pytest.mark.once


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("bench_sklearn", ROOT / "benchmarks" / "bench_sklearn.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_rows_of_a_small_run(bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "rows.csv"
    for _ in range(2):
        made = bench.main(
            ["--rows", "3000", "--dtypes", "float32", "--large-only", "--repeats", "1", "--out", str(path)]
        )
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(made) == 6 and len(rows) == 12, "added to, not written over"
    assert {row["theirs"] for row in rows} == {
        "SGDRegressor", "SGDClassifier", "LogisticRegression", "MLPClassifier", "MLPRegressor"
    }  # fmt: skip
    for row in made:
        assert row.ratio == row.seconds_theirs / row.seconds_ours > 0 and row.score_ours > 0
    assert capsys.readouterr().out.count("ratio") == 12


def test_rows_that_are_kept_have_these_columns(bench: Any) -> None:
    with bench.RESULTS.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [field.name for field in fields(bench.Row)]
    assert any("synthetic 1000000 x 100" in row["data"] for row in rows)
