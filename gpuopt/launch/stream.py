"""The stream that launches go to, where the caller's library is not the backend's own (PyTorch with CuPy, say)."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

# Gives the raw CUstream of the current device, one for each device that a step visits; None: the backend library's current stream.
override: ContextVar[Callable[[], int] | None] = ContextVar("gpuopt_stream", default=None)
