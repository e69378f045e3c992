"""Device memory that is memory of this process, with a note of what is allocated and what was ever written.

Used by the driver (allocations, copies) and by launches (loads and stores). Knows nothing of streams or instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Addresses = NDArray[np.uint64]

UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
UNALLOCATED, UNWRITTEN, WRITTEN = 0, 1, 2
FRESH, STALE = 0xA5, 0x5A  # what allocated and freed bytes hold
LOWEST = 1 << 16  # no address of a process is below


class Fault(Exception):
    """What a GPU would report, or would not report and do wrong."""


class _Whole:
    """All memory of this process as one array: only what is indexed is touched."""

    def __init__(self, itemsize: int) -> None:
        count = (1 << 47) // itemsize - LOWEST
        self.__array_interface__ = {
            "data": (LOWEST, False),
            "shape": (count,),
            "typestr": f"<u{itemsize}",
            "version": 3,
        }


WHOLE: dict[int, NDArray[Any]] = {size: np.asarray(_Whole(size)) for size in UNSIGNED}


def _index(addresses: Addresses, size: int) -> NDArray[np.int64]:
    return ((addresses - np.uint64(LOWEST)) >> np.uint64(size.bit_length() - 1)).astype(np.int64)


def gather(addresses: Addresses, size: int) -> NDArray[Any]:
    """What lies at these aligned addresses, as unsigned numbers of `size` bytes."""
    found: NDArray[Any] = WHOLE[size][_index(addresses, size)]
    return found


def scatter(addresses: Addresses, size: int, values: NDArray[Any]) -> None:
    """Write unsigned numbers of `size` bytes to these aligned addresses."""
    WHOLE[size][_index(addresses, size)] = values


class Memory:
    """One arena of `size` bytes, handed out once around before anything is used again: a use of what was freed is seen."""

    def __init__(self, size: int = 1 << 29) -> None:
        raw = np.zeros(size + 4096, np.uint8)
        skip = -raw.ctypes.data % 4096
        self.bytes: Bytes = raw[skip : skip + size]
        self.shadow: Bytes = np.zeros(size, np.uint8)
        self.base = int(self.bytes.ctypes.data)
        self.live: dict[int, int] = {}  # address -> bytes
        self.next, self.around = 0, False

    def allocate(self, size: int) -> int:
        """The address of `size` poisoned bytes, a multiple of 512, with a gap of at least 256 bytes behind them."""
        at, span = self.next, -(-(size + 256) // 512) * 512
        if at + span > self.bytes.size:
            at, self.around = 0, True
        if self.around:
            for begin, length in sorted(self.live.items()):
                begin -= self.base
                if begin < at + span and begin + length > at:
                    at = -(-(begin + length + 256) // 512) * 512
        if at + span > self.bytes.size:
            raise MemoryError("the arena is full")
        self.next = at + span
        self.shadow[at : at + size] = UNWRITTEN
        self.bytes[at : at + size] = FRESH
        self.live[self.base + at] = size
        return self.base + at

    def free(self, address: int) -> None:
        """Poison an allocation; whoever uses it from now on is at fault."""
        if address not in self.live:
            raise Fault(f"{address:#x} is freed, but nothing is allocated there")
        at, size = address - self.base, self.live.pop(address)
        self.shadow[at : at + size] = UNALLOCATED
        self.bytes[at : at + size] = STALE

    def forbid(self, address: int, size: int) -> None:
        """Make these bytes of an allocation faults, as if they belonged to none."""
        self.shadow[address - self.base : address - self.base + size] = UNALLOCATED

    def holds(self, address: int) -> bool:
        """Whether this is an address of the device, live or not."""
        return self.base <= address < self.base + self.bytes.size

    def around_address(self, address: int) -> tuple[int, int] | None:
        """(begin, bytes) of the allocation that this address lies in; None where it lies in none."""
        return next(((b, n) for b, n in self.live.items() if b <= address < b + n), None)

    def span(self, address: int, size: int, write: bool, what: str) -> Bytes:
        """The bytes at an address, for copies: checked, and where they are to be written marked as written."""
        at = address - self.base
        state = self.shadow[at : at + size] if at >= 0 else self.shadow[:0]
        if state.size < size or (state == UNALLOCATED).any():
            raise Fault(f"{what}: {size} bytes at {address:#x} are not all live device memory")
        if write:
            state[:] = WRITTEN
        elif (state == UNWRITTEN).any():
            raise Fault(f"{what}: reads device memory that nothing has written")
        return self.bytes[at : at + size]

    def check(self, addresses: Addresses, size: int, write: bool, where: object) -> None:
        """Every access of `size` bytes, before threads make it: aligned, live, written before it is read."""

        def first(wrong: NDArray[np.bool_]) -> str:
            return f"{where}: address {int(addresses[np.argmax(wrong)]):#x}"

        crooked = (addresses & np.uint64(size - 1)) != 0
        if crooked.any():
            raise Fault(f"{first(crooked)} is misaligned for {size} bytes")
        at = addresses.astype(np.int64) - self.base
        if at.min() < 0 or at.max() + size > self.bytes.size:
            raise Fault(f"{first((at < 0) | (at + size > self.bytes.size))} is no memory of this device")
        # Aligned, so that one word of the shadow stands for all bytes of the access, whatever its width up to 8.
        for part in range(0, size, 8):
            width = min(size, 8)
            states = self.shadow.view(UNSIGNED[width])
            words = (at + part) // width
            state = states[words].view(np.uint8).reshape(-1, width)
            if (state == UNALLOCATED).any():
                raise Fault(f"{first((state == UNALLOCATED).any(axis=1))} is outside of every live allocation")
            if write:
                states[words] = int.from_bytes(bytes([WRITTEN] * width), "little")
            elif (state == UNWRITTEN).any():
                raise Fault(f"{first((state == UNWRITTEN).any(axis=1))} is read, but nothing has written it")
