"""New gradient arrays at every step that are alike but for where they lie: only their addresses are asked for.

Used by `optim.engine`. Knows array libraries through `arrays.Kind` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt import arrays
from gpuopt.formats.dtypes import STORAGES
from gpuopt.native.objects import same
from gpuopt.optim.parameters import Parameter


class Alike:
    """What the gradients of the last step looked like, all of one library that can tell addresses quickly."""

    def __init__(self, kind: arrays.Kind, leaves: Sequence[Any], parameters: Sequence[Parameter]) -> None:
        assert kind.looks is not None and kind.firsts is not None
        self._looks, self._firsts, self.leaves = kind.looks, kind.firsts, list(leaves)
        self._known = [*map(self._looks, leaves)]
        views = [p.grad_view for p in parameters if p.grad_view is not None]
        # Of the next gradients: all but the address, which nothing asks for, and what pins it.
        self.views = [replace(view, pin=None) for view in views]
        lowest = np.array([view.address for view in views], np.int64)
        self._offsets = lowest - self._firsts(leaves)  # not 0 where a stride is negative
        self._odd = np.array([STORAGES[view.dtype].itemsize - 1 for view in views], np.int64)

    @classmethod
    def of(cls, leaves: Sequence[Any], parameters: Sequence[Parameter]) -> Alike | None:
        """None where a gradient is missing or copied, or the library has no such way."""
        if len({*map(type, leaves)}) != 1 or any(
            grad is not p.grad for grad, p in zip(leaves, parameters, strict=True)
        ):
            return None
        kind = None if leaves[0] is None else arrays.kind_of(leaves[0], "gradient")
        return cls(kind, leaves, parameters) if kind is not None and kind.looks is not None else None

    def addresses(self, leaves: Sequence[Any]) -> NDArray[np.int64] | None:
        """Where the gradients lie, if they are other ones that look the same; those that come again are to be remembered."""
        if len(leaves) != len(self.leaves) or same(leaves, self.leaves):
            return None
        try:
            if [*map(self._looks, leaves)] != self._known:
                return None
        except AttributeError:  # no arrays
            return None
        found = self._firsts(leaves) + self._offsets
        return None if (found & self._odd).any() else found
