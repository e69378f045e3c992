"""The stream that launches go to, where the caller's library is not the backend's own (PyTorch with CuPy, say)."""

from __future__ import annotations

from contextvars import ContextVar

# The raw CUstream, or None: the backend library's current stream.
override: ContextVar[int | None] = ContextVar("gpuopt_stream", default=None)
