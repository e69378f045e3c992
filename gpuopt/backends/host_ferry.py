"""States that are "kept in host memory" where everything is: copied into buffers and back, in the order that a GPU's streams have.

Made by `host`. Nothing is gained by it; it shows the order, and that it changes no bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuopt.launch.ferry import BOUNDARY, Ferry, Portion
from gpuopt.native.memory import memory


class HostFerry(Ferry):
    """A Ferry of plain copies."""

    def buffers(self, sizes: Sequence[int]) -> list[int]:
        """See Ferry."""
        self.memory = [np.empty(size + BOUNDARY, np.uint8) for size in sizes]
        return [-(-each.ctypes.data // BOUNDARY) * BOUNDARY for each in self.memory]

    def bring(self, portion: Portion) -> None:
        """See Ferry."""
        for there, host, _ in self._views(portion):
            there[...] = host

    def arrive(self, portion: Portion, stream: Any) -> None:
        """They are there."""

    def take(self, portion: Portion, changed: bool, stream: Any) -> None:
        """See Ferry."""
        for there, host, written in self._views(portion):
            if changed and written:
                host[...] = there

    def _views(self, portion: Portion) -> list[tuple[Any, Any, bool]]:
        """Of each state the bytes in the buffer and in host memory, and whether a step changes them."""
        at, byte = self.places[portion.buffer], np.dtype(np.uint8)
        return [
            (memory(at + offset, byte, nbytes), memory(host, byte, nbytes), written)
            for host, offset, nbytes, written in portion.moves
        ]
