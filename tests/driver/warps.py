"""What the lanes of a warp do together: shfl.sync, bar.warp.sync and activemask. Semantics: PTX ISA manual.

Called through instructions.py. The first two are done for whole warps only: launch.py has let all their lanes wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from driver.arithmetic import Array

if TYPE_CHECKING:
    from driver.instructions import Instruction
    from driver.launch import Launch, Threads

LANES = 32
ALL = 0xFFFFFFFF
U32 = np.dtype(np.uint32)
MODES = ("bfly", "up", "down", "idx")


def shuffle(instruction: Instruction, launch: Launch, threads: Threads) -> None:
    """shfl.sync: each lane takes the value of another one, or its own where there is no such lane in its segment.

    The predicate in `d|p` says which of both.
    """
    target, _, predicate = instruction.operands[0].partition("|")
    thread = launch.chosen(threads)
    given = [instruction.read(launch, operand, U32, threads) for operand in instruction.operands[1:4]]
    every_lane(instruction, launch, threads)
    values, by, clamp = (np.broadcast_to(x.astype(np.int64), thread.shape) for x in given)
    by, clamp, segment = by & 31, clamp & 31, clamp >> 8 & 31
    lane = launch.lane[thread]
    last = lane & segment | clamp & ~segment
    up = "up" in instruction.words
    if up:
        source = lane - by
    elif "down" in instruction.words:
        source = lane + by
    elif "bfly" in instruction.words:
        source = lane ^ by
    else:
        source = lane & segment | by & ~segment
    there = source >= last if up else source <= last
    taken = np.arange(len(thread)) - lane + np.where(there, source, lane)  # whole warps, lane by lane
    instruction.write(launch, target, values[taken].astype(np.uint32), threads)
    if predicate:
        instruction.write(launch, predicate, there, threads)


def every_lane(instruction: Instruction, launch: Launch, threads: Threads) -> None:
    """bar.warp.sync: nothing more than that all lanes are there. A part of a warp is not known."""
    members: Array = instruction.read(launch, instruction.operands[-1], U32, threads)
    if (members != ALL).any():
        raise NotImplementedError(f"{instruction}: names {int(members[0]):#x}, a part of the warp")


def active(instruction: Instruction, launch: Launch, threads: Threads) -> None:
    """activemask: the lanes that go on together here, which is all that may be said of them."""
    thread = launch.chosen(threads)
    masks = np.zeros(int(launch.warp[-1]) + 1, np.uint32)
    np.bitwise_or.at(masks, launch.warp[thread], np.uint32(1) << launch.lane[thread].astype(np.uint32))
    instruction.write(launch, instruction.operands[0], masks[launch.warp[thread]], threads)


TOGETHER: dict[str, Callable[[Instruction, Launch, Threads], None]] = {
    "shfl": shuffle,
    "bar": every_lane,
    "activemask": active,
}
