"""Products of matrices of arrays on a device, made on the host by what NumPy does: bits can be compared with the NumPy backend's,
whatever BLAS a GPU has, and the driver in software, which has none, runs optimizers of matrices too. Used by tests marked `gpu`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gpuopt.launch.products import RUNS


def on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """The product with copies of its arrays, which are brought back."""

    def run(*given: Any) -> Any:
        here = [a.get() if hasattr(a, "get") else a for a in given]
        made = function(*here)
        for there, array in zip(given, here, strict=True):
            if there is not array:
                there.set(array)
        return made if here[0] is given[0] else given[0]

    return run


def host_products(patch: pytest.MonkeyPatch) -> None:
    """All of them, as long as the patch holds."""
    for name, function in RUNS.items():
        patch.setitem(RUNS, name, on_host(function))  # type: ignore[arg-type]
