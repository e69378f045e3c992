"""The calls about devices and contexts: how many there are, which one a thread works on, and whose memory an address is.

PTX_DEVICES says how many. Each has memory of its own; none can reach another's, as without peer access.
"""

from __future__ import annotations

import ctypes
import threading

from driver.answers import ATTRIBUTES, CONTEXT, DEVICES, POOL
from driver.memory import Memory
from driver.words import INVALID_DEVICE, NOT_FOUND, NOT_SUPPORTED, Words, low, put

NAME = b"PTX interpreter"


class Devices:
    """Every thread has a stack of contexts, as the driver's API says; without one it works on the first device."""

    def __init__(self) -> None:
        self.memories = [Memory() for _ in range(DEVICES)]
        self.threads = threading.local()

    @property
    def contexts(self) -> list[int]:
        """The stack of this thread."""
        if not hasattr(self.threads, "contexts"):
            self.threads.contexts = []
        found: list[int] = self.threads.contexts
        return found

    @property
    def device(self) -> int:
        """The device that this thread works on."""
        return self.contexts[-1] - CONTEXT if self.contexts else 0

    @property
    def memory(self) -> Memory:
        """That device's."""
        return self.memories[self.device]

    def owner(self, address: int) -> int | None:
        """The device whose memory this address is in; None for memory of the host."""
        return next((k for k, memory in enumerate(self.memories) if memory.holds(address)), None)

    # ---- devices

    def cuDeviceGet(self, a: Words) -> int | None:
        if low(a[1]) >= DEVICES:
            return INVALID_DEVICE
        put(a[0], low(a[1]), 4)
        return None

    def cuGetExportTable(self, a: Words) -> int:
        return NOT_FOUND  # NVRTC asks for one and goes on without

    def cuDeviceGetName(self, a: Words) -> None:
        ctypes.memmove(a[0], NAME + b"\0", len(NAME) + 1)

    def cuDeviceGetUuid(self, a: Words) -> None:
        ctypes.memmove(a[0], bytes([low(a[1]), *range(15)]), 16)

    def cuDeviceGetLuid(self, a: Words) -> int:
        return NOT_SUPPORTED

    def cuDeviceGetPCIBusId(self, a: Words) -> None:
        ctypes.memmove(a[0], b"0000:%02x:00.0\0" % low(a[2]), 13)

    def cuDeviceGetAttribute(self, a: Words) -> None:
        put(a[0], ATTRIBUTES.get(low(a[1]), 0), 4)

    def cuDeviceGetDefaultMemPool(self, a: Words) -> None:
        put(a[0], POOL + low(a[1]))

    def cuDeviceTotalMem(self, a: Words) -> None:
        put(a[0], self.memories[low(a[1])].bytes.size)

    def cudaSetDevice(self, a: Words) -> int | None:
        if low(a[0]) >= DEVICES:
            return INVALID_DEVICE
        self.contexts[-1:] = [CONTEXT + low(a[0])]
        return None

    # ---- contexts

    def cuDevicePrimaryCtxRetain(self, a: Words) -> None:
        put(a[0], CONTEXT + low(a[1]))

    def cuCtxGetDevice(self, a: Words) -> None:
        put(a[0], self.device, 4)

    def cuCtxGetCurrent(self, a: Words) -> None:
        put(a[0], self.contexts[-1] if self.contexts else 0)

    def cuCtxPushCurrent(self, a: Words) -> None:
        self.contexts.append(a[0])

    def cuCtxPopCurrent(self, a: Words) -> None:
        popped = self.contexts.pop()
        if a[0]:
            put(a[0], popped)

    def cuCtxSetCurrent(self, a: Words) -> None:
        self.contexts[-1:] = [a[0]] if a[0] else []
