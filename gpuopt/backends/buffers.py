"""Device memory that Python may let go of at any time. Used by what lives on a GPU between steps; knows no library of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuopt.backends.device import DeviceBackend

Upload = Callable[[Any, Any, Any], None]  # of a Staging or an Owned


class DeviceBuffers:
    """Device memory that lives as long as this, or a copy of it, and until it may be freed: Python may collect this at any time, in
    a capture too, where memory may not be freed. The backend does it later.
    """

    def __init__(self, backend: DeviceBackend) -> None:
        self.backend, self.key = backend, object()
        backend.buffers[self.key] = []

    def __copy__(self) -> Any:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, key=object())
        self.backend.buffers[made.key] = list(self.backend.buffers[self.key])
        return made

    def __del__(self) -> None:
        self.backend.retired.append(self.key)

    def allocate(self, nbytes: int) -> Any:
        buffer = self.backend.runtime.allocate(max(8, nbytes))
        self.backend.buffers[self.key].append(buffer)
        return buffer

    def filled(self, array: Any, stream: Any, upload: Upload | None = None) -> Any:
        buffer = self.allocate(array.nbytes)
        (upload or self.backend.staging.upload)(buffer, array, stream)
        return buffer

    def address(self, buffer: Any) -> int:
        return self.backend.runtime.address(buffer)
