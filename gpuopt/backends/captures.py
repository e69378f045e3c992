"""What a step that is captured into a CUDA graph needs: memory during the capture, and word of the graph's end.

Called by `device`. Asks the driver by its C functions, so it is the same for every CUDA library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from numpy.typing import NDArray

from gpuopt import driver
from gpuopt.backends.runtime import Runtime, raw

RELAXED = 2  # CUstreamCaptureMode
NO_DESTRUCTOR_SYNC = 1  # CUuserObject_flags
MOVE = 1  # CUuserObjectRetain_flags: the graph takes over the reference


@cache
def _c_library() -> Any:
    made = ctypes.CDLL(None)
    made.calloc.restype, made.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    return made


class Life:
    """Of the graph that a stream is being captured into: whether it may still be replayed.

    The graph, and all that is instantiated from it, hold a user object of CUDA. When the last of them is gone and its work is
    done, CUDA calls a function of C with an address; no CUDA may be called there, and Python might wait for a lock that is
    never given back. `time` of the C library is such a function: it writes the time, which is not 0, into the word at the address.
    The word is memory that nobody frees before, not even Python at its end. Where the driver gives no user object (before CUDA
    11.3), the graph is taken to live as long as the process.
    """

    def __init__(self, stream: int) -> None:
        self._address = _c_library().calloc(1, 8)
        self._word = ctypes.c_int64.from_address(self._address)
        loaded, status = driver.library(), ctypes.c_int()
        graph, thing = ctypes.c_void_p(), ctypes.c_void_p()
        end = ctypes.cast(_c_library().time, ctypes.c_void_p)
        try:
            refused = loaded.cuStreamGetCaptureInfo_v2(
                ctypes.c_void_p(stream), ctypes.byref(status), None, ctypes.byref(graph), None, None
            ) or loaded.cuUserObjectCreate(
                ctypes.byref(thing), ctypes.c_void_p(self._address), end, 1, NO_DESTRUCTOR_SYNC
            )
            if not refused:
                loaded.cuGraphRetainUserObject(graph, thing, 1, MOVE)
        except AttributeError:
            pass

    @property
    def over(self) -> bool:
        return self._word.value != 0

    def __del__(self) -> None:
        if self.over:  # else CUDA will still write there
            _c_library().free(self._address)


class Owned:
    """The uploads of a step that is being captured: each from pinned memory of its own, which every replay reads again."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.kept: list[Any] = []

    def upload(self, buffer: Any, array: NDArray[Any], stream: Any) -> None:
        """As Staging.upload."""
        data = raw(array)
        if data.size:
            pinned = self.runtime.pinned(data.size)
            pinned[:] = data
            self.runtime.upload(buffer, pinned, stream)
            self.kept.append((buffer, pinned))


@cache
def _exchange_mode() -> Any:
    """cuThreadExchangeStreamCaptureMode, or what does nothing where there is no driver."""
    return getattr(driver.library(), "cuThreadExchangeStreamCaptureMode", lambda mode: 0)


@contextmanager
def relaxed() -> Iterator[None]:
    """Memory can be allocated and freed inside while a stream is captured: by itself CUDA forbids it and ends the capture."""
    mode = ctypes.c_int(RELAXED)  # each call exchanges it with the mode of this thread
    _exchange_mode()(ctypes.byref(mode))
    try:
        yield
    finally:
        _exchange_mode()(ctypes.byref(mode))
