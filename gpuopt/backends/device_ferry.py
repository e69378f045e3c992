"""States that are kept in host memory, of kernels on a GPU: copied on streams of their own while kernels run on the caller's.

Made by `device`. The host waits for nothing: events say when a buffer is full, when kernels are done with it, and when it is free.
Knows no library of arrays; memory and streams are a `Runtime`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING, Any
from weakref import ref

from gpuopt.backends.buffers import DeviceBuffers
from gpuopt.backends.runtime import Runtime
from gpuopt.launch.ferry import BUFFERS, PORTION, Ferry, Portion, streamed
from gpuopt.launch.launcher import Launch

if TYPE_CHECKING:
    from gpuopt.backends.device import DeviceBackend


class Berth:
    """A buffer: its memory, which grows as portions ask for it, and the events of what happens to it."""

    def __init__(self, runtime: Runtime) -> None:
        self.memory: Any = None
        self.size = 0
        self.full, self.used, self.free = (runtime.event() for _ in range(3))


class Harbour:
    """What all ferries of a device share: two streams, of copies to the device and of copies back, and two buffers. taken: when the
    last states were copied back, which the next step may ask for in another buffer. lock: one step at a time has the buffers.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.into, self.back = runtime.side_stream(), runtime.side_stream()
        self.berths = [Berth(runtime) for _ in range(BUFFERS)]
        self.taken, self.lock = runtime.event(), RLock()
        self.users: set[object] = set()  # the keys of the ferries

    def settle(self, live: Container[object]) -> None:
        """Free the buffers where no ferry is left. live: the keys of what there is."""
        with self.lock:
            self.users = {key for key in self.users if key in live}
            for berth in () if self.users else self.berths:
                berth.memory, berth.size = None, 0


class DeviceFerry(Ferry, DeviceBuffers):
    """A Ferry by asynchronous copies. It keeps what it copies from and to until it may go: see `DeviceBackend.release`."""

    def __init__(self, backend: DeviceBackend, launches: Sequence[Launch]) -> None:
        DeviceBuffers.__init__(self, backend)
        self.alive = ref(backend)
        self.runtime, self.harbour = backend.runtime, backend.harbour()
        names = [[role.name for _, role in streamed(launch)] for launch in launches]
        held = [of[n] for launch, each in zip(launches, names, strict=True) for of in launch.arrays for n in each]
        backend.buffers[self.key] += held
        with self.harbour.lock:
            self.harbour.users.add(self.key)
            Ferry.__init__(self, launches)

    def __del__(self) -> None:
        """States that torch frees are given to others at once, and may still be copied."""
        super().__del__()
        backend = self.alive()
        if backend is not None:  # else it is collected too, and its events may be gone
            with suppress(Exception):  # at the end of the process
                backend.tidy()

    def buffers(self, sizes: Sequence[int]) -> list[int]:
        """See Ferry. What was there before lives as long as the ferries that use it."""
        for berth, size in zip(self.harbour.berths, sizes, strict=True):
            if size > berth.size:
                size = max(size, min(2 * berth.size, PORTION))
                berth.memory, berth.size = self.runtime.allocate(size), size
            self.backend.buffers[self.key].append(berth.memory)
        return [
            self.address(berth.memory) if size else 0 for berth, size in zip(self.harbour.berths, sizes, strict=True)
        ]

    def go(self, portions: Sequence[Portion], run: Callable[[Portion], bool], stream: Any = None) -> None:
        """See Ferry."""
        with self.harbour.lock:
            self.runtime.wait_event(self.harbour.into, self.harbour.taken)
            super().go(portions, run, stream)

    def bring(self, portion: Portion) -> None:
        """See Ferry."""
        berth, into = self.harbour.berths[portion.buffer], self.harbour.into
        self.runtime.wait_event(into, berth.free)
        for move in portion.moves:
            self.runtime.copy(self.places[portion.buffer] + move.offset, move.host, move.nbytes, into)
        berth.full.record(into)

    def arrive(self, portion: Portion, stream: Any) -> None:
        """See Ferry."""
        self.runtime.wait_event(stream, self.harbour.berths[portion.buffer].full)

    def take(self, portion: Portion, changed: bool, stream: Any) -> None:
        """See Ferry."""
        berth, back = self.harbour.berths[portion.buffer], self.harbour.back
        berth.used.record(stream)
        self.runtime.wait_event(back, berth.used)
        for move in portion.moves if changed else ():
            if move.written:
                self.runtime.copy(move.host, self.places[portion.buffer] + move.offset, move.nbytes, back)
        berth.free.record(back)
        self.harbour.taken.record(back)
