"""Arrays to try optimizers on, and what it takes to say "equal" or "untouched bit for bit". Used by the tests of the engine.

Knows no rule; touches optimizers only through their public `state_dict` and `param_groups`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpuopt import arrays

Array = NDArray[Any]
HOST_BACKENDS = ("numpy", "numba")
# A number, one element, a few, none at all, matrices, and more elements than one tile of any backend (16,384) holds.
SHAPES = ((), (1,), (7,), (0, 3), (3, 4), (2, 3, 5), (130, 127))


def parameters(shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: Any = np.float64) -> list[Array]:
    """Values of order 1, the same at each call."""
    rng = np.random.default_rng(5)
    return [np.asarray(rng.standard_normal(shape)).astype(dtype) for shape in shapes]


def gradients(step: int, shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: Any = np.float64) -> list[Array]:
    """The gradients of a step (0, 1, ...), of many magnitudes, every fifth one zero."""
    rng = np.random.default_rng(1000 + step)
    made = []
    for shape in shapes:
        g = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 1, shape)
        made.append(np.asarray(np.where(rng.integers(0, 5, shape) == 0, 0.0, g)).astype(dtype))
    return made


def difference(found: Array, expected: Array) -> float:
    """Largest difference over largest value. Not element by element: a parameter may pass zero on its way."""
    assert found.shape == expected.shape
    if not expected.size:
        return 0.0
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    scale = np.abs(expected).max()
    return float(np.abs(found - expected).max() / (scale or 1.0))


def bits(tree: Any) -> Any:
    """Nested dicts and lists of arrays and numbers -> the same with bytes, so that `==` compares NaN and -0.0 too."""
    if isinstance(tree, dict):
        return {key: bits(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [bits(value) for value in tree]
    if isinstance(tree, np.ndarray):
        return (tree.dtype.str, tree.shape, tree.tobytes())
    return tree


def everything(optimizer: Any) -> Any:
    """Bits of all that a step may change: parameters, states, step counts, hyperparameters."""
    arrays = [group["params"] for group in optimizer.param_groups]
    return bits([arrays, optimizer.state_dict()])


@contextmanager
def refused(optimizer: Any, error: type[Exception], *words: str) -> Iterator[None]:
    """The block raises `error`, whose message holds all of `words`, and leaves everything untouched bit for bit."""
    before = everything(optimizer)
    with pytest.raises(error) as caught:
        yield
    assert everything(optimizer) == before
    missing = [w for w in words if not re.search(re.escape(w), str(caught.value))]
    assert not missing, f"{caught.value!s} does not say {missing}"


class Scarce:
    """Wraps the functions that allocate NumPy arrays; the `fails_at`-th call raises MemoryError."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.fails_at = 0, 0
        kind = next(k for k in arrays.KINDS if k.name == "numpy")
        scarce = replace(kind, zeros=self.wrap(kind.zeros), relayout=self.wrap(kind.relayout))
        monkeypatch.setattr(arrays, "KINDS", tuple(scarce if k is kind else k for k in arrays.KINDS))
        monkeypatch.setattr(arrays, "_by_type", {})

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def allocate(*args: Any) -> Any:
            self.calls += 1
            if self.calls == self.fails_at:
                raise MemoryError("no more memory")
            return function(*args)

        return allocate
