"""`gpuopt.stream`: on which stream of CUDA optimizers over arrays step, for streams of any library.

Public; used by nobody else here (`gpuopt.torch` follows torch's current stream). Knows CuPy, whose current stream it sets where
CuPy is installed: states are made there, and gradients copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from gpuopt.errors import DtypeError
from gpuopt.launch.stream import override

EXPECTED = "a stream of CuPy, Numba CUDA, PyTorch or cuda-core, anything with __cuda_stream__, or its address"


@contextmanager
def stream(stream: Any) -> Iterator[None]:
    """A context in which optimizers over arrays step on this stream, on the GPU that it belongs to: their states are made there,
    and their gradients read.

    stream: of CuPy, Numba CUDA, PyTorch or cuda-core, anything with `__cuda_stream__`, or its address as a whole number.
    On entering, it waits for what was put on CuPy's current stream before, such as states that were made outside; what is put on
    other streams afterwards has to wait for it, as with any library. CuPy's current stream is this one inside, where CuPy is
    installed. A stream that is being captured into a CUDA graph waits for nothing. Raises DtypeError for what is no stream.
    """
    address = address_of(stream)
    token = override.set(lambda index: address)
    try:
        with _cupys(address):
            yield
    finally:
        override.reset(token)


def address_of(stream: Any) -> int:
    """Where a stream is. Raises DtypeError for what is none."""
    found = getattr(stream, "__cuda_stream__", None)
    if found is not None:
        return int((found() if callable(found) else found)[1])
    for name in ("cuda_stream", "ptr", "handle"):  # PyTorch, CuPy, Numba CUDA
        if hasattr(stream, name):
            return int(getattr(getattr(stream, name), "value", getattr(stream, name)) or 0)
    if isinstance(stream, bool) or not isinstance(stream, int) or stream < 0:
        raise DtypeError(f"stream: {stream!r}: expected {EXPECTED}")
    return stream


class _Address:
    """A stream of which the address is known, for CuPy."""

    def __init__(self, address: int) -> None:
        self.address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


@contextmanager
def _cupys(address: int) -> Iterator[None]:
    """Make it CuPy's current stream, behind what that has been given; where there is no CuPy, nothing."""
    if find_spec("cupy") is None:
        yield
        return
    import cupy

    before, made = cupy.cuda.get_current_stream(), cupy.cuda.Stream.from_external(_Address(address))
    if address != before.ptr and not _captured(cupy, address, before.ptr):
        made.wait_event(before.record(cupy.cuda.Event(disable_timing=True)))
    with made:
        yield


def _captured(cupy: Any, *addresses: int) -> bool:
    return any(address and cupy.cuda.runtime.streamIsCapturing(address) for address in addresses)
