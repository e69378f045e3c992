"""One launch of a kernel: all threads of the grid at once, one array for each register.

Threads are scheduled one basic block at a time, always those that are furthest behind in the text (or, by a seed, at random), so
divergence and reconvergence need no analysis; bar.sync is a rendezvous of all threads of a block, shfl.sync and bar.warp.sync
of all lanes of a warp. Called by the driver.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from driver.arithmetic import BOOL, Array
from driver.instructions import Instruction
from driver.memory import UNSIGNED, Fault, Memory, gather, scatter
from driver.module import Kernel
from driver.warps import LANES

Threads = NDArray[np.int64] | None  # which; None: all of them
RUNNING, WAITING, DONE, MEETING = 0, 1, 2, 3  # WAITING: for its block, MEETING: for its warp
SEVERAL = -1  # of the readers of a byte


def run(
    kernel: Kernel, memory: Memory, grid: int, block: int, arguments: Sequence[bytes], seed: int | None = None
) -> None:
    """Launch and finish. seed: None for threads furthest behind first, else a random order of basic blocks."""
    if block > kernel.threads:
        raise Fault(f"{kernel.name}: {block} threads a block, .maxntid says {kernel.threads}")
    given, expected = [len(a) for a in arguments], [size for _, size in kernel.params.values()]
    if given != expected:
        raise Fault(f"{kernel.name}: arguments of {given} bytes, the kernel has {expected}")
    Launch(kernel, memory, grid, block, arguments, seed).run()


class Launch:
    """Registers of all threads, shared memory of all blocks, and where every thread is."""

    def __init__(
        self, kernel: Kernel, memory: Memory, grid: int, block: int, arguments: Sequence[bytes], seed: int | None
    ) -> None:
        self.kernel, self.memory, self.grid, self.block, self.count = kernel, memory, grid, block, grid * block
        self.thread = np.arange(self.count)
        self.lane = self.thread % block % LANES
        self.warp = self.thread // block * -(-block // LANES) + self.thread % block // LANES
        self.registers: dict[str, Array] = {}
        self.params = np.zeros(kernel.param_bytes + 16, np.uint8)
        for (offset, size), data in zip(kernel.params.values(), arguments, strict=True):
            self.params[offset : offset + size] = np.frombuffer(data, np.uint8)
        self.at, self.state = np.zeros(self.count, np.int64), np.zeros(self.count, np.int8)
        size = grid * max(16, kernel.shared_bytes)
        self.shared = np.full(size, 0xA5, np.uint8)
        self.shared_written = np.zeros(size, bool)
        # Who touched each byte of shared memory since the last barrier: thread + 1.
        self.writer, self.reader = np.zeros(size, np.int64), np.zeros(size, np.int64)
        # Accesses of global memory: (address, size, thread, how often the warp's barrier had been passed).
        self.log: dict[bool, list[tuple[Array, int, Array, Array]]] = {False: [], True: []}
        self.met = np.zeros(self.count, np.int64)
        self.random = None if seed is None else np.random.default_rng(seed)
        self.clock = 0

    def chosen(self, threads: Threads) -> NDArray[np.int64]:
        """The numbers of these threads in the grid."""
        return self.thread if threads is None else threads

    def special(self, name: str, threads: Threads) -> Array:
        """%tid.x and its like; the clock leaps, so that a kernel that waits for it goes on."""
        thread = self.chosen(threads)
        if name == "%clock64":
            self.clock += 10**7
            return 0 * thread + self.clock
        if name == "%laneid":
            return self.lane[thread]
        register, axis = name.split(".")
        if axis != "x":
            return 0 * thread + (register in ("%ntid", "%nctaid"))
        along = {"%tid": thread % self.block, "%ctaid": thread // self.block}
        sizes = {"%ntid": self.block, "%nctaid": self.grid}
        return along[register] if register in along else 0 * thread + sizes[register]

    # ---- memory

    def _in_block(self, address: Array, threads: Threads) -> NDArray[np.int64]:
        """Shared addresses of these threads' own blocks."""
        return address.astype(np.int64) + self.chosen(threads) // self.block * self.kernel.shared_bytes

    def touch(self, space: str, address: Array, size: int, write: bool, threads: Threads, where: object) -> None:
        """Check an access of `size` bytes before it is made."""
        if space == "global":
            self.memory.check(address, size, write, where)
            chosen = self.chosen(threads)
            self.log[write].append((address, size, chosen, self.met[chosen]))
            return
        if (address % np.uint64(size)).any():
            raise Fault(f"{where}: misaligned for {size} bytes")
        limit = self.kernel.param_bytes if space == "param" else self.kernel.shared_bytes
        if (address + np.uint64(size) > np.uint64(limit)).any():
            raise Fault(f"{where}: offset {int(address.max())} is outside of .{space}")
        if space == "shared":
            at = np.add.outer(self._in_block(address, threads), np.arange(size)).reshape(-1)
            self._touch_shared(at, np.repeat(self.chosen(threads) + 1, size), write, where)

    def _touch_shared(self, at: NDArray[np.int64], me: NDArray[np.int64], write: bool, where: object) -> None:
        """Bytes of shared memory and who uses each: no other thread may have used it otherwise since the last barrier."""
        writer, reader = self.writer[at], self.reader[at]
        if ((writer != 0) & (writer != me)).any() or (write and ((reader != 0) & (reader != me)).any()):
            used = "used" if write else "wrote"
            raise Fault(f"{where}: race in shared memory, no barrier since another thread {used} it")
        order = np.argsort(at, kind="stable")
        same = np.flatnonzero(np.diff(at[order]) == 0)
        if write:
            if same.size:
                raise Fault(f"{where}: several threads write one address of shared memory")
            self.writer[at], self.shared_written[at] = me, True
            return
        if not self.shared_written[at].all():
            raise Fault(f"{where}: reads shared memory that nothing has written")
        self.reader[at] = np.where((reader != 0) & (reader != me), SEVERAL, me)
        self.reader[at[order[same]]] = SEVERAL

    def fetch(self, space: str, address: Array, size: int, threads: Threads) -> Array:
        """What lies there, as unsigned numbers."""
        if space == "global":
            return gather(address, size)
        memory = self.params if space == "param" else self.shared
        at = address.astype(np.int64) if space == "param" else self._in_block(address, threads)
        found: Array = memory[at[:, None] + np.arange(size)].view(UNSIGNED[size]).reshape(-1)
        return found

    def put(self, space: str, address: Array, size: int, threads: Threads, values: Array) -> None:
        """Store unsigned numbers."""
        if space == "global":
            scatter(address, size, values)
            return
        at = self._in_block(address, threads)
        self.shared[at[:, None] + np.arange(size)] = np.ascontiguousarray(values).view(np.uint8).reshape(-1, size)

    # ---- threads

    def run(self) -> None:
        """Until every thread has ended; then look for races."""
        with np.errstate(all="ignore"):
            while True:
                if self.random is not None:
                    self._meet()  # at once: others may be far behind
                running = self.state == RUNNING
                if running.any():
                    self._some(running)
                elif not (self._meet() or self._barrier()):
                    break
        self._races()

    def _some(self, running: NDArray[np.bool_]) -> None:
        """One basic block, for the threads that are furthest behind, or at a place chosen at random."""
        places = self.at[running]
        at = int(places.min()) if self.random is None else int(self.random.choice(np.unique(places)))
        group = np.flatnonzero(running & (self.at == at))
        threads = None if len(group) == self.count else group
        if at >= len(self.kernel.blocks):
            raise Fault(f"{self.kernel.name}: ran over the end")
        self.at[group] = at + 1
        for instruction in self.kernel.blocks[at]:
            chosen, some = group, threads
            if instruction.guard:
                name, negated = instruction.guard
                holds = instruction.read(self, name, BOOL, threads) ^ negated
                chosen = group[holds]
                some = threads if len(chosen) == len(group) else chosen
                if not len(chosen):
                    continue
            if instruction.op == "bra":
                self.at[chosen] = self.kernel.labels[instruction.operands[0]]
            elif instruction.op in ("ret", "exit"):
                self.state[chosen] = DONE
            elif instruction.of_warp:
                self.state[chosen] = MEETING
            elif instruction.control:
                if instruction.operands != ["0"]:
                    raise NotImplementedError(repr(instruction))
                self.state[chosen] = WAITING
            else:
                self._do(instruction, some)

    def _do(self, instruction: Instruction, threads: Threads) -> None:
        try:
            instruction.do(self, threads)
        except Fault as fault:
            raise Fault(f"{self.kernel.name}: {fault}") from None

    def _meet(self) -> bool:
        """Do what all lanes of a warp have come to, and let them go on; False where there is no such warp."""
        waiting = np.flatnonzero(self.state == MEETING)
        if not waiting.size:
            return False
        place = self.warp[waiting] * (len(self.kernel.blocks) + 1) + self.at[waiting]
        _, which, lanes = np.unique(place, return_inverse=True, return_counts=True)
        whole = waiting[lanes[which] == LANES]
        for at in np.unique(self.at[whole]):
            group = whole[self.at[whole] == at]
            instruction = self.kernel.blocks[at - 1][-1]
            self._do(instruction, None if len(group) == self.count else group)
            self.met[group] += instruction.op == "bar"
        self.state[whole] = RUNNING
        return bool(whole.size)

    def _stuck(self, thread: int) -> Fault:
        """What this thread's warp waits for, when no thread runs."""
        warp, at = self.warp == self.warp[thread], self.at[thread]
        meeting = warp & (self.state == MEETING)
        seen = {
            "are there": meeting & (self.at == at),
            "wait at another such instruction": meeting & (self.at != at),
            "wait at a barrier of the block": warp & (self.state == WAITING),
            "have ended": warp & (self.state == DONE),
        }
        counts = {what: int(who.sum()) for what, who in seen.items()}
        counts["do not exist"] = LANES - int(warp.sum())
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        where = f"warp {thread % self.block // LANES} of block {thread // self.block}"
        waits = f"{where} waits at `{self.kernel.blocks[at - 1][-1]}` for ever"
        return Fault(f"{self.kernel.name}: {waits}: of {LANES} lanes {said}")

    def _barrier(self) -> bool:
        """Let every block go on all of whose threads wait at one barrier; False where no thread waits."""
        if (self.state == MEETING).any():
            raise self._stuck(int(np.argmax(self.state == MEETING)))
        waiting = (self.state == WAITING).reshape(self.grid, self.block)
        if not waiting.any():
            return False
        at = self.at.reshape(self.grid, self.block)
        for k in np.flatnonzero(waiting.any(axis=1)):
            if not waiting[k].all():
                raise Fault(f"{self.kernel.name}: threads of block {k} have ended while others wait at a barrier")
            if len(np.unique(at[k])) > 1:
                raise Fault(f"{self.kernel.name}: threads of block {k} wait at different barriers")
            part = slice(k * self.kernel.shared_bytes, (k + 1) * self.kernel.shared_bytes)
            self.writer[part] = self.reader[part] = 0
        self.state[waiting.reshape(-1)] = RUNNING
        return True

    def _touched(self, write: bool) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Every byte of global memory that was written or read, by which thread, and when; writes in the order of addresses, the
        earliest first.
        """
        entries = self.log[write]
        if not entries:
            return (np.empty(0, np.int64),) * 3
        spread = [np.add.outer(np.arange(n, dtype=np.int64), at.astype(np.int64)).reshape(-1) for at, n, *_ in entries]
        at, who = np.concatenate(spread), np.concatenate([np.tile(thread, n) for _, n, thread, _ in entries])
        when = np.concatenate([np.tile(met, n) for _, n, _, met in entries])
        order = np.lexsort((when, at)) if write else slice(None)
        return at[order], who[order], when[order]

    def _races(self) -> None:
        """No byte of global memory that one thread writes may be used by another thread of the same launch, but that one of its
        warp may have read it before a barrier of the warp.
        """
        at, who, when = self._touched(True)
        if not at.size:
            return
        if ((np.diff(at) == 0) & (np.diff(who) != 0)).any():
            raise Fault(f"{self.kernel.name}: two threads write one address")
        read, by, then = self._touched(False)
        found = np.minimum(np.searchsorted(at, read), len(at) - 1)
        ordered = (self.warp[who[found]] == self.warp[by]) & (then < when[found])
        clash = (at[found] == read) & (who[found] != by) & ~ordered
        if clash.any():
            raise Fault(
                f"{self.kernel.name}: a thread reads address {int(read[clash][0]):#x}, which another one writes"
            )
