"""Products of matrices of arrays on a device, made on the host by what NumPy does: bits can be compared with the NumPy backend's,
whatever BLAS a GPU has, and the driver in software, which has none, runs optimizers of matrices too. And what those of another
library are compared with. Used by tests marked `gpu`, and of torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpuopt import bases
from gpuopt.launch import padding
from gpuopt.launch.products import RUNS
from samples import difference


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
    """All of them, as long as the patch holds; matrices by their shapes, as on the host."""
    patch.setattr(padding, "GPU", padding.HOST)
    for name, function in RUNS.items():
        patch.setitem(RUNS, name, on_host(function))  # type: ignore[arg-type]


def check_bases(
    there: Callable[[Any], Any], here: Callable[[Any], Any], rows: int, columns: int, tolerance: float
) -> list[Any]:
    """That a library learns NumPy's averages, bases that lead there and back, and roots; gives its square states. there, here: an
    array of NumPy as one of the library, and back.
    """
    rng = np.random.default_rng(0)
    mine = [np.zeros((2, n, n)) for n in (rows, columns, rows, columns)]
    theirs = [there(a) for a in mine]
    for known in range(8):
        g = rng.standard_normal((2, rows, columns))
        x, y = g.copy(), there(g)
        renewal = 2 if known == 1 else known % 2
        bases.to_bases(bases.learn_bases(x, *mine, renewal, 0.1), *mine[:2])
        bases.to_bases(bases.learn_bases(y, *theirs, renewal, 0.1), *theirs[:2])
        bases.turn_bases(x, *mine, known % 2)
        bases.turn_bases(y, *theirs, known % 2)
        assert difference(here(bases.from_bases(y, *theirs[:2])), g if known else 0 * g) < tolerance
    assert max(difference(here(a), b) for a, b in zip(theirs[2:], mine[2:], strict=True)) < tolerance
    roots, of_theirs = [a * 1 for a in mine], [a * 1 for a in theirs]
    bases.learn_roots(g.copy(), *roots, 1, 0.1, 2.0, 0.25, 1e-3)
    bases.learn_roots(there(g), *of_theirs, 1, 0.1, 2.0, 0.25, 1e-3)
    assert max(difference(here(a), b) for a, b in zip(of_theirs, roots, strict=True)) < tolerance
    return theirs
