"""Optimizers of matrices that keep more than arrays of their parameters' shapes: stepped, saved between two steps and gone on from.
And the products of NumPy that steps make.

Used by the tests of each of them, with shapes of its own. Knows no rule.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest

from gpuopt import linalg
from samples import HOST_BACKENDS, bits


def product_shapes(patch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the first factors of all products that are made from now on, as long as the patch holds."""
    calls: list[tuple[int, ...]] = []
    real = np.matmul

    def counting(a: Any, b: Any, out: Any = None) -> Any:
        calls.append(a.shape)
        return real(a, b, out=out)

    patch.setattr(linalg.np, "matmul", counting)
    return calls


class Steps:
    """Parameters and gradients of these shapes, the same for the same seed."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        self.shapes = shapes

    def arrays(self, seed: int, dtype: Any = np.float64) -> list[Any]:
        rng = np.random.default_rng(seed)
        return [rng.standard_normal(shape).astype(dtype) for shape in self.shapes]

    def stepped(self, opt: Any, seeds: Iterable[int], dtype: Any = np.float64) -> Any:
        """The optimizer behind a step with the gradients of each seed."""
        for seed in seeds:
            opt.step(self.arrays(seed, dtype))
        return opt

    def check_checkpoint(
        self, make: Callable[..., Any], options: Mapping[str, Any], dtype: Any, saved: int, end: int,
        other: Mapping[str, Any] = {}, between: Callable[[Any], None] = lambda opt: None,
    ) -> None:  # fmt: skip
        """Steps go on bit for bit where an optimizer was saved behind `saved` of `end`, loaded into one made with other options,
        and pickled; both backends of the host agree. between: done to it before it is saved, which changes nothing.
        """
        found = []
        for backend in HOST_BACKENDS:
            given = {**options, "backend": backend}
            whole, half = self.arrays(0, dtype), self.arrays(0, dtype)
            first = self.stepped(make(whole, **given), range(1, end + 1), dtype)
            second = self.stepped(make(half, **given), range(1, saved + 1), dtype)
            between(second)
            again = make(half, **given | other)
            again.load_state_dict(second.state_dict())
            rest = range(saved + 1, end + 1)
            copied = self.stepped(pickle.loads(pickle.dumps(again)), rest, dtype)
            self.stepped(again, rest, dtype)
            others = [a for group in copied.param_groups for a in group["params"]]
            assert bits(whole) == bits(half) == bits(others)
            assert bits(first.state_dict()["state"]) == bits(again.state_dict()["state"])
            found.append((bits(whole), bits(first.state_dict()["state"])))
        assert found[0] == found[1]
