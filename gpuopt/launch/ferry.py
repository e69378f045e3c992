"""States that are kept in host memory: how they travel to where a step runs, and back, some of them at a time.

`optim.engine` cuts the tensors of a step into portions (`cut`), with launches of their own. A backend makes a `Ferry` for the
launches of a step; kernels are given its buffers as the arrays of states, and are the same as without. Knows no kernel and no
stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gpuopt.compiler.parts import Role
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch import table as t
from gpuopt.launch.launcher import Launch

PORTION = 64 * 2**20  # bytes of states that travel together; a tensor that has more is a portion of its own
BUFFERS = 2  # one is filled or emptied while kernels work on the other
BOUNDARY = 256  # bytes: where the states of a tensor begin in a buffer, as GPUs allocate


class Move(NamedTuple):
    """The bytes of one state: its address in host memory, its place in the buffer, and whether a step changes it."""

    host: int
    offset: int
    nbytes: int
    written: bool


@dataclass
class Portion:
    """Launches, by their places among those of the step, whose states are in the same buffer at the same time."""

    launches: list[int]
    buffer: int
    moves: list[Move] = field(default_factory=list)
    nbytes: int = 0


def cut(sizes: Sequence[int], limit: int) -> list[int]:
    """The portion of each tensor: whole tensors in their order, up to `limit` bytes of states. sizes: bytes of each."""
    found, portion, full = [], 0, 0
    for size in sizes:
        if full and full + size > limit:
            portion, full = portion + 1, 0
        full += size
        found.append(portion)
    return found


def streamed(launch: Launch) -> list[tuple[int, Role]]:
    """The states of a launch that are kept in host memory, each with its place among the addresses."""
    program = launch.plan.program
    every = {**dict(enumerate(program.roles)), **dict(enumerate(program.blocked, program.first_blocked))}
    return [(place, every[place]) for place in launch.streamed]


class Ferry:
    """The portions of a step and the order of their travels. Where nothing has to travel there is one, and this does nothing.

    Subclasses give `buffers(sizes)`, `bring`, `arrive` and `take`, each of which returns at once where streams do the work.
    """

    def __init__(self, launches: Sequence[Launch]) -> None:
        """Give the launches, whose tables name host memory, the addresses of their states in the buffers."""
        numbers: dict[int, list[int]] = {}
        for k, launch in enumerate(launches):
            numbers.setdefault(launch.portion, []).append(k)
        self.portions = [Portion(found, n % BUFFERS) for n, found in enumerate(numbers.values())]
        placed = [(p, k, self._loaded(p, launches[k])) for p in self.portions for k in p.launches]
        self.moving = any(p.moves for p in self.portions)
        if not self.moving:
            return
        sizes = [max((p.nbytes for p in self.portions if p.buffer == b), default=0) for b in range(BUFFERS)]
        self.places = self.buffers(sizes)
        for portion, k, offsets in placed:
            for role, found in offsets.items():
                launches[k].plan.move(role, self.places[portion.buffer] + found)

    def _loaded(self, portion: Portion, launch: Launch) -> dict[int, Any]:
        """The offsets of the states of a launch, by their places among the addresses. A state lies as far behind a boundary as its
        parameter lies behind a multiple of 16 elements, so that one head makes packed accesses to both of them aligned.
        """
        plan, program = launch.plan, launch.plan.program
        shifts = plan.table[:, t.ADDRESS] // STORAGES[program.roles[0].storage].itemsize % 16
        found = {}
        for place, role in streamed(launch):
            walked = place < len(program.roles)
            itemsize, offsets = STORAGES[role.storage].itemsize, []
            for record, shift in zip(plan.table, shifts.tolist(), strict=True):
                count, width = int(record[t.NUMEL]), int(record[t.WIDTH])
                nbytes = itemsize * (count if role.per == 1 else count // width * -(-width // role.per))
                offset = -(-portion.nbytes // BOUNDARY) * BOUNDARY + walked * shift * itemsize
                portion.moves.append(Move(int(record[t.ADDRESS + place]), offset, nbytes, role.written))
                offsets.append(offset)
                portion.nbytes = offset + nbytes
            found[place] = np.array(offsets, np.int64)
        return found

    def go(self, portions: Sequence[Portion], run: Callable[[Portion], bool], stream: Any = None) -> None:
        """Bring each of these portions, run what uses it, take back what that has changed; the next one is brought meanwhile.

        run(portion): whether it has changed states. stream: of what it runs, where there are streams.
        """
        if not self.moving:
            for portion in portions:
                run(portion)
            return
        for portion in portions[:1]:
            self.bring(portion)
        for portion, ahead in zip(portions, (*portions[1:], None), strict=True):
            if ahead is not None:  # into the buffer that was emptied last
                self.bring(ahead)
            self.arrive(portion, stream)
            self.take(portion, run(portion), stream)

    def buffers(self, sizes: Sequence[int]) -> list[int]:
        """The addresses of buffers of so many bytes."""
        raise NotImplementedError

    def bring(self, portion: Portion) -> None:
        """Copy its states into its buffer, once that is free."""
        raise NotImplementedError

    def arrive(self, portion: Portion, stream: Any) -> None:
        """What is run on the stream from now on finds them there."""
        raise NotImplementedError

    def take(self, portion: Portion, changed: bool, stream: Any) -> None:
        """Its buffer is free once the stream has done what it was given, and, if states were changed, they are copied back."""
        raise NotImplementedError
