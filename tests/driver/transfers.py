"""The calls about memory: device memory, pinned memory of the host, copies and fills in the order of streams."""

from __future__ import annotations

import ctypes
from bisect import bisect_right, insort

import numpy as np

from driver.answers import CONTEXT, DEVICES
from driver.memory import Bytes, Fault, Memory
from driver.streams import Stream, Streams
from driver.words import INVALID_VALUE, Words, put

DEVICE, HOST = 2, 1  # CUmemorytype and cudaMemoryType, where they agree


class Transfers(Streams):
    """allocations: how many were asked for, of memory and events. failing: the number of the first one that is refused, as are all
    behind it until it is 0 again: so a test can run out of memory anywhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pinned: dict[int, tuple[int, Bytes]] = {}
        self.places: list[int] = []  # their addresses, in order
        self.allocations, self.failing = 0, 0

    def cuMemAlloc(self, a: Words) -> int | None:
        if not a[1]:
            return INVALID_VALUE
        self.allocated()
        put(a[0], self.memory.allocate(a[1]))
        return None

    def allocated(self) -> None:
        """One more. Raises MemoryError where none is left."""
        self.allocations += 1
        if 0 < self.failing <= self.allocations:
            raise MemoryError(f"allocation {self.allocations} is to fail")

    def memory_of(self, address: int) -> Memory:
        """The device memory that an address is in. Raises Fault where it is in none."""
        found = self.owner(address)
        if found is None:
            raise Fault(f"{address:#x} is no device memory")
        return self.memories[found]

    def cuMemFree(self, a: Words) -> None:
        if a[0]:
            self.everything(self.owner(a[0]) or 0)  # as a driver does
            self.memory_of(a[0]).free(a[0])

    def cuMemFreeAsync(self, a: Words) -> None:
        self.enqueue(self.stream(a[1]), lambda: self.memory_of(a[0]).free(a[0]))

    def cuMemGetInfo(self, a: Words) -> None:
        put(a[0], self.memory.bytes.size // 2)
        put(a[1], self.memory.bytes.size)

    def cuEventCreate(self, a: Words) -> None:
        self.allocated()
        super().cuEventCreate(a)

    def cuMemHostAlloc(self, a: Words) -> None:
        self.allocated()
        raw = np.full(a[1] + 512, 0xEE, np.uint8)
        address = int(raw.ctypes.data) + -raw.ctypes.data % 256
        self.pinned[address] = (a[1], raw)
        insort(self.places, address)
        put(a[0], address)

    def cuMemFreeHost(self, a: Words) -> None:
        for device in range(DEVICES):
            self.everything(device)
        self.places.remove(a[0])
        self.pinned.pop(a[0])[1][:] = 0x5A

    def cuMemHostGetDevicePointer(self, a: Words) -> None:
        put(a[0], a[1])

    def cuMemGetAddressRange(self, a: Words) -> int | None:
        owner = self.owner(a[2])
        found = None if owner is None else self.memories[owner].around_address(a[2])
        if found is None:
            return INVALID_VALUE
        for at, value in zip(a[:2], found, strict=True):
            if at:
                put(at, value)
        return None

    # ---- what an address is

    def pageable(self, address: int) -> bool:
        """Whether this is memory of the host that is not pinned."""
        if self.owner(address) is not None:
            return False
        at = bisect_right(self.places, address) - 1
        return at < 0 or address >= self.places[at] + self.pinned[self.places[at]][0]

    def cuPointerGetAttribute(self, a: Words) -> int | None:
        if self.pageable(a[2]):
            return INVALID_VALUE
        owner = self.owner(a[2])
        device = self.device if owner is None else owner
        kind = HOST if owner is None else DEVICE
        values = {1: (CONTEXT + device, 8), 2: (kind, 4), 3: (a[2], 8), 8: (0, 1), 9: (device, 4)}
        put(a[0], *values[a[1] & 0xFFFFFFFF])
        return None

    def cudaPointerGetAttributes(self, a: Words) -> None:
        owner, pageable = self.owner(a[1]), self.pageable(a[1])
        ctypes.memset(a[0], 0, 24)
        put(a[0], DEVICE if owner is not None else 0 if pageable else HOST, 4)
        put(a[0] + 4, owner or 0, 4)
        put(a[0] + 8, 0 if pageable else a[1])
        put(a[0] + 16, 0 if owner is not None else a[1])

    # ---- copies

    def copy(self, target: int, source: int, size: int) -> None:
        """At once."""
        what = f"copy of {size} bytes to {target:#x}"
        data = ctypes.string_at(source, size)
        for address, write in ((source, False), (target, True)):
            if self.owner(address) is not None:
                self.memory_of(address).span(address, size, write, what)
        ctypes.memmove(target, data, size)

    def copy_async(self, target: int, source: int, size: int, stream: Stream) -> None:
        """In stream order. From pageable memory the driver reads at once; into pageable memory it waits."""
        if self.pageable(source):
            kept = ctypes.create_string_buffer(ctypes.string_at(source, size), size)
            self.enqueue(stream, lambda: self.copy(target, ctypes.addressof(kept), size))
        else:
            self.enqueue(stream, lambda: self.copy(target, source, size))
        if self.pageable(target):
            if stream.capture is not None:
                raise Fault("a copy into pageable memory while a stream is captured")
            last = self.order
            try:
                self.drain(stream)
            except BaseException:
                stream.queue = [entry for entry in stream.queue if entry[0] != last]  # its target may go now
                raise

    def cuMemcpyHtoD(self, a: Words) -> None:
        if a[2]:
            self.copy_async(a[0], a[1], a[2], self.default)
            self.drain(self.default)

    def cuMemcpyDtoD(self, a: Words) -> None:
        self.copy_async(a[0], a[1], a[2], self.default)

    def cuMemcpyHtoDAsync(self, a: Words) -> None:
        self.copy_async(a[0], a[1], a[2], self.stream(a[3]))

    def cudaMemcpyAsync(self, a: Words) -> None:
        self.copy_async(a[0], a[1], a[2], self.stream(a[4]))  # a[3]: which way

    # ---- fills

    def fill(self, a: Words, width: int, stream: Stream) -> None:
        """a: address, value of `width` bytes, how often."""
        address, value, count = a[0], a[1] & ((1 << 8 * width) - 1), a[2]
        data = value.to_bytes(width, "little") * count

        def work() -> None:
            self.memory_of(address).span(address, len(data), True, "memset")[:] = np.frombuffer(data, np.uint8)

        self.enqueue(stream, work)

    def cuMemsetD8(self, a: Words) -> None:
        self.fill(a, 1, self.default)

    def cuMemsetD16(self, a: Words) -> None:
        self.fill(a, 2, self.default)

    def cuMemsetD32(self, a: Words) -> None:
        self.fill(a, 4, self.default)

    def cuMemsetD8Async(self, a: Words) -> None:
        self.fill(a, 1, self.stream(a[3]))

    def cuMemsetD16Async(self, a: Words) -> None:
        self.fill(a, 2, self.stream(a[3]))

    def cuMemsetD32Async(self, a: Words) -> None:
        self.fill(a, 4, self.stream(a[3]))
