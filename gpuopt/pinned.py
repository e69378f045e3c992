"""Pinned memory of the host by CuPy, for states that are kept there: freed when CUDA allows it.

Called by `arrays`, and by the GPU backends when they free what they have. Python may collect an array at any time, also while a
stream is captured into a CUDA graph: memory that is freed then would end the capture.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

left: list[Any] = []  # what is to be freed


class Owner:
    """Keeps the memory of an array."""

    def __init__(self, nbytes: int) -> None:
        import cupy

        # Not from CuPy's pool, which would give it to others while it may still be copied: to free it waits.
        self.memory = cupy.cuda.PinnedMemory(nbytes)
        self.__array_interface__ = dict(data=(self.memory.ptr, False), shape=(nbytes,), typestr="|u1", version=3)

    def __del__(self) -> None:
        left.append(self.__dict__.pop("memory", None))
        with suppress(Exception):  # at the end of the process
            if not captured():
                free()


def array(nbytes: int) -> NDArray[np.uint8]:
    """So many bytes, as an array of NumPy."""
    return np.asarray(Owner(nbytes))


def captured() -> bool:
    """Whether the current stream is."""
    import cupy

    stream = cupy.cuda.get_current_stream().ptr
    return bool(stream) and bool(cupy.cuda.runtime.streamIsCapturing(stream))


def free() -> None:
    """Free what is left; not while a stream is captured."""
    left.clear()
