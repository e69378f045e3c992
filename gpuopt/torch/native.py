"""A Look at the tensors of a step in compiled code: 70 ns a tensor instead of the 600 that Python's getters take.

Made by the optimizer for many tensors, once it is clear that steps repeat; where anything is out of the ordinary the answer is
None and `look` is asked instead. torch's stable C functions (`aoti_torch_get_*`) give all but one fact; a parameter's gradient
comes from `c10::TensorImpl::grad`, which is used only where torch's own header declares it as it is called here. Knows no rule.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpuopt.arrays import memory
from gpuopt.torch.look import Look

FROM = 32  # tensors; with fewer the getters take less than 20 us
AFTER = 3  # steps: to compile it takes half a second
PLAIN = {torch.Tensor, torch.nn.Parameter}  # subclasses may keep their data elsewhere
DTYPES = ("float64", "float32", "float16", "bfloat16")  # of gradients; complex ones may have to be resolved
FACTS = ("is_defined", "get_data_ptr", "get_dtype", "get_layout", "get_dim", "get_sizes", "get_strides")
GRAD, DECLARED = "_ZNK3c1010TensorImpl4gradEv", "const at::Tensor& grad() const;"
SAME = 6  # of the scratch words
AHEAD = 24  # tensors whose memory is asked for before it is read: after a backward pass it is in no cache
LONGEST = 8  # axes of a tensor for which there is room on average


@cache
def library() -> ctypes.CDLL | None:
    """torch's C functions, or None where one is missing or the gradient's is declared otherwise."""
    header = Path(torch.__file__).parent / "include" / "c10" / "core" / "TensorImpl.h"
    try:
        found = ctypes.CDLL(torch._C.__file__)
        for name in (GRAD, *(f"aoti_torch_{fact}" for fact in FACTS)):
            getattr(found, name)
        return found if DECLARED in header.read_text() else None
    except (OSError, AttributeError):
        return None


@cache
def compiled() -> Callable[..., int]:
    """`dump(objects, word, states, facts, addresses, places, singles, scratch) -> count`; see `_dump`."""
    from numba import njit, types
    from numba.extending import intrinsic

    from gpuopt.compiler import numba_ir

    lib: Any = library()
    word = ctypes.c_int64
    names = {}
    for fact in FACTS:
        function = names[fact] = getattr(lib, f"aoti_torch_{fact}")
        function.argtypes, function.restype = [word, word], ctypes.c_int32
    grad = getattr(lib, GRAD)
    grad.argtypes, grad.restype = [word], word
    codes = tuple(int(getattr(lib, f"aoti_torch_dtype_{name}")()) for name in DTYPES)
    load = numba_ir.load(intrinsic, "int64", "float64", 0, 1)
    made = _dump(names, grad, codes, load, numba_ir.prefetch(intrinsic))
    words = types.int64[::1]
    return njit(types.int64(words, types.int64, *[words] * 6))(made)


def word_of_impl(tensors: Sequence[torch.Tensor]) -> int | None:
    """Which 8 bytes of a tensor's Python object hold the address of its TensorImpl: looked for, not assumed. They follow
    `torch.utils.swap_tensors`, and asking each object for `_cdata` would take half of the time of a look.
    """
    size = min(type(t).__basicsize__ for t in tensors) // 8
    same = np.ones(size, bool)
    for t in tensors:
        same &= memory(id(t), np.dtype(np.int64), size) == t._cdata
    return int(np.argmax(same)) if same.any() else None


def _dump(names: dict[str, Any], grad: Any, codes: tuple[int, ...], load: Any, prefetch: Any) -> Callable[..., int]:
    """The text of `dump`.

    objects: address of each parameter's Python object, whose `word` holds the address of its TensorImpl; states: addresses
    of the states' TensorImpls; an at::Tensor is one such pointer. Written are facts: every address, dtype, size and stride of
    the parameters, dtype and strides of their gradients; addresses: of the gradients, 0 where there is none; places: addresses
    of the states; singles: which parameters have one element, their count in front; scratch[SAME]: whether every fact is what
    it was. Returns the count of facts, or -1 for tensors that are not dense, floating-point or too many-axed.
    """
    is_defined, data_ptr, dtype = names["is_defined"], names["get_data_ptr"], names["get_dtype"]
    layout, dim, sizes, strides = names["get_layout"], names["get_dim"], names["get_sizes"], names["get_strides"]
    f64, f32, f16, bf16 = codes

    def dump(objects, word, states, facts, addresses, places, singles, scratch):  # type: ignore[no-untyped-def]
        s, at, n, same = scratch.ctypes.data, 0, len(objects), True
        singles[0] = 0
        for k in range(-AHEAD, n):
            if k + AHEAD < n:
                impl = load(objects[k + AHEAD], word)
                for line in range(4):
                    prefetch(impl + 64 * line)
            if 0 <= k + AHEAD // 2 < n:
                gradient = load(grad(load(objects[k + AHEAD // 2], word)), 0)
                for line in range(4):
                    prefetch(gradient + 64 * line)
            if k < 0:
                continue
            p = objects[k] + 8 * word
            g = grad(load(p, 0))
            scratch[:6] = 0
            bad = data_ptr(p, s) | dtype(p, s + 8) | dim(p, s + 16) | sizes(p, s + 24) | strides(p, s + 32)
            axes = scratch[2]
            if bad or at + 3 * axes + 4 > len(facts):
                return -1
            numel = 1
            for fact in range(3):
                same &= facts[at] == scratch[fact]
                facts[at] = scratch[fact]
                at += 1
            for axis in range(axes):
                size, stride = load(scratch[3], axis), load(scratch[4], axis)
                same &= facts[at] == size and facts[at + 1] == stride
                facts[at], facts[at + 1] = size, stride
                at, numel = at + 2, numel * size
            if numel == 1:
                singles[0] += 1
                singles[singles[0]] = k
            scratch[:6] = 0
            bad = is_defined(g, s)
            if not bad and not scratch[0]:
                same &= facts[at] == -1
                addresses[k], facts[at] = 0, -1
                at += 1
                continue
            bad |= layout(g, s + 40)
            if bad or scratch[5] != 0:
                return -1
            bad = data_ptr(g, s) | dtype(g, s + 8) | dim(g, s + 16) | strides(g, s + 32)
            code = scratch[1]
            if bad or scratch[2] != axes or (code != f32 and code != bf16 and code != f16 and code != f64):
                return -1
            same &= facts[at] == code
            addresses[k], facts[at] = scratch[0], code
            at += 1
            for axis in range(axes):
                stride = load(scratch[4], axis)
                same &= facts[at] == stride
                facts[at] = stride
                at += 1
        scratch[SAME] = same
        for k in range(len(states)):
            if data_ptr(states.ctypes.data + 8 * k, places.ctypes.data + 8 * k):
                return -1
        return at

    return dump


class Dump:
    """Looks at the same parameters and states, which the caller keeps alive, again and again."""

    def __init__(self, params: Sequence[torch.Tensor], states: Sequence[torch.Tensor]) -> None:
        self.params = list(params)
        word = word_of_impl(params) if {type(p) for p in (*params, *states)} <= PLAIN else None
        self.usable = word is not None and library() is not None
        self.word = word or 0
        self.objects = np.array(list(map(id, params)), np.int64)
        self.states = np.array([s._cdata for s in states], np.int64)
        self.scratch = np.zeros(SAME + 1, np.int64)
        self.facts = np.zeros((3 * LONGEST + 4) * len(params), np.int64)
        self.singles = np.zeros(len(params) + 1, np.int64)
        self.count, self.version = 0, 0

    def look(self) -> Look | None:
        """A Look at the parameters as they are now, or None where Python has to look. Its layout is a number that changes with
        the facts.
        """
        if not self.usable:
            return None
        addresses, places = np.empty(len(self.params), np.int64), np.empty(len(self.states), np.int64)
        count = compiled()(
            self.objects, self.word, self.states, self.facts, addresses, places, self.singles, self.scratch
        )
        if count < 0:
            self.usable = False
            return None
        if count != self.count or not self.scratch[SAME]:
            self.count, self.version = count, self.version + 1
        singles = [self.params[k] for k in self.singles[1 : self.singles[0] + 1].tolist()]
        negated = any(p.grad is not None and p.grad.is_neg() for p in singles)
        return Look((self, self.version), addresses, places.tobytes(), not negated)
