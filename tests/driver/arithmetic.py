"""What PTX instructions compute, in NumPy: tables from an operation's name to a function of arrays. Semantics: PTX ISA manual.

Used by instructions.py. Knows no registers and no memory; `bf16` and `f16` values are passed as their bits.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driver.memory import Fault

Array = NDArray[Any]
DType = np.dtype[Any]
Binary = Callable[[Array, Array], Array]

KIND = {"b": "u", "u": "u", "s": "i", "f": "f"}
TYPES = {"pred", "bf16", "f16", "f32", "f64", *(f"{k}{n}" for k in "bus" for n in (8, 16, 32, 64))}
BOOL = np.dtype(np.bool_)
NAN32, NAN16 = 0x7FFFFFFF, 0x7FFF  # the NaN that arithmetic of float32 and conversions to 16 bits give


@cache
def dtype(name: str) -> DType:
    """NumPy's type of u32, f64, ...; predicates are bool, bf16 is its bits."""
    fixed: dict[str, Any] = {"pred": np.bool_, "bf16": np.uint16}
    return np.dtype(fixed[name] if name in fixed else f"{KIND[name[0]]}{int(name[1:]) // 8}")


def canonical(x: Array) -> Array:
    """Every NaN of float32 the one that a GPU gives."""
    if x.dtype == np.float32:
        x.view(np.uint32)[x != x] = NAN32
    return x


def flushed(x: Array) -> Array:
    """.ftz: subnormal float32 numbers are zeros of the same sign."""
    if x.dtype != np.float32:
        return x
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return canonical(np.asarray(a / b))
    if (b == 0).any():
        raise Fault("whole-number division by zero")
    if a.dtype.kind == "u":
        result: Array = a // b
        return result
    lowest = (a == np.iinfo(a.dtype).min).any()
    one, other = (np.abs(x.astype(object)) if lowest else np.abs(x) for x in (a, b))
    quotient = one // other
    return np.asarray(np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype))


def shift(left: bool, a: Array, count: Array) -> Array:
    """shl and shr: a count beyond the width shifts everything out."""
    bits = 8 * a.itemsize
    n = np.minimum(count.view(np.uint32), bits)
    over, n = n >= bits, np.where(n >= bits, bits - 1, n).astype(a.dtype)
    if left:
        return np.where(over, a.dtype.type(0), a << n)
    return np.where(over, a >> n >> a.dtype.type(1) if a.dtype.kind == "u" else a >> n, a >> n)


def high(a: Array, b: Array) -> Array:
    """mul.hi: the upper half of the product; of 32 bits at most."""
    if a.itemsize > 4:
        raise NotImplementedError("mul.hi of 64 bits")
    wide = np.dtype(f"{a.dtype.kind}{2 * a.itemsize}")
    return np.asarray((a.astype(wide) * b.astype(wide) >> wide.type(8 * a.itemsize)).astype(a.dtype))


def rounded_to_bf16(x: Array) -> Array:
    """The bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(x != x, np.uint16(NAN16), rounded)


def to_whole(x: Array, target: DType) -> Array:
    """cvt of a whole number in floating point: saturates; NaN is 0, or the highest bit where either side has 64 bits."""
    info = np.iinfo(target)
    inside = (x > float(info.min)) & (x < float(info.max))
    result = np.where(x >= float(info.max), info.max, info.min).astype(target)
    result[inside] = np.trunc(x[inside]).astype(target)
    wide = x.dtype == np.float64 or target.itemsize == 8
    highest = np.array(1 << (8 * target.itemsize - 1), f"u{target.itemsize}").view(target)
    result[x != x] = highest if wide else 0
    return result


def fma(a: Array, b: Array, c: Array) -> Array:
    """Exactly rounded, by fractions; special values as a * b + c gives them."""
    out = np.array(np.broadcast_to(a * b + c, np.broadcast_shapes(a.shape, b.shape, c.shape)))
    if out.dtype != np.float64:
        raise NotImplementedError("fma of another type than f64")
    a, b, c = (np.broadcast_to(x, out.shape) for x in (a, b, c))
    for k in np.flatnonzero(np.isfinite(a) & np.isfinite(b) & np.isfinite(c)):
        exact = Fraction(float(a[k])) * Fraction(float(b[k])) + Fraction(float(c[k]))
        if exact:  # a sum that vanishes has the sign that a * b + c gives
            try:
                out[k] = float(exact)
            except OverflowError:
                out[k] = np.inf if exact > 0 else -np.inf
    return out


def permuted(a: Array, b: Array, selector: Array) -> Array:
    """prmt: each digit of the selector takes one of eight bytes or, with its highest bit, that byte's sign eight times."""
    joined: Array = a | b << np.uint64(32)
    result: Array = np.zeros_like(joined)
    for k in range(4):
        digit = selector >> np.uint64(4 * k) & np.uint64(15)
        byte = joined >> np.uint64(8) * (digit & np.uint64(7)) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        result = result | np.where(digit & np.uint64(8), sign, byte) << np.uint64(8 * k)
    return result.astype(np.uint32)


def greatest(a: Array, b: Array) -> Array:
    """max: -0 < +0, and a NaN gives way to a number."""
    if a.dtype.kind != "f":
        return np.asarray(np.maximum(a, b))
    larger = np.where((a > b) | (b != b), a, b)
    return canonical(np.where((a == 0) & (b == 0), a + b, larger))


def least(a: Array, b: Array) -> Array:
    """min, in the same way."""
    if a.dtype.kind != "f":
        return np.asarray(np.minimum(a, b))
    return canonical(-greatest(-a, -b))


def or_nan(function: Binary) -> Binary:
    """min.NaN and max.NaN: a NaN does not give way."""
    return lambda a, b: canonical(np.where((a != a) | (b != b), a + b, function(a, b)))


BINARY: dict[str, Binary] = {
    "add": lambda a, b: canonical(a + b),
    "sub": lambda a, b: canonical(a - b),
    "mul": lambda a, b: canonical(a * b),
    "div": _divide,
    "rem": lambda a, b: a - b * _divide(a, b),
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "min": least,
    "max": greatest,
}
OR_NAN = {"min": or_nan(least), "max": or_nan(greatest)}
UNARY: dict[str, Callable[[Array], Array]] = {
    "neg": lambda a: canonical(-a),
    "not": lambda a: ~a,
    "abs": lambda a: canonical(np.abs(a)),
    "sqrt": lambda a: canonical(np.sqrt(a)),
    "rcp": lambda a: canonical(a.dtype.type(1) / a),
    "popc": lambda a: np.bitwise_count(a).astype(np.uint32),
}
# ne, and the comparisons that end in u, are true of a NaN or not as the manual says; whole numbers have no such case.
COMPARE: dict[str, Binary] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: (a < b) | (a > b),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": lambda a, b: ~(a == b),
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}
COMPARE |= {"lo": COMPARE["lt"], "ls": COMPARE["le"], "hi": COMPARE["gt"], "hs": COMPARE["ge"]}
JOIN: dict[str, Binary] = {"and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b}
WHOLE: dict[str, Callable[[Array], Array]] = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
