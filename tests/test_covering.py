"""The design of `covering`: what the ordinary suite leaves out for one rule, another rule meets."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest

from covering import FEW, REPRESENTATIVES, chosen, each, elsewhere, marked, some
from gpuopt import rules

DTYPES, ARCHITECTURES, OPTIONS = ("a", "b", "c", "d"), (75, 80, 90, 100, 120), (False, True)
OTHERS = [name for name in rules.NAMES if name not in REPRESENTATIVES]


@pytest.mark.parametrize("axes", [(DTYPES, ARCHITECTURES), (DTYPES, OPTIONS), (OPTIONS, DTYPES, ("x", "y")), (DTYPES,)])
def test_every_rule_meets_some_values_and_together_they_meet_every_pair(axes: tuple[Any, ...]) -> None:
    longest = max(axes, key=len)
    met = [row for name in OTHERS for row in chosen(name, *axes)]
    for name in OTHERS:
        assert [row[axes.index(longest)] for row in chosen(name, *axes)] == some(name, longest)
    for a, b in combinations(range(len(axes)), 2):
        assert {(row[a], row[b]) for row in met} == set(product(axes[a], axes[b]))


def test_two_tests_try_other_values_of_a_rule() -> None:
    for name in OTHERS:
        one, other = some(name, ARCHITECTURES), some(name, ARCHITECTURES, FEW)
        assert len(one) == len(other) == FEW and not set(one) & set(other)
    assert {value for name in OTHERS for value in some(name, ARCHITECTURES)} == set(ARCHITECTURES)


def test_representatives_and_the_long_job_meet_all() -> None:
    for name in REPRESENTATIVES:
        assert chosen(name, DTYPES, OPTIONS) == list(product(DTYPES, OPTIONS))
    made = each(["lion"], DTYPES, OPTIONS)
    assert [p.values for p in made] == [("lion", d, o) for d, o in product(DTYPES, OPTIONS)]
    assert sum(bool(p.marks) for p in made) == len(made) - FEW


def test_other_pythons_run_what_is_kept_and_other_marks_stay() -> None:
    before = each(["lion"], DTYPES)
    made = elsewhere(before, lambda name, dtype: dtype == "b")
    assert [p.values for p in made] == [p.values for p in before]
    assert [p.values[1] for p in made if "once" not in [mark.name for mark in p.marks]] == ["b"]
    assert [[m for m in p.marks if m.name != "once"] for p in made] == [list(p.marks) for p in before]


def test_a_label_that_no_case_has_is_a_mistake() -> None:
    made = marked({"one": 1, "two": 2}, ["two"])
    assert [(p.id, bool(p.marks)) for p in made] == [("one", True), ("two", False)]
    with pytest.raises(AssertionError, match="three"):
        marked({"one": 1}, ["three"])
