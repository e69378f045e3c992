"""Which rows of which tensors each process keeps, and in which order all of them travel. Numbers only; knows no array.

Called by `sharded`. Every process computes the same division from the same shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise


@dataclass(frozen=True)
class Tensor:
    """rows: of the first axis; row: elements of one; cut: whether its rows may be with several processes, or all are with one."""

    rows: int
    row: int
    cut: bool

    @property
    def numel(self) -> int:
        return self.rows * self.row


@dataclass(frozen=True)
class Piece:
    """Elements [begin, end) of a tensor, which stand from `at` on in a flat memory."""

    tensor: int
    begin: int
    end: int
    at: int


Bounds = tuple[int, ...]  # of one tensor: the process k has the rows from the k-th of these to the next


def divide(tensors: Sequence[Tensor], size: int) -> list[Bounds]:
    """Bounds of each tensor, so that processes have about equally many elements: what may not be cut goes to one that has the
    least, the largest first; then rows of all others, in their order, fill each process in turn.
    """
    loads, owners = [0] * size, {}
    for k in sorted((k for k, t in enumerate(tensors) if not t.cut), key=lambda k: (-tensors[k].numel, k)):
        owners[k] = min(range(size), key=lambda rank: (loads[rank], rank))
        loads[owners[k]] += tensors[k].numel
    level = _level(loads, sum(t.numel for t in tensors if t.cut))
    ends = list(accumulate(max(0.0, level - load) for load in loads))  # of cut elements, up to and with each process
    found, before = list[Bounds](), 0
    for k, t in enumerate(tensors):
        if t.cut:
            inner = [min(t.rows, max(0, round((end - before) / max(1, t.row)))) for end in ends[:-1]]
            found.append((0, *inner, t.rows))
            before += t.numel
        else:
            found.append((*[0] * (owners[k] + 1), *[t.rows] * (size - owners[k])))
    return found


def _level(loads: Sequence[int], more: int) -> float:
    """How high these loads stand when `more` is poured over them, the lowest first."""
    ordered = sorted(loads)
    for k in range(1, len(ordered) + 1):
        level = (sum(ordered[:k]) + more) / k
        if k == len(ordered) or level <= ordered[k]:
            return level
    return 0.0


class Order:
    """The parts of every process one behind another, the last tensors first, in pieces of memory of `length` elements a process."""

    def __init__(self, tensors: Sequence[Tensor], bounds: Sequence[Bounds], size: int, length: int) -> None:
        self.size = size
        self.parts = [list(_parts(tensors, bounds, rank)) for rank in range(size)]
        self.sizes = [sum(p.end - p.begin for p in parts) for parts in self.parts]
        whole = max(self.sizes, default=0)
        self.length = min(max(1, length), whole)
        self.chunks = [(a, min(whole, a + self.length)) for a in range(0, whole, max(1, self.length))]

    def pieces(self, chunk: tuple[int, int]) -> list[list[Piece]]:
        """Of each process, the pieces in a chunk of its parts, as they stand in the memory of that chunk of all processes."""
        begin, end = chunk
        return [list(_clipped(parts, begin, end, rank * (end - begin))) for rank, parts in enumerate(self.parts)]


def _parts(tensors: Sequence[Tensor], bounds: Sequence[Bounds], rank: int) -> Iterator[Piece]:
    at = 0
    for k in reversed(range(len(tensors))):
        begin, end = (b * tensors[k].row for b in list(pairwise(bounds[k]))[rank])
        if begin < end:
            yield Piece(k, begin, end, at)
            at += end - begin


def _clipped(parts: Sequence[Piece], begin: int, end: int, at: int) -> Iterator[Piece]:
    """What of these parts stands in [begin, end), as it stands from `at` on."""
    for p in parts:
        low, high = max(begin, p.at), min(end, p.at + p.end - p.begin)
        if low < high:
            first = p.begin + low - p.at
            yield Piece(p.tensor, first, first + high - low, at + low - begin)
