"""Which combinations of rule, dtype, architecture and options the ordinary suite tries, and which only `--long`.

A full product costs each further rule a minute of one core, though rules differ only in their arithmetic: how memory is walked,
options are fused and states stored is machinery that all share. So:

- REPRESENTATIVES keep the full product: between them they have every shape of rule (states that depend on flags, none, several);
- every other rule meets FEW values of the longest axis, say of the dtypes, begun at another place for each rule, and the other axes
  turn with it. Over as many neighbouring rules as those axes have combinations, each of them meets each value: every pair of values
  of two axes is tried, by a few rules at least. `test_covering.py` holds that;
- what is left out carries the mark `long`, and is run by `.ci/long`; the mark `once`, where another Python has nothing to add.

Tests that compare the numbers of every rule with an oracle do so with NumPy, and with Numba for the representatives: `on_hosts`.

Every rule is still compared bit for bit between NumPy, Numba, generated CUDA C and PTX of both GPU backends, the latter with other
storage dtypes than the former, and its richest kernel compiled and measured. Read by the tests that take every rule; knows no rule
but the representatives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import product
from typing import Any

import pytest

from gpuopt import rules
from samples import HOST_BACKENDS

REPRESENTATIVES = ("adam", "adamw", "sgd")
FEW = 2
Axis = Collection[Any]


def some(name: str, axis: Axis, begin: int = 0, whole: Collection[str] = REPRESENTATIVES) -> list[Any]:
    """FEW values of an axis, others for each rule; all of them for a representative. begin: other ones than another test tries."""
    values = list(axis)
    if name in whole or name not in rules.NAMES or len(values) <= FEW:
        return values
    places = {(rules.NAMES.index(name) + begin + k) % len(values) for k in range(FEW)}
    return [values[k] for k in sorted(places)]


def chosen(name: str, *given: Axis, whole: Collection[str] = REPRESENTATIVES) -> list[tuple[Any, ...]]:
    """The combinations of a rule in the ordinary suite, a value of each axis in each."""
    if name in whole or name not in rules.NAMES:
        return list(product(*given))
    axes = [list(axis) for axis in given]
    longest = max(range(len(axes)), key=lambda a: len(axes[a]))
    made = []
    for place, value in enumerate(some(name, axes[longest], whole=whole)):
        turn, row = rules.NAMES.index(name) // len(axes[longest]), list[Any]()
        for a, axis in enumerate(axes):
            row.append(value if a == longest else axis[(place + turn) % len(axis)])
            turn //= 1 if a == longest else len(axis)
        made.append(tuple(row))
    return made


def one(name: str, axis: Axis) -> list[Any]:
    """One value of an axis, another for each rule; all of them for a representative."""
    values = list(axis)
    return values if name in REPRESENTATIVES or not values else [values[rules.NAMES.index(name) % len(values)]]


def each(
    names: Iterable[str], *axes: Axis, single: bool = False, whole: Collection[str] = REPRESENTATIVES
) -> list[Any]:
    """Parameters of a test that takes a rule's name and a value of each axis: all of them, what is not chosen marked `long`.

    single: of a rule that is no representative, one combination in all. whole: the rules that keep the full product.
    """
    made = []
    for name in names:
        ordinary = one(name, list(product(*axes))) if single else chosen(name, *axes, whole=whole)
        for row in product(*axes):
            made.append(pytest.param(name, *row, marks=[] if row in ordinary else pytest.mark.long))
    return made


def elsewhere(rows: Iterable[Any], kept: Callable[..., bool]) -> list[Any]:
    """The same parameters of a test, of which the other Pythons run those that are kept: the rest bears the mark `once`. kept: of a
    row's values.
    """
    return [p if kept(*p.values) else pytest.param(*p.values, marks=[*p.marks, pytest.mark.once]) for p in rows]


def marked(cases: Mapping[str, Any], ordinary: Iterable[str]) -> list[Any]:
    """Parameters of a test that takes a case: all of them under their labels, those that are not named marked `long`."""
    known = set(ordinary)
    assert known <= set(cases), known - set(cases)
    return [pytest.param(c, id=label, marks=[] if label in known else pytest.mark.long) for label, c in cases.items()]


def on_hosts(cases: Iterable[Any], title: Callable[[Any], str] = str) -> list[Any]:
    """Parameters of a test that takes a case and a backend of the host: all with NumPy, and with Numba those of representatives, as
    Numba has NumPy's bits in every rule, flag and option, of odd numbers too (test_bits.py). title: the optimizer of a case.
    """
    made = []
    for case in cases:
        usual = title(case).lower() in REPRESENTATIVES
        for backend in HOST_BACKENDS:
            left = backend != HOST_BACKENDS[0] and not usual
            made.append(pytest.param(case, backend, id=f"{case}-{backend}", marks=pytest.mark.long if left else []))
    return made
