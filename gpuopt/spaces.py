"""Where plain arrays lie that gradients are computed on: NumPy's on the host or CuPy's on a GPU, for a backend that is asked for.

Called by `gpuopt/sklearn` and by `gpuopt/demos`. Knows no optimizer.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

import gpuopt

HOST_BACKENDS = ("numpy", "numba")


@dataclass(frozen=True)
class Space:
    """An array namespace (`numpy` or `cupy`) and the reason it was chosen, a sentence without its full stop."""

    xp: Any
    reason: str


def choose(backend: str | None, who: str = "the demo") -> Space:
    """The namespace that holds the arrays for this backend (None: the default): CuPy's for a GPU, NumPy's for a CPU.

    who: computes the gradients, in the message. Raises GpuoptError if the backend can run on this machine but its gradients
    cannot be computed here.
    """
    wanted = backend or os.environ.get("GPUOPT_BACKEND") or "auto"
    if wanted in HOST_BACKENDS:
        return Space(np, f"NumPy arrays, since the backend {wanted} runs on the host")
    status = gpuopt.backends()
    why_not = status.get("cupy", "this version of gpuopt does not know it")
    if why_not is None:
        return Space(import_module("cupy"), "CuPy arrays on the GPU")
    if status.get(wanted, "") is None:
        raise gpuopt.GpuoptError(
            f"the backend {wanted} is usable, but {who} computes its gradients with CuPy, and that is not: {why_not}"
        )
    return Space(np, f"NumPy arrays on the host: {why_not.rstrip('.')}")


def one_blas_thread() -> AbstractContextManager[Any]:
    """Matrix products on one thread: on small arrays more of them only get in the way of Numba's."""
    limits: AbstractContextManager[Any] = import_module("threadpoolctl").threadpool_limits(1, user_api="blas")
    return limits


def wait(xp: Any) -> None:
    """Return once the device has done what was asked of it; at once for NumPy."""
    if xp is not np:
        xp.cuda.get_current_stream().synchronize()


def to_host(array: Any) -> np.ndarray[Any, Any]:
    """A NumPy copy of a NumPy or CuPy array."""
    return np.array(array.get() if hasattr(array, "get") else array)
