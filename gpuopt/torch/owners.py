"""Matrices of which each process has a part, stepped whole by one of them each: parts travel to the owners packed, in one exchange,
and what the steps made of them travels back in another. What cannot be packed so, cut along several dimensions of a mesh, say, is
brought together everywhere, matrix by matrix, and every process steps it.

Used by the optimizer for rules that look at rows, columns or products of matrices, and by its change trackers. Parameters and
states stay cut as they were: an owner has whole ones beside, in which the engine steps; it has nothing of those of others. Owners
are chosen by size, so that all have about as much to do. Knows no arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil, prod
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist

from gpuopt.errors import InputError
from gpuopt.launch.shards import Shard
from gpuopt.rules.language import Rule
from gpuopt.torch import shards

EVEN = 16  # bytes: where each piece begins in a message


def packable(p: torch.Tensor) -> bool:
    """Whether a cut parameter can be sent to one process with others: it is cut along one of its first two axes, along one
    dimension of its mesh, in even pieces.
    """
    of: Any = p
    cut = shards.cuts(of)
    return len(cut) == 1 and cut[0][1] < 2 and type(of.placements[cut[0][0]]).__name__ == "Shard"


@dataclass
class Piece:
    """A tensor of which each process has a part. whole: all of it on the owner, nothing elsewhere; part: of this process."""

    shape: tuple[int, ...]
    whole: torch.Tensor
    part: torch.Tensor
    returns: bool = True  # whether steps change it

    def extent(self, axis: int, size: int, rank: int) -> tuple[int, int]:
        """The first index of the part of a process, of so many, and how many; of one number all have all."""
        if not self.shape:
            return 0, 1
        chunk = ceil(self.shape[axis] / size)
        first = min(rank * chunk, self.shape[axis])
        return first, min(chunk, self.shape[axis] - first)

    def of(self, axis: int, size: int, rank: int) -> torch.Tensor:
        """The part of a process in the whole."""
        return self.whole.narrow(axis, *self.extent(axis, size, rank)) if self.shape else self.whole

    def nbytes(self, axis: int, size: int, rank: int) -> int:
        """Of the part of a process, in a message."""
        others = prod(n for k, n in enumerate(self.shape) if k != axis)
        return ceil(self.extent(axis, size, rank)[1] * others * self.part.itemsize / EVEN) * EVEN


@dataclass
class Matrix:
    """A parameter whose steps are made by one process, or by all of them. axis: that it is cut along; mine: whether this one steps
    it; shard: how the engine has it.
    """

    axis: int
    owner: int
    mine: bool
    shard: Shard
    pieces: dict[str, Piece] = field(default_factory=dict)

    @property
    def work(self) -> torch.Tensor:
        """What the engine steps."""
        return self.pieces["p"].whole

    def piece(
        self, name: str, part: torch.Tensor, shape: tuple[int, ...], beside: bool = False, returns: bool = True
    ) -> torch.Tensor:
        """Take one more tensor along; returns it as the engine has it. beside: whether it is of no rows of the matrix, but lies
        beside it.
        """
        here = shape if self.mine else (0, *shape[not beside :])
        whole = torch.empty(here, dtype=part.dtype, device=part.device) if shape else part
        self.pieces[name] = Piece(shape, whole, part, returns)
        return whole

    def states(
        self, rule: Rule, p: torch.Tensor, parts: Mapping[str, torch.Tensor], group: Mapping[str, Any]
    ) -> dict[str, torch.Tensor]:
        """States of a parameter of this group as the engine has them."""
        known, made = {s.name: s for s in rule.states}, {}
        for name, part in parts.items():
            shape = tuple(p.shape) if known[name].walked else rule.shape_of(known[name], tuple(p.shape), group)
            made[name] = self.piece(name, part, shape, not known[name].large)
        return made


class Owners:
    """The matrices that are cut along one dimension of a mesh. exchanges: of all of them together, so far."""

    exchanges = 0

    def __init__(self, group: Any) -> None:
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        self.matrices: list[Matrix] = []
        self.digest = 0  # of which parameters they are

    def send(self) -> None:
        """Bring parts to the owners."""
        pieces = [(m, piece) for m in self.matrices for piece in m.pieces.values() if piece.shape]
        there = [
            [(m, piece, piece.part, self.rank) for m, piece in pieces if m.owner == rank] for rank in range(self.size)
        ]
        here = [
            [(m, piece, piece.of(m.axis, self.size, rank), rank) for m, piece in pieces if m.mine]
            for rank in range(self.size)
        ]
        self._exchange(there, here)

    def bring(self) -> None:
        """Bring parameters and states from the owners."""
        pieces = [(m, piece) for m in self.matrices for piece in m.pieces.values() if piece.returns]
        there = [
            [(m, piece, piece.of(m.axis, self.size, rank), rank) for m, piece in pieces if m.mine]
            for rank in range(self.size)
        ]
        here = [
            [(m, piece, piece.part, self.rank) for m, piece in pieces if m.owner == rank] for rank in range(self.size)
        ]
        self._exchange(there, here)

    def _exchange(self, there: Sequence[Sequence[Any]], here: Sequence[Sequence[Any]]) -> None:
        """One exchange: to each process what stands in `there`, from each into what stands in `here`; (matrix, piece, tensor, the
        process whose part it is). On the host, where nobody has to wait for it, each message begins with a digest of the matrices.
        Raises InputError where another process has others.
        """
        device = self.matrices[0].pieces["p"].part.device
        head = EVEN if device.type == "cpu" else 0
        counts = [[head + sum(self._bytes(each) for each in of) for of in side] for side in (there, here)]
        sent, got = (torch.empty(sum(of), dtype=torch.uint8, device=device) for of in counts)
        for words in self._heads(sent, counts[0], head):
            words.fill_(self.digest)
        for tensor, place in self._places(there, sent, head):
            place.copy_(tensor)
        dist.all_to_all_single(got, sent, counts[1], counts[0], self.group)
        Owners.exchanges += 1
        others = [k for k, words in enumerate(self._heads(got, counts[1], head)) if (words != self.digest).any()]
        if others:
            raise InputError(
                f"rank {self.rank} of {self.size} steps {len(self.matrices)} matrices of which each process has a part, and rank "
                f"{others[0]} steps others: expected gradients of the same parameters on all of them"
            )
        for tensor, place in self._places(here, got, head):
            tensor.copy_(place)

    def _heads(self, message: torch.Tensor, counts: Sequence[int], head: int) -> list[torch.Tensor]:
        """What stands in front of what is sent to, or comes from, each process."""
        firsts = accumulate(counts, initial=0)
        return [message[k : k + head].view(torch.int64) for k, _ in zip(firsts, counts, strict=False) if head]

    def _bytes(self, each: Any) -> int:
        matrix, piece, _, rank = each
        return int(piece.nbytes(matrix.axis, self.size, rank))

    def _places(
        self, sides: Sequence[Sequence[Any]], message: torch.Tensor, head: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each tensor with its place in a message."""
        found, first = [], 0
        for of in sides:
            first += head
            for each in of:
                tensor = each[2]
                place = message[first : first + tensor.numel() * tensor.itemsize]
                found.append((tensor, place.view(tensor.dtype).view(tensor.shape)))
                first += self._bytes(each)
        return found


class Everyone:
    """The matrices that every process brings together and steps. gathers: of tensors of all of them, so far."""

    gathers = 0

    def __init__(self) -> None:
        self.matrices: list[Matrix] = []
        self.params: list[torch.Tensor] = []

    def add(self, p: torch.Tensor) -> Matrix:
        """One more."""
        self.params.append(p)
        self.matrices.append(made := Matrix(0, 0, True, Shard(tuple(p.shape))))
        return made

    def send(self) -> None:
        """Bring all parts together."""
        for p, piece in self._pieces():
            if piece.shape:
                piece.whole.copy_(shards.gathered(shards.like(piece.part, p, piece.shape)))
                Everyone.gathers += 1

    def bring(self) -> None:
        """Keep the parts of this process."""
        for p, piece in self._pieces():
            if piece.shape and piece.returns:
                piece.part.copy_(shards.part_of(piece.whole, p, "a matrix"))

    def _pieces(self) -> list[tuple[torch.Tensor, Piece]]:
        both = zip(self.params, self.matrices, strict=True)
        return [(p, piece) for p, matrix in both for piece in matrix.pieces.values()]


class Gathering:
    """All matrices of an optimizer that are stepped by their owners, or by everyone, by parameter."""

    def __init__(self, params: Mapping[Any, int]) -> None:
        """params: in the same order on all processes, each with its place in the optimizer."""
        self.of: dict[torch.Tensor, Matrix] = {}
        self.groups: dict[Any, Owners | Everyone] = {}
        loads: dict[Any, list[int]] = {}
        everyone = Everyone()
        for p in sorted(params, key=lambda p: -p.numel()):
            made = self.of[p] = self._owned(p, params[p], loads) if packable(p) else everyone.add(p)
            local = shards.local(p)
            made.piece("p", local, tuple(p.shape))
            made.piece("g", local, tuple(p.shape), returns=False)
        if everyone.matrices:
            self.groups[None] = everyone

    def _owned(self, p: Any, place: int, loads: dict[Any, list[int]]) -> Matrix:
        """A matrix for the process that has least to do so far."""
        ((dim, axis),) = shards.cuts(p)
        group = p.device_mesh.get_group(dim)
        owners: Any = self.groups.setdefault(group, Owners(group))
        load = loads.setdefault(group, [0] * owners.size)
        owner = load.index(min(load))
        load[owner] += p.numel()
        shard = Shard(tuple(p.shape), communicator=shards.communicator(p.device_mesh, (dim,)))
        owners.matrices.append(made := Matrix(axis, owner, owner == owners.rank, shard))
        owners.digest = crc32(f"{place} {tuple(p.shape)}".encode(), owners.digest)
        return made

    def __contains__(self, p: torch.Tensor) -> bool:
        return p in self.of

    def gradients(self, params: Sequence[torch.Tensor], given: list[torch.Tensor]) -> list[torch.Tensor]:
        """The gradients as the engine has them, of these which this process has."""
        made = list(given)
        for k, p in enumerate(params if self.of else ()):
            if p in self.of:
                piece = self.of[p].pieces["g"]
                if given[k].dtype != piece.whole.dtype:
                    piece.whole = piece.whole.to(given[k].dtype)
                piece.part, made[k] = given[k], piece.whole
        return made

    @torch.no_grad()
    def send(self) -> None:
        """Before a step."""
        for owners in self.groups.values():
            owners.send()
            for matrix in owners.matrices:
                matrix.pieces["g"].part = matrix.pieces["p"].part  # the gradient's memory is the caller's

    @torch.no_grad()
    def bring(self) -> None:
        """Behind it."""
        for owners in self.groups.values():
            owners.bring()
