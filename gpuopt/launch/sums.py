"""Joins of partial sums on the host, in the orders of kernels/per_tensor.cuh and kernels/all_tensors.cuh, and over processes.

Used by the host backends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from gpuopt.errors import InputError
from gpuopt.launch import table as t
from gpuopt.launch.shards import Communicator

if TYPE_CHECKING:
    from gpuopt.launch.plan import Plan

Doubles = NDArray[np.float64]
FILLED = 256  # numbers


def tree(lanes: NDArray[np.floating], kind: str) -> NDArray[np.floating]:
    """[lanes, ...] -> [...]: the upper half onto the lower one, until one is left."""
    half = len(lanes) // 2
    while half:
        lanes = joined(kind, lanes[:half], lanes[half : 2 * half])
        half //= 2
    found: NDArray[np.floating] = lanes[0]
    return found


def joined(kind: str, a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    """Two parts of a sum in one; of a maximum NaN where one is NaN, as `primitives.maximum`."""
    return np.where((a > b) | (a != a), a, b) if kind == "tensor_max" else np.asarray(a + b)


def beginning(kind: str) -> float:
    """What a sum of nothing is."""
    return -np.inf if kind == "tensor_max" else 0.0


def chunk_sums(terms: NDArray[np.floating], kind: str, pack: int) -> Doubles:
    """[elements] in the compute type -> [chunks]: element k of a chunk belongs to accumulator k mod (THREADS * pack), `pack` of
    them to a lane, as in kernels/reduce.cuh.
    """
    width = t.THREADS * pack
    count = -(-terms.size // t.CHUNK)
    sums = np.full((count, width), beginning(kind), terms.dtype)
    padded = np.zeros((count, t.CHUNK), terms.dtype)
    padded.reshape(-1)[: terms.size] = terms
    for turn in range(t.CHUNK // width):
        there = np.minimum(np.maximum(terms.size - np.arange(count) * t.CHUNK - turn * width, 0), width)
        mask = np.arange(width) < there[:, None]
        sums = np.where(mask, joined(kind, sums, padded[:, turn * width : (turn + 1) * width]), sums)
    packs = sums.reshape(count, t.THREADS, pack)
    lanes = packs[:, :, 0]
    for k in range(1, pack):
        lanes = joined(kind, lanes, packs[:, :, k])
    return tree(lanes.T, kind).astype(np.float64)


def row_sums(x: NDArray[np.floating], pack: int) -> NDArray[np.floating]:
    """[matrices, rows, columns] -> [matrices, rows, 1], as kernels/reduce_along.cuh and per_matrix.cuh: in each block column c
    belongs to accumulator c mod (WARP * pack), `pack` of them to a lane; lanes are joined one by one, then blocks in float64.
    """
    tiles = blocked(x, 2, t.BLOCK_COLUMNS)  # [matrices, rows, blocks, columns of a block]
    sums = np.zeros((*tiles.shape[:3], t.WARP * pack), x.dtype)
    for begin in range(0, t.BLOCK_COLUMNS, t.WARP * pack):
        sums = sums + tiles[..., begin : begin + t.WARP * pack]
    lanes = one_by_one(sums.reshape(*sums.shape[:-1], t.WARP, pack))
    return one_by_one(one_by_one(lanes).astype(np.float64), 0.0).astype(x.dtype)[..., None]


def column_sums(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """[matrices, rows, columns] -> [matrices, 1, columns]: in each block row r belongs to warp r mod WARPS; warps are joined one by
    one, then blocks in float64.
    """
    warps = t.THREADS // t.WARP
    tiles = blocked(x.swapaxes(1, 2), 2, t.BLOCK_ROWS)  # [matrices, columns, blocks, rows of a block]
    sums = np.zeros((*tiles.shape[:3], warps), x.dtype)
    for begin in range(0, t.BLOCK_ROWS, warps):
        sums = sums + tiles[..., begin : begin + warps]
    return one_by_one(one_by_one(sums).astype(np.float64), 0.0).astype(x.dtype)[:, None, :]


def matrix_sums(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """[matrices, numbers] -> [matrices, 1, 1]: lane by lane in float64, then the tree."""
    tiles = blocked(x.astype(np.float64), 1, t.THREADS)  # [matrices, turns, lanes]
    lanes = one_by_one(tiles.swapaxes(1, 2), 0.0)
    return tree(lanes.T, "sum").astype(x.dtype)[:, None, None]


def blocked(x: NDArray[np.floating], axis: int, size: int) -> NDArray[np.floating]:
    """The last axis in blocks, the last one filled up with zeros."""
    count = -(-x.shape[axis] // size)
    padded = np.zeros((*x.shape[:axis], count * size), x.dtype)
    padded[..., : x.shape[axis]] = x
    return padded.reshape(*x.shape[:axis], count, size)


def one_by_one(x: NDArray[np.floating], first: float | None = None) -> NDArray[np.floating]:
    """The sum over the last axis in its order."""
    total = x[..., 0] if first is None else first + x[..., 0]
    for k in range(1, x.shape[-1]):
        total = total + x[..., k]
    return np.asarray(total)


def tensor_total(partials: Doubles, kind: str) -> float:
    """[chunks] of one tensor -> its total: lane by lane, then the tree."""
    count = -(-max(1, len(partials)) // t.THREADS)
    padded = np.full((count, t.THREADS), beginning(kind))
    padded.reshape(-1)[: len(partials)] = partials
    lanes = np.full(t.THREADS, beginning(kind))
    for row in padded:
        lanes = joined(kind, lanes, row)
    return float(tree(lanes, kind))


class Joined(NamedTuple):
    """Totals [tensors, sums] of a launch, the kinds of those sums that are not complete yet, by their places, its plan, and who has
    the other parts of its tensors.
    """

    totals: Doubles
    kinds: Mapping[int, str]
    plan: Plan
    communicator: Communicator | None

    def of(self, *kinds: str) -> list[int]:
        """The places of sums of these kinds."""
        return [k for k, kind in self.kinds.items() if kind in kinds]


def complete(found: Sequence[Joined]) -> None:
    """The totals of every launch become those of whole tensors: by one exchange of all sums, and one of all maxima, for each
    communicator. Then those that are over all tensors become that. Raises InputError, on all processes, where they have not the
    same tensors.
    """
    for communicator in dict.fromkeys(each.communicator for each in found if each.communicator is not None):
        mine = [each for each in found if each.communicator == communicator]
        _exchange(communicator, mine, "sum", "tensor_sum", "global_sum")
        _exchange(communicator, mine, "max", "tensor_max")
    over_all([(each.totals, each.of("global_sum")) for each in found if each.of("global_sum")])


def _exchange(communicator: Communicator, found: Sequence[Joined], op: str, *kinds: str) -> None:
    """One exchange of these columns, behind the head. Libraries differ in what the larger of a number and NaN is, so that NaN goes
    by itself.
    """
    parts = [(each.totals, each.of(*kinds)) for each in found]
    flat = np.concatenate([totals[:, columns].reshape(-1) for totals, columns in parts])
    if not flat.size:
        return
    broken = np.isnan(flat) if op == "max" else np.zeros(0, bool)
    values = np.where(broken, -np.inf, flat) if op == "max" else flat
    own = head([each.plan for each in found])
    message = np.zeros(filled(2 + len(values) + len(broken)))
    message[: 2 + len(values) + len(broken)] = np.concatenate([own, values, broken])
    communicator.all_reduce(message, op)
    if (message[:2] != agreed(own, communicator, op)).any():
        raise differing(communicator, [each.plan for each in found])
    values = message[2 : 2 + len(values)]
    flat = np.where(message[2 + len(values) :][: len(broken)] > 0, np.nan, values) if op == "max" else values
    first = 0
    for totals, columns in parts:
        shape = len(totals), len(columns)
        totals[:, columns] = flat[first : first + math.prod(shape)].reshape(shape)
        first += math.prod(shape)


def head(plans: Sequence[Plan]) -> Doubles:
    """What a message of sums begins with: a digest of whose they are, and its negative. Neither their sums nor their maxima are
    what they should be, on any process, where one of them has gradients of other tensors.
    """
    digest = float(crc32(np.array([plan.digest for plan in plans], np.uint32).tobytes()))
    return np.array([digest, -digest])


def agreed(own: Doubles, communicator: Communicator, op: str) -> Doubles:
    """What comes back where all processes have this head."""
    return own * communicator.size if op == "sum" else own


def filled(count: int) -> int:
    """How long a message of so many numbers is: a process that lacks a few tensors is to send as much as the others."""
    return -(-count // FILLED) * FILLED


def differing(communicator: Communicator, plans: Sequence[Plan]) -> InputError:
    """What is said on each of the processes, which all have found that they do not step the same tensors: names the first one."""
    known = {int(n): name for plan in plans for n, name in zip(plan.table[:, t.TENSOR], plan.labels, strict=True)}
    most = np.array([float(max(known, default=0))])
    communicator.all_reduce(most, "max")
    there = np.zeros(int(most[0]) + 1)
    there[[*known]] = 1.0
    communicator.all_reduce(there)
    some = np.flatnonzero((there > 0) & (there < communicator.size)).tolist()
    if not some:
        return InputError("the processes step the same tensors in another order: expected the same dtypes and options")
    name = known.get(some[0], f"parameter {some[0]}, which has none on rank {communicator.rank}")
    return InputError(
        f"gradient of {name}: on {there[some[0]]:.0f} of {communicator.size} processes that have parts: expected one on all or on "
        "none, where sums over tensors are taken"
    )


def over_all(found: Sequence[tuple[Doubles, list[int]]]) -> None:
    """Of every launch totals [tensors, sums] and which of them: each becomes that over all tensors, the same in whatever order they
    come.
    """
    if found:
        whole = np.concatenate([totals[:, columns] for totals, columns in found])
        made = [total(column) for column in whole.T]
        for totals, columns in found:
            totals[:, columns] = made


def total(values: Doubles) -> float:
    """A sum that does not depend on the order (Demmel & Nguyen 2013): on a grid coarse enough, additions are exact; what that
    leaves out is summed on a second grid, 2**-52 times as fine, and what that leaves out is left.
    """
    largest = np.abs(values).max(initial=0.0)
    if not np.isfinite(largest):
        return float(values.sum())
    count = max(0, len(values) - 1).bit_length()
    exponent = int(largest.view(np.int64) >> 52) - 1022  # all are below 2**exponent
    scaling = 2.0**-128 if exponent + 2 * count > 1000 else 1.0
    if scaling != 1.0:
        values, exponent = values * scaling, exponent - 128
    coarse, fine = 1.5 * power_of_two(exponent + count), 1.5 * power_of_two(exponent + 2 * count - 52)
    first = (values + coarse) - coarse
    rest = values - first
    second = (rest + fine) - fine
    return float(first.sum() + second.sum()) / scaling


def power_of_two(exponent: int) -> float:
    """Zero below the smallest normal number: there every addition is exact as it is."""
    return 2.0**exponent if exponent >= -1022 else 0.0
