"""Streams that are known by address only, graphs and arrays for tests of captured steps. Used by the tests of graphs and streams.

Nothing here touches CUDA when it is imported.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

import gpuopt
from gpuopt.launch.stream import override

BACKENDS = ("cupy", "numba-cuda")
NORMS: dict[str, Any] = {"max_grad_norm": 1.0, "skip_nonfinite": True}
COUNT = 3000


def device_array(seed: int, count: int = COUNT, dtype: str = "float32") -> Any:
    import cupy

    made = cupy.asarray(np.random.default_rng(seed).standard_normal(count).astype(dtype))
    cupy.cuda.Device().synchronize()  # streams that do not block would not wait for the copy
    return made


def new_stream() -> Any:
    import cupy

    cupy.cuda.Device().synchronize()
    return cupy.cuda.Stream(non_blocking=True)


@contextmanager
def on(stream: Any, current: bool = True) -> Iterator[None]:
    """Steps go to this stream, of which they learn the address only; a warning of a library is an error.

    current: whether CuPy has it as its own current stream too, as what the test itself computes needs.
    """
    before = override.set(lambda index: stream.ptr)
    try:
        with stream if current else nullcontext(), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "cuda.bindings.nvjitlink")
            yield
    finally:
        override.reset(before)


def captured(stream: Any, step: Callable[[], None]) -> Any:
    with on(stream):
        stream.begin_capture()
        try:
            step()
        finally:
            graph = stream.end_capture()
    return graph


def stepped(stream: Any, opt: Any, grads: Any, current: bool = True) -> None:
    with on(stream, current):
        opt.step(grads)


def pair(backend: str, **options: Any) -> tuple[Any, Any, Any, Any]:
    """Two optimizers of equal parameters: one for graphs, one for eager steps that show what is right."""
    graphed, eager = device_array(0), device_array(0)
    one = gpuopt.AdamW([graphed], backend=backend, capturable=True, **options)
    return graphed, eager, one, gpuopt.AdamW([eager], backend=backend, **options)


def no_garbage_of_others() -> None:
    """Free now what earlier tests have left in cycles or in Numba's list of memory to free: theirs, not the optimizer's."""
    from numba import cuda

    gc.collect()
    cuda.current_context().memory_manager.deallocations.clear()
