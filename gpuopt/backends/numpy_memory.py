"""Where the elements of a tensor lie that the NumPy backend is at: a stretch of them, or those of some rows.

Called by `backends.numpy` only. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpuopt.compiler.parts import GRADIENT
from gpuopt.compiler.program import Program
from gpuopt.formats.dtypes import STORAGES, numpy_dtype
from gpuopt.launch import shards
from gpuopt.launch import table as t
from gpuopt.native.memory import memory

Elements: TypeAlias = range | NDArray[np.int64]  # numbers of elements of a tensor; of some rows, all of each row


def memories(program: Program, record: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The memory of every array of one tensor, by the names of the roles; codes as whole numbers from 0 on."""
    count, width = int(record[t.NUMEL]), int(record[t.WIDTH])
    roles = [*enumerate(program.roles), *enumerate(program.blocked, program.first_blocked)]
    found = {}
    for k, r in roles:
        dtype = np.dtype(f"u{STORAGES[r.storage].itemsize}") if r.code else numpy_dtype(r.storage)
        numel = count if not program.picked or (k == GRADIENT and compact(record)) else height(record) * width
        found[r.name] = memory(
            int(record[t.ADDRESS + k]), dtype, numel if r.per == 1 else numel // width * -(-width // r.per)
        )
    return found


def height(record: NDArray[np.int64]) -> int:
    """Rows of a tensor of which some are stepped."""
    return int(record[t.CONSTANTS["OF_HEIGHT"]])


def compact(record: NDArray[np.int64]) -> bool:
    """Whether its gradient has these rows only."""
    return bool(record[t.CONSTANTS["OF_COMPACT"]])


def elements_of(program: Program, record: NDArray[np.int64], begin: int, count: int) -> Elements:
    """Which elements of the tensor are the `count` elements from `begin` on of those that are stepped."""
    if not program.picked:
        return range(begin, begin + count)
    width = int(record[t.WIDTH])
    address = int(record[t.CONSTANTS["OF_INDICES"]]) + 8 * (begin // width)
    rows: NDArray[np.int64] = memory(address, np.dtype(np.int64), count // width)
    made: NDArray[np.int64] = (rows[:, None] * width + np.arange(width)).reshape(-1)
    return made


def of_whole(record: NDArray[np.int64], elements: Elements) -> NDArray[np.int64]:
    """Which elements of the whole tensor these are, of which the arrays are a part."""
    first, run, skip = record[-len(t.SHARD) :].tolist()
    return shards.elements(first, run, skip, np.asarray(elements, np.int64))


def part(
    program: Program, record: NDArray[np.int64], flats: Mapping[str, NDArray[Any]], begin: int, elements: Elements
) -> dict[str, NDArray[Any]]:
    """Of all arrays, what belongs to these elements, the begin-th and those behind it of those that are stepped. They are whole
    rows where there are blocks, or only some rows are stepped, of which it is a copy.
    """
    per, width = {r.name: r.per for r in program.blocked}, int(record[t.WIDTH])

    def stretch(name: str) -> NDArray[Any]:
        first, last = (
            element // width * -(-width // per[name]) if name in per else element
            for element in (begin, begin + len(elements))
        )
        return flats[name][first:last]

    if isinstance(elements, range):
        return {name: stretch(name) for name in flats}
    rows = elements[::width] // width
    found = {}
    for name, values in flats.items():
        apart = name == program.roles[GRADIENT].name and compact(record)
        found[name] = stretch(name) if apart else by_row(values, width, per.get(name, 1))[rows].reshape(-1)
    return found


def by_row(values: NDArray[Any], width: int, per: int) -> NDArray[Any]:
    """A flat array with one row for each row of its tensor."""
    return values.reshape(-1, -(-width // per))


def put_back(
    program: Program, flats: Mapping[str, NDArray[Any]], block: Mapping[str, NDArray[Any]], width: int, elements: Elements
) -> None:  # fmt: skip
    """What was stored in a copy of some rows goes to where they lie."""
    if isinstance(elements, range):
        return
    rows = elements[::width] // width
    for r in (*program.roles, *program.blocked):
        if r.written:
            by_row(flats[r.name], width, r.per)[rows] = by_row(block[r.name], width, r.per)
