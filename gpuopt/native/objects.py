"""Objects of CPython: what a list or tuple holds, and whether others refer to an object. See `gpuopt.native` for what is relied on.

Called by the optimizers, the engine and `gpuopt.torch`, as `contents`, `same` and `unshared`. Knows no array library but NumPy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from operator import is_not
from sys import getrefcount
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.native.memory import WORD
from gpuopt.native.switch import choose

MANY = 64  # items of a list or tuple; with fewer, asking each takes a microsecond at most
# Where the addresses of the items lie: a list keeps their address in front of its last word, which counts those that it has room
# for; a tuple ends with them.
ITEMS: dict[type, Callable[[int], int]] = {
    list: lambda at: ctypes.c_size_t.from_address(at + list.__basicsize__ - 2 * WORD.itemsize).value,
    tuple: lambda at: at + tuple.__basicsize__,
}


def ids(objects: Sequence[Any]) -> NDArray[np.int64]:
    """The ids of Python objects, which CPython makes of their addresses."""
    return np.fromiter(map(id, objects), WORD, len(objects))


# ---------------------------------------------------------------------------------------------------- plain


def asked_contents(found: Sequence[Any]) -> bytes | list[int]:
    """What tells a list or tuple of objects from any other, as long as those objects live."""
    return list(map(id, found))


def asked_same(found: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two sequences hold the same objects in the same order."""
    return len(found) == len(other) and not any(map(is_not, found, other))


def never_unshared(objects: Sequence[Any], holders: int) -> bool:
    """Whether it is certain that nothing but `holders` containers, of which this sequence is one, refers to any of these objects:
    nothing in Python says so.
    """
    return False


# ---------------------------------------------------------------------------------------------------- native


def read_contents(found: Sequence[Any]) -> bytes | list[int]:
    """The same, for many objects from the sequence's own memory: a microsecond for a thousand, where asking each takes thirty."""
    items = ITEMS.get(type(found)) if len(found) >= MANY else None
    if items is None:
        return list(map(id, found))
    return ctypes.string_at(items(id(found)), WORD.itemsize * len(found))


def read_same(found: Sequence[Any], other: Sequence[Any]) -> bool:
    """The same, for many objects from the sequences' own memory."""
    if len(found) != len(other):
        return False
    if len(found) < MANY or not {type(found), type(other)} <= ITEMS.keys():
        return not any(map(is_not, found, other))
    return read_contents(found) == read_contents(other)


def counted_unshared(objects: Sequence[Any], holders: int) -> bool:
    """The same, by CPython's reference counts."""
    return most_references(objects) <= holders + OWN_REFERENCES


def most_references(objects: Sequence[Any]) -> int:
    """The references to that object which has the most, those that counting them makes included."""
    return max(map(getrefcount, objects), default=0)


OWN_REFERENCES = most_references([object()]) - 1  # those that counting makes; one is the list's


# ---------------------------------------------------------------------------------------------------- which


def items_hold() -> bool:
    """Whether lists and tuples keep their items where ITEMS says."""
    for kind, where in ITEMS.items():
        sample: Sequence[Any] = kind(range(MANY))
        address = where(id(sample))
        if address % WORD.itemsize or ctypes.string_at(address, WORD.itemsize * MANY) != ids(sample).tobytes():
            return False
    return True


def counts_hold() -> bool:
    """Whether a reference more is counted as one, wherever it is."""
    listed = [object()]
    alone = counted_unshared(listed, 1)
    keyed = {0: listed[0]}
    twice = counted_unshared(listed, 2) and not counted_unshared(listed, 1)
    named = keyed[0]
    return alone and twice and not counted_unshared([named], 2)


contents = choose("contents of lists", read_contents, asked_contents, ("python",), items_hold)
same = choose("contents of lists", read_same, asked_same, ("python",), items_hold)
unshared = choose("reference counts", counted_unshared, never_unshared, ("python",), counts_hold)
