"""Faults planted in what Numba CUDA compiles and launches, and in where arrays are made: as planted.py, for the other backend and
a second GPU.

    python -m pytest -p driver.plugin --require-gpu tests/driver/planted_numba.py
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import test_two_gpus
from driver.planted import apart, check_found, everything, failure, lines, summing
from gpuopt import arrays
from gpuopt.backends.cupy import CupyRuntime
from gpuopt.backends.numba_cuda import NumbaRuntime
from gpuopt.compiler import nvrtc, to_numba, to_numba_cuda

Patch = pytest.MonkeyPatch


def numba() -> None:
    everything("numba-cuda")


def sums() -> None:
    summing("numba-cuda", "bfloat16")


def along() -> None:
    lines("numba-cuda")


def apart_by_numba() -> None:
    apart("numba-cuda")


def second_gpu() -> None:
    """Arrays of CuPy on the second GPU, while the first one is current."""
    test_two_gpus.test_arrays_of_the_second_gpu_are_updated_there("cupy", "norm")


def text(function: str, old: str, new: str, place: int = 0) -> Callable[[Patch], None]:
    """Another kernel: in what this function writes, the place-th `old` is `new`, if there are so many."""

    def plant(patch: Patch) -> None:
        right = getattr(to_numba_cuda, function)

        def wrong(*given: Any) -> str:
            parts = right(*given).split(old)
            assert len(parts) > 1, f"the kernels no longer say {old!r}"
            found = len(parts) > place + 1
            return old.join(parts[: place + 1]) + (new if found else "") + old.join(parts[place + 1 :])

        patch.setattr(to_numba_cuda, function, wrong)

    return plant


def arguments(change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        right = NumbaRuntime.launch
        patch.setattr(NumbaRuntime, "launch", lambda self, k, grid, a, stream: right(self, k, grid, change(a), stream))

    return plant


def current_device(patch: Patch) -> None:
    """Launches go to whichever GPU is current."""
    patch.setattr(CupyRuntime, "on_device", lambda self, index: nullcontext())


def states_of_the_current_device(patch: Patch) -> None:
    """States are allocated on whichever GPU is current."""
    kinds = [replace(k, zeros=on_the_first(k.zeros)) if k.name == "cupy" else k for k in arrays.KINDS]
    patch.setattr(arrays, "KINDS", tuple(kinds))
    patch.setattr(arrays, "_by_type", {})


def on_the_first(zeros: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda like, dtype: zeros(test_two_gpus.on_device(0)(np.zeros(like.shape, np.float32)), dtype)


ADDRESS = "load_word(at, 0)"


def fused(patch: Patch) -> None:
    """Products of `prepare` that do not say how they are rounded."""
    patch.setitem(to_numba._DOUBLE, "mul", "({} * {})")


def fused_by_nvrtc(patch: Patch) -> None:
    patch.setitem(nvrtc.OPTIONS, "fma", True)


SYNC, NOTHING = "cuda.syncthreads()", "pass"
TOTALS = "load_word(part, 1), THREADS)"
FAULTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "sums without the tree's barrier": (text("reduce_source", SYNC, NOTHING), numba),
    "sums without the barrier behind a chunk": (text("reduce_source", SYNC, NOTHING, 1), numba),
    "tensors without the tree's barrier": (text("per_tensor_source", SYNC, NOTHING), numba),
    "tensors without the barrier behind each": (text("per_tensor_source", SYNC, NOTHING, 1), numba),
    **{f"all tensors without barrier {k}": (text("all_tensors_source", SYNC, NOTHING, k), numba) for k in range(1, 6)},
    "totals one too many": (text("all_tensors_source", TOTALS, TOTALS.replace("1)", "1) + 1"), 2), numba),
    "values of the next tensor": (text("reduce_source", "value = (word >> 32)", "value = (1 + (word >> 32))"), sums),
    "wide scalars of the next row": (text("per_tensor_source", "COL_ROW) * WIDES", "COL_ROW) * WIDES + WIDES"), sums),
    "tail one short": (text("cuda_source", "while i < count:", "while i < count - 1:"), numba),
    "tail one too far": (text("cuda_source", "while i < count:", "while i < count + 1:"), numba),
    "sums one too far": (text("reduce_source", "i + N <= count", "i + N <= count + 1"), apart_by_numba),
    **{f"lines without barrier {k}": (text("reduce_along_source", SYNC, NOTHING, k), along) for k in range(2)},
    "columns without their barrier": (text("reduce_along_source", SYNC, NOTHING, 2), along),
    "blocks without the barrier between": (text("reduce_along_source", SYNC, NOTHING, 3), along),
    **{f"matrices without barrier {k}": (text("per_matrix_source", SYNC, NOTHING, k), along) for k in range(3)},
    "address of 32 bits": (text("cuda_source", ADDRESS, f"({ADDRESS} & 0xFFFFFFFF)"), numba),
    "arguments swapped": (arguments(lambda a: (a[1], a[0], *a[2:])), numba),
    "argument of 32 bits": (arguments(lambda a: (int(np.int32(a[0] & 0x7FFFFFFF)), *a[1:])), numba),
    "products that may be fused": (fused, numba),
    "products that are fused": (fused_by_nvrtc, everything),
    "launched on the current device": (current_device, second_gpu),
    "states on the current device": (states_of_the_current_device, second_gpu),
}


@pytest.mark.parametrize("scenario", [numba, sums, along, apart_by_numba, second_gpu])
def test_nothing_is_found_where_nothing_is_planted(scenario: Callable[[], None]) -> None:
    assert failure(scenario) == ""


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, monkeypatch: Patch) -> None:
    check_found(*FAULTS[name], monkeypatch)
