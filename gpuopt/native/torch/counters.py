"""The version counters of tensors, by which autograd knows that values it had saved are no longer the same.

Made by `gpuopt.torch.change_tracker` for what steps write, which torch does not see. Knows no rule.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import torch
from torch.autograd.graph import increment_version

from gpuopt.backends import numba as cpu
from gpuopt.compiler import numba_cpu
from gpuopt.native import switch
from gpuopt.native.torch import library
from gpuopt.native.torch.compiled import AHEAD
from gpuopt.native.torch.compiled import PART as LINES
from gpuopt.native.torch.library import BUMP, word_of_impl

PART = "version counters of torch"  # what `switch` calls this


class VersionCounters:
    """Of tensors that steps write, which the caller keeps alive; `bump()` raises all of them."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = [t for t in tensors if not t.is_inference()]  # those have no counter
        self.bump: Callable[[], None] = partial(increment(), self._tensors)

    def hasten(self) -> None:
        """Raise them in compiled code from now on, where that may be used: in 10 ns a tensor instead of 45."""
        if self._tensors and usable() and (word := word_of_impl(self._tensors)) is not None:
            self._objects = np.array(list(map(id, self._tensors)), np.int64)
            self.bump = partial(compiled(), self._objects.ctypes.data, len(self._objects), word)


def increment() -> Callable[[Sequence[torch.Tensor]], None]:
    """torch's function for any number of tensors, where its versions are known without the look at its argument before it."""
    return increment_version if library.trouble() is not None else torch._C._increment_version


def usable() -> bool:
    """Whether compiled code may raise version counters, and was seen to do so."""
    return switch.decide(PART, library.trouble() or cpu.missing(), raises_them)


@cache
@torch.inference_mode(False)
def raises_them() -> bool:
    """Whether compiled code raises the counters of tensors made for it by one, and no other."""
    made = [torch.zeros(shape, device="cpu") for shape in ((2,), (), (3,))]
    before, word = [t._version for t in made], word_of_impl(made)
    if word is None:
        return False
    objects = np.array(list(map(id, made[:2])), np.int64)
    compiled()(objects.ctypes.data, len(objects), word)
    return [t._version for t in made] == [before[0] + 1, before[1] + 1, before[2]]


@cache
def compiled() -> Callable[[int, int, int], None]:
    """`bump(objects, count, word)`: raises the version counters of as many tensors, whose Python objects lie at these addresses."""
    from numba.extending import intrinsic

    from gpuopt.compiler import numba_ir

    bump = getattr(library.library(), BUMP)
    bump.argtypes, bump.restype = [ctypes.c_int64], None
    load = numba_ir.load(intrinsic, "int64", "float64", 0, 1)
    ask = numba_ir.prefetch(intrinsic, LINES)

    def every(objects, count, word):  # type: ignore[no-untyped-def]
        for k in range(count):
            if k + AHEAD < count:
                ask(load(load(objects, k + AHEAD), word))
            bump(load(objects, k) + 8 * word)

    return numba_cpu.as_python(numba_cpu.c_function(every, 3), 3, held=True)
