"""Looks at the tensors of a step in compiled code: 50 ns a tensor on one thread instead of the 600 that Python's getters take.

Made by `follow` for many tensors, once it is clear that steps repeat; where anything is out of the ordinary the answer is None
and `look` is asked instead. torch's stable C functions (`aoti_torch_get_*`) give all but one fact; a parameter's gradient comes
from `c10::TensorImpl::grad`, and autograd is told what was written by `torch::autograd::impl::bump_version`: both are used only
where torch's own headers declare them as they are called here. Knows no rule.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpuopt.backends import numba as cpu
from gpuopt.compiler import numba_cpu
from gpuopt.peek import memory

FROM = 32  # tensors; with fewer the getters take less than 20 us
AFTER = 3  # steps: to compile it takes half a second
RANGE = 128  # tensors that are worth another thread which the update needs next
ASLEEP = 2048  # that are worth waking one
PLAIN = {torch.Tensor, torch.nn.Parameter}  # subclasses may keep their data elsewhere
DTYPES = ("float64", "float32", "float16", "bfloat16")  # of gradients; complex ones may have to be resolved
FACTS = ("is_defined", "get_data_ptr", "get_dtype", "get_dim", "get_sizes", "get_strides")
GRAD, BUMP = "_ZNK3c1010TensorImpl4gradEv", "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE"
DECLARED = {
    "c10/core/TensorImpl.h": "const at::Tensor& grad() const;",
    "torch/csrc/autograd/variable.h": "void bump_version(const Variable&",
}
AHEAD = 8  # tensors: their memory is asked for before it is read, since after a backward pass it is in no cache
ANSWERS = 5  # words that torch's answers about one tensor take
BOOL, INT32 = 0xFF, 0xFFFFFFFF  # of answers shorter than a word
IMPL = 192  # bytes of a TensorImpl
WHOLE, PART = 4, 2  # cache lines to ask for: a TensorImpl; an object of which one or two words are read
MOVED, ELSE = 1, 2  # what is told of a range: gradients at other addresses; anything else, for Python to look at
ABSENT = -1  # in place of the dtype of a gradient


@cache
def library() -> ctypes.CDLL | None:
    """torch's C functions, or None where one is missing, or one of C++ is declared otherwise."""
    headers = Path(torch.__file__).parent / "include"
    try:
        found = ctypes.CDLL(torch._C.__file__)
        for name in (GRAD, BUMP, *(f"aoti_torch_{fact}" for fact in FACTS)):
            getattr(found, name)
        return found if all(text in (headers / name).read_text() for name, text in DECLARED.items()) else None
    except (OSError, AttributeError):
        return None


@cache
def compiled() -> int:
    """The address of `dump(book, told, lo, hi, word, storage)`; see `_dump`."""
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
    store = numba_ir.store(intrinsic, "int64", "float64", 0, 1)
    asks = [numba_ir.prefetch(intrinsic, lines) for lines in (WHOLE, PART)]
    made = _dump(names, grad, codes, load, store, numba_ir.replace(intrinsic), *asks)
    return numba_cpu.c_function(made, 6)


@cache
def compiled_bump() -> Callable[[int, int, int], None]:
    """`bump(objects, count, word)`: raises the version counters of as many tensors, whose Python objects lie at these addresses."""
    from numba.extending import intrinsic

    from gpuopt.compiler import numba_ir

    bump = getattr(library(), BUMP)
    bump.argtypes, bump.restype = [ctypes.c_int64], None
    load = numba_ir.load(intrinsic, "int64", "float64", 0, 1)
    ask = numba_ir.prefetch(intrinsic, PART)

    def every(objects, count, word):  # type: ignore[no-untyped-def]
        for k in range(count):
            if k + AHEAD < count:
                ask(load(load(objects, k + AHEAD), word))
            bump(load(objects, k) + 8 * word)

    return numba_cpu.as_python(numba_cpu.c_function(every, 3), 3, held=True)


def word_of_impl(tensors: Sequence[torch.Tensor]) -> int | None:
    """Which 8 bytes of a tensor's Python object hold the address of its TensorImpl: looked for, not assumed. They follow
    `torch.utils.swap_tensors`, and asking each object for `_cdata` would take half of the time of a look.
    """
    size = min(type(t).__basicsize__ for t in tensors) // 8
    return _word(((id(t), t._cdata) for t in tensors), size)


def word_of_storage(tensors: Sequence[torch.Tensor]) -> int:
    """Which 8 bytes of a TensorImpl hold the address of its storage: known, it is asked for ahead. The first if none does."""
    return _word(((t._cdata, t.untyped_storage()._cdata) for t in tensors), IMPL // 8) or 0


def _word(objects: Iterable[tuple[int, int]], size: int) -> int | None:
    """Which of the first words of each object is the number that goes with it."""
    same = np.ones(size, bool)
    for address, number in objects:
        same &= memory(address, np.dtype(np.int64), size) == number
    return int(np.argmax(same)) if same.any() else None


def _dump(
    names: dict[str, Any],
    grad: Any,
    codes: tuple[int, ...],
    load: Any,
    store: Any,
    replace: Any,
    ask_whole: Any,
    ask_part: Any,
) -> Callable[..., None]:
    """The text of `dump`, which looks at the parameters lo to hi and at their states.

    book: addresses of the arrays of a Dump, in the order of Dump.BOOK: objects, the parameters' Python objects, whose `word`
    holds the address of their TensorImpl, whose word `storage` that of its storage; starts, where the facts of each begin in
    facts; addresses of the gradients, 0 where there is none; first, where the states of each begin in states, Python objects
    too, and places, their addresses. The facts are axes, address, dtype, the gradient's dtype or ABSENT, sizes, strides, the
    gradient's strides. Facts and addresses are brought up to date; told[lo] becomes MOVED or ELSE where they, or places, were
    different, else 0. Of a parameter without a gradient nothing else is asked.
    """
    is_defined, data_ptr, dtype = names["is_defined"], names["get_data_ptr"], names["get_dtype"]
    dim, sizes, strides = names["get_dim"], names["get_sizes"], names["get_strides"]
    f64, f32, f16, bf16 = codes

    def dump(book, told, lo, hi, word, storage):  # type: ignore[no-untyped-def]
        objects, starts, facts, addresses = load(book, 0), load(book, 1), load(book, 2), load(book, 3)
        first, states, places = load(book, 4), load(book, 5), load(book, 6)
        s, moved, other = told + 8 * (lo + 1), 0, 0  # what torch answers goes behind the range's own word
        store(told, lo, ELSE)
        for k in range(lo - 4 * AHEAD, hi):
            # Each of these finds its address in what the one before it asked for.
            if k + 4 * AHEAD < hi:
                ask_part(load(objects, k + 4 * AHEAD) + 8 * word)
                for state in range(load(first, k + 4 * AHEAD), load(first, k + 4 * AHEAD + 1)):
                    ask_part(load(states, state) + 8 * word)
            if lo <= k + 3 * AHEAD < hi:
                ask_whole(load(load(objects, k + 3 * AHEAD), word))
                for state in range(load(first, k + 3 * AHEAD), load(first, k + 3 * AHEAD + 1)):
                    ask_whole(load(load(states, state), word))
            if lo <= k + 2 * AHEAD < hi:
                impl = load(load(objects, k + 2 * AHEAD), word)
                ask_part(load(impl, storage))
                ask_part(load(impl, storage + 1))  # its autograd data, in the versions of torch that were measured
                for state in range(load(first, k + 2 * AHEAD), load(first, k + 2 * AHEAD + 1)):
                    ask_part(load(load(load(states, state), word), storage))
            if lo <= k + AHEAD < hi:
                ask_whole(load(grad(load(load(objects, k + AHEAD), word)), 0))
            if lo <= k + AHEAD // 2 < hi:
                ask_part(load(load(grad(load(load(objects, k + AHEAD // 2), word)), 0), storage))
            if k < lo:
                continue
            p, at = load(objects, k) + 8 * word, facts + 8 * load(starts, k)
            g = grad(load(p, 0))
            if is_defined(g, s):
                return
            if not load(s, 0) & BOOL:
                other |= replace(at, 3, ABSENT)
                continue
            bad = data_ptr(p, s) | dtype(p, s + 8) | dim(p, s + 16) | sizes(p, s + 24) | strides(p, s + 32)
            axes, size, stride = load(s, 2), load(s, 3), load(s, 4)
            if bad or load(at, 0) != axes:
                return
            other |= replace(at, 1, load(s, 0)) | replace(at, 2, load(s, 1) & INT32)
            for axis in range(axes):
                other |= replace(at, 4 + axis, load(size, axis)) | replace(at, 4 + axes + axis, load(stride, axis))
            for state in range(load(first, k), load(first, k + 1)):
                bad |= data_ptr(load(states, state) + 8 * word, s)
                other |= load(places, state) ^ load(s, 0)
            bad |= data_ptr(g, s) | dtype(g, s + 8) | dim(g, s + 16) | strides(g, s + 32)
            address, code, stride = load(s, 0), load(s, 1) & INT32, load(s, 4)
            if bad or load(s, 2) != axes or (code != f32 and code != bf16 and code != f16 and code != f64):
                return
            for axis in range(axes):
                other |= replace(at, 4 + 2 * axes + axis, load(stride, axis))
            other |= replace(at, 3, code)
            moved |= replace(addresses, k, address)
        store(told, lo, ELSE if other else MOVED if moved else 0)

    return dump


class Dump:
    """Parameters and their states, which the caller keeps alive, as they lie when it is made; told from how they lie later. One
    parameter at least has a gradient.

    places: where the states were when the step was planned. addresses: of the gradients, 0 where there is none.
    """

    BOOK = ("objects", "starts", "facts", "addresses", "first", "states", "places")

    def __init__(
        self, params: Sequence[torch.Tensor], states: Sequence[Sequence[torch.Tensor]], places: NDArray[np.int64]
    ) -> None:
        every, present = list(chain.from_iterable(states)), [p for p in params if p.grad is not None]
        can = {type(p) for p in (*present, *every)} <= PLAIN and library() is not None and cpu.missing() is None
        word = word_of_impl([*params, *every]) if can else None
        axes = np.array([p.dim() for p in params], np.int64)
        self.objects = np.array(list(map(id, params)), np.int64)
        self.starts = np.concatenate([[0], np.cumsum(4 + 3 * axes)]).astype(np.int64)
        self.facts = np.zeros(self.starts[-1], np.int64)
        self.facts[self.starts[:-1]] = axes
        self.addresses = np.zeros(len(params), np.int64)
        self.first = np.concatenate([[0], np.cumsum([len(s) for s in states])]).astype(np.int64)
        self.states = np.array(list(map(id, every)), np.int64)
        self.places = np.array(places, np.int64)
        self.book = np.array([getattr(self, name).ctypes.data for name in self.BOOK], np.int64)
        needed = present[0].device.type == "cpu" and sum(p.numel() for p in present) > cpu.SERIAL
        self.bounds = cpu.even_ranges(len(params), RANGE if needed else ASLEEP)
        self.starts_of_ranges = self.bounds[:-1].tolist()
        self.told = np.zeros(len(params) + 1 + ANSWERS, np.int64)
        self.singles = [p for p in present if p.numel() == 1]
        self.usable = False
        if word is not None:
            found = self.book.ctypes.data, self.told.ctypes.data, word, word_of_storage(present[:8])
            self.call = cpu.Ranges(compiled(), found[:2], self.bounds, found[2:], held=True)
            self._told()  # until the first look everything is as it was
            self.usable = self._told() != ELSE

    def look(self) -> bool | None:
        """Whether gradients lie elsewhere than at the last look, which `addresses` then say, and nothing else is different;
        None where anything is, or cannot be told: Python has to look.
        """
        told = self._told() if self.usable else ELSE
        if told == ELSE or (self.singles and any(p.grad is not None and p.grad.is_neg() for p in self.singles)):
            self.usable = False
            return None
        return told == MOVED

    def _told(self) -> int:
        self.call()
        return max(map(self.told.item, self.starts_of_ranges))


class Versions:
    """Tensors that steps write, which the caller keeps alive: their version counters are raised at once, or autograd would use
    values that it had saved as if they were still the same.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.tensors = [t for t in tensors if not t.is_inference()]  # those have no counter
        self.call: Callable[[], None] = partial(torch._C._increment_version, self.tensors)

    def compile(self) -> None:
        """Do it in compiled code from now on, in 10 ns a tensor instead of 45."""
        word = word_of_impl(self.tensors) if self.tensors else None
        if word is not None:
            self.objects = np.array(list(map(id, self.tensors)), np.int64)
            self.call = partial(compiled_bump(), self.objects.ctypes.data, len(self.objects), word)
