"""The stream that launches go to, where it is not the current one of the backend's own library: PyTorch's, or one that the
user has named (`gpuopt.streams`). Read by the GPU backends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

# Gives the raw CUstream of a device by its number; None: the backend library's current stream.
override: ContextVar[Callable[[int], int] | None] = ContextVar("gpuopt_stream", default=None)
