"""Compiled code that looks at parameters, gradients and states: 50 ns a tensor on one thread instead of the 600 that Python's
getters take.

Called by `watch`. torch's stable C functions (`aoti_torch_get_*`) give all but one fact: a parameter's gradient comes from
`c10::TensorImpl::grad`. Both take the address of the word that holds the address of a TensorImpl.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from gpuopt.compiler import numba_cpu
from gpuopt.native.torch.library import FACTS, GRAD, library

DTYPES = ("float64", "float32", "float16", "bfloat16")  # of gradients; complex ones may have to be resolved
AHEAD = 8  # tensors: their memory is asked for before it is read, since after a backward pass it is in no cache
ANSWERS = 5  # words that torch's answers about one tensor take
BOOL, INT32 = 0xFF, 0xFFFFFFFF  # of answers shorter than a word
WHOLE, PART = 4, 2  # cache lines to ask for: a TensorImpl; an object of which one or two words are read
MOVED, OTHER = 1, 2  # what is reported of a range: gradients at other addresses; anything else, for Python to look at
ABSENT = -1  # in place of the dtype of a gradient
# The arrays of a TensorWatch, by whose addresses compiled code reads them.
ARRAYS = ("objects", "starts", "facts", "addresses", "first", "states", "places", "owners", "specs", "slots")
OWN = ~1  # of a word that holds the address of a Python object: the last bit says whose it is


def codes() -> tuple[int, ...]:
    """What torch's functions answer for DTYPES."""
    return tuple(int(getattr(library(), f"aoti_torch_dtype_{name}")()) for name in DTYPES)


@cache
def compiled() -> int:
    """The address of `compare(arrays, report, lo, hi, word, storage)`; see `comparison`."""
    from numba.extending import intrinsic

    from gpuopt.compiler import numba_ir

    word = ctypes.c_int64
    names = {}
    for fact in FACTS:
        function = names[fact] = getattr(library(), f"aoti_torch_{fact}")
        function.argtypes, function.restype = [word, word], ctypes.c_int32
    grad = getattr(library(), GRAD)
    grad.argtypes, grad.restype = [word], word
    load = numba_ir.load(intrinsic, "int64", "float64", 0, 1)
    store = numba_ir.store(intrinsic, "int64", "float64", 0, 1)
    asks = [numba_ir.prefetch(intrinsic, lines) for lines in (WHOLE, PART)]
    made = comparison(names, grad, codes(), load, store, numba_ir.replace(intrinsic), *asks)
    return numba_cpu.c_function(made, 6)


def comparison(
    names: dict[str, Any],
    grad: Any,
    codes: tuple[int, ...],
    load: Any,
    store: Any,
    replace: Any,
    ask_whole: Any,
    ask_part: Any,
) -> Callable[..., None]:
    """The text of `compare`, which looks at the parameters lo to hi and at their states.

    arrays: the addresses of ARRAYS. objects: the parameters' Python objects, whose `word` holds the address of their TensorImpl,
    whose word `storage` that of its storage. owners: where the address is of the Python object of the tensor that has the memory,
    which is a parameter itself, or the local tensor of a DTensor. Of the latter, specs says what its gradient is cut as, 0 for all
    others; slots: which words of a DTensor hold that and its local tensor, which word of a TensorImpl its Python object, and where
    the type of plain tensors is. starts: where the facts of each parameter begin in facts: axes, address, dtype, the
    gradient's dtype or ABSENT, sizes, strides, the gradient's strides. addresses: of the gradients, 0 where there is none. first:
    where the states of each parameter begin in states, which are Python objects too, and in places, the addresses of their data.
    Facts and addresses are brought up to date; report[lo] becomes MOVED or OTHER where they, or places, were different, else 0.
    Of a parameter without a gradient nothing else is asked.
    """
    is_defined, data_ptr, dtype = names["is_defined"], names["get_data_ptr"], names["get_dtype"]
    dim, sizes, strides = names["get_dim"], names["get_sizes"], names["get_strides"]
    f64, f32, f16, bf16 = codes

    def compare(arrays, report, lo, hi, word, storage):  # type: ignore[no-untyped-def]
        objects, starts, facts, addresses = load(arrays, 0), load(arrays, 1), load(arrays, 2), load(arrays, 3)
        first, states, places = load(arrays, 4), load(arrays, 5), load(arrays, 6)
        owners, specs, slots = load(arrays, 7), load(arrays, 8), load(arrays, 9)
        s, moved, other = report + 8 * (lo + 1), 0, 0  # what torch answers goes behind the range's own word
        store(report, lo, OTHER)
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
            spec = load(specs, k)
            if spec:
                part = load(load(g, 0), load(slots, 2)) & OWN
                if not part or load(part, load(slots, 0)) != spec:
                    return
                part, own = load(part, load(slots, 1)), load(load(owners, k), 0)
                if load(part, 1) != load(slots, 3) or load(own, 1) != load(slots, 3):
                    return
                g, p = part + 8 * word, own + 8 * word
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
        store(report, lo, OTHER if other else MOVED if moved else 0)

    return compare
