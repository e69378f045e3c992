"""The functions that a rule may call, and what they are where NumPy (or torch) runs the rule itself: the reference of every kernel.

Written for the authors of rules, who import them from `gpuopt`. Knows no rule, compiler or backend.

`sqrt abs sign minimum maximum where` look at one element, and each is exactly rounded (or exact) under IEEE 754. `tensor_sum` and
its kin look at many: whoever runs a rule says how they are computed (`reductions`).
"""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from gpuopt.errors import InputError

# NumPy's own `where`, `minimum` and `sign` widen to float64 or leave the sign of zero to the SIMD unit; these do not.

_context = threading.local()

# Arrays that are not NumPy's -> their `where(condition, a, b, compute type)` and `sqrt`, added by who runs rules on them.
ELSEWHERE: dict[type, tuple[Callable[..., Any], Callable[[Any], Any]]] = {}


class compute_dtype:
    """Context in which two bare literals meet: `where(x > 0, 1, 0)` has no array to take its dtype from. epsilon: of the dtype in
    which the parameter is kept.
    """

    def __init__(self, dtype: np.dtype[Any], epsilon: float | None = None) -> None:
        self.found = dtype, epsilon

    def __enter__(self) -> None:
        self.outer = getattr(_context, "dtype", None), getattr(_context, "epsilon", None)
        _context.dtype, _context.epsilon = self.found

    def __exit__(self, *_: object) -> None:
        _context.dtype, _context.epsilon = self.outer


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where the condition holds, else `b`; literals take the compute type."""
    dtype = getattr(a, "dtype", None) or getattr(b, "dtype", None)
    if not isinstance(condition, np.ndarray | np.generic):
        for kind, (select, _) in ELSEWHERE.items():
            if isinstance(condition, kind):
                return select(condition, a, b, getattr(_context, "dtype", None) or np.float64)
        chosen = a if condition else b  # of scalars: the same for every element
        if isinstance(dtype, np.dtype):
            return np.asarray(chosen, dtype)[()]
        return Number(chosen) if isinstance(a, Number) or isinstance(b, Number) else chosen
    dtype = dtype or getattr(_context, "dtype", None) or np.float64
    return np.where(condition, np.asarray(a, dtype), np.asarray(b, dtype))


def minimum(a: Any, b: Any) -> Any:
    """The smaller of both; NaN if either is NaN; `b` where both are equal (so -0.0 and 0.0 have one answer)."""
    return where((a < b) | (a != a), a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger of both; NaN if either is NaN; `b` where both are equal."""
    return where((a > b) | (a != a), a, b)


def sign(x: Any) -> Any:
    """-1, 0 or 1; `sign(0) = sign(-0) = +0` and NaN stays NaN, so a bad gradient is never silently swallowed."""
    return where(x > 0, 1.0, where(x < 0, -1.0, x - x))


def sqrt(x: Any) -> Any:
    """Correctly rounded square root, NaN for negative numbers."""
    if isinstance(x, np.ndarray | np.generic):
        return np.sqrt(x)
    for kind, (_, root) in ELSEWHERE.items():
        if isinstance(x, kind):
            return root(x)
    found = math.sqrt(x) if x >= 0 else math.nan
    return Number(found) if isinstance(x, Number) else found


PRIMITIVES: dict[str, Callable[..., Any]] = {
    "sqrt": sqrt,
    "abs": abs,
    "sign": sign,
    "minimum": minimum,
    "maximum": maximum,
    "where": where,
}

# ---------------------------------------------------------------------------------------------------- of formats alone


def bits(x: Any) -> Any:
    """The 32 bits of float32 numbers, as whole numbers."""
    return np.asarray(x, np.float32).view(np.uint32)


def from_bits(n: Any) -> Any:
    """The float32 numbers that have these 32 bits."""
    return np.asarray(n, np.uint32).view(np.float32)


def block_max(x: Any) -> Any:
    """The largest value of this one's block; NaN where one is."""
    return _reduced("block_max", x)


def block_min(x: Any) -> Any:
    """The smallest value of this one's block; NaN where one is."""
    return _reduced("block_min", x)


WHOLE: dict[str, Callable[..., Any]] = {f.__name__: f for f in (bits, from_bits, block_max, block_min)}

# ---------------------------------------------------------------------------------------------------- of a whole tensor


class Number(float):
    """One number of a tensor or of all, in float64: arithmetic among such numbers is IEEE's, as kernels compute it, where Python
    would raise. An array that meets it keeps its dtype, as where it meets a number of Python.
    """

    __slots__ = ()
    # NumPy, which would take it for an array of float64, leaves the operation to the methods below.
    __array_ufunc__ = None

    def __neg__(self) -> Number:
        return Number(-float(self))

    def __abs__(self) -> Number:
        return Number(abs(float(self)))


def divided(a: Any, b: Any) -> Any:
    """IEEE division: a / 0 is an infinity or NaN, not an exception."""
    if isinstance(a, np.ndarray | np.generic) or isinstance(b, np.ndarray | np.generic) or b != 0:
        return a / b
    return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def _method(operation: Callable[[Any, Any], Any], swapped: bool) -> Callable[[Number, Any], Any]:
    def method(self: Number, other: Any) -> Any:
        if not isinstance(other, (float, int, np.ndarray, np.generic)):
            return NotImplemented
        other = float(other) if isinstance(other, Number) else other
        found = operation(other, float(self)) if swapped else operation(float(self), other)
        return Number(found) if type(found) is float else found

    return method


for _name, _operation in (("add", operator.add), ("sub", operator.sub), ("mul", operator.mul), ("truediv", divided)):
    setattr(Number, f"__{_name}__", _method(_operation, False))
    setattr(Number, f"__r{_name}__", _method(_operation, True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Number, f"__{_name}__", _method(getattr(operator, _name), False))
Number.__hash__ = float.__hash__  # type: ignore[method-assign]


class Reductions(Protocol):
    """How the values below are found for the tensor that a rule runs on; see `backends.numpy`."""

    def reduce(self, kind: str, x: Any) -> Any: ...


class reductions:
    """Context in which a rule can ask for sums."""

    def __init__(self, found: Reductions) -> None:
        self.found = found

    def __enter__(self) -> None:
        self.outer = getattr(_context, "reductions", None)
        _context.reductions = self.found

    def __exit__(self, *_: object) -> None:
        _context.reductions = self.outer


def asked_of(kind: str) -> Reductions:
    """Who finds what is asked for. Raises InputError where nobody does."""
    found: Reductions | None = getattr(_context, "reductions", None)
    if found is None:
        raise InputError(
            f"{kind} has a value only where an optimizer runs the rule: there is no tensor to look at here"
        )
    return found


def _reduced(kind: str, x: Any) -> Any:
    return asked_of(kind).reduce(kind, x)


def tensor_sum(x: Any) -> Any:
    """The sum over all elements of this tensor: one number, joined in float64 in an order that nothing changes."""
    return _reduced("tensor_sum", x)


def tensor_max(x: Any) -> Any:
    """The largest element of this tensor; NaN where one is."""
    return _reduced("tensor_max", x)


def global_sum(x: Any) -> Any:
    """The sum over all elements of all tensors of the optimizer that have a gradient, independent of their order."""
    return _reduced("global_sum", x)


def row_sum(x: Any) -> Any:
    """One number a row of the matrix (the last two axes): the sum over its columns. Needs a tensor of two or more axes."""
    return _reduced("row_sum", x)


def column_sum(x: Any) -> Any:
    """One number a column of the matrix (the last two axes): the sum over its rows. Needs a tensor of two or more axes."""
    return _reduced("column_sum", x)


def numel(x: Any) -> Any:
    """The number of elements of this tensor."""
    return _reduced("numel", x)


def rows(x: Any) -> Any:
    """The number of rows of the matrix: the length of the second last axis."""
    return _reduced("rows", x)


def columns(x: Any) -> Any:
    """The number of columns of the matrix: the length of the last axis."""
    return _reduced("columns", x)


def epsilon(x: Any) -> Any:
    """The machine epsilon of the dtype in which this parameter is kept: from 1 to the next number."""
    found = getattr(_context, "epsilon", None)
    return _reduced("epsilon", x) if found is None else found


NON_LOCAL: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        tensor_sum,
        tensor_max,
        global_sum,
        row_sum,
        column_sum,
        numel,
        rows,
        columns,
        epsilon,
    )
}
