"""The committed tables of `benchmarks/results`, whatever their columns are. What each says is tested beside what it is about."""

from __future__ import annotations

import csv

from repository import ROOT


def test_every_committed_table_has_whole_rows_and_says_when_they_were_measured() -> None:
    paths = sorted((ROOT / "benchmarks" / "results").glob("*.csv"))
    assert paths
    for path in paths:
        with path.open(newline="") as file:
            header, *lines = csv.reader(file)
        assert lines and all(len(line) == len(header) for line in lines), path.name
        assert {"run", "date"} & set(header), path.name
