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


def _found(kind: str) -> Reductions:
    found: Reductions | None = getattr(_context, "reductions", None)
    if found is None:
        raise InputError(
            f"{kind} has a value only where an optimizer runs the rule: there is no tensor to look at here"
        )
    return found


def _reduced(kind: str, x: Any) -> Any:
    return _found(kind).reduce(kind, x)


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


def orthogonalize(x: Any, coefficients: Any, steps: Any) -> Any:
    """The matrix (the last two axes) with its singular values brought near 1: by products of matrices alone, `steps` of them by the
    coefficients of this name, see `gpuopt.linalg`. Both are compile-time flags. Needs a tensor of two or more axes.
    """
    return _multiplied("orthogonalize", x, coefficients, steps)


def orthogonalize_largest(x: Any, coefficients: Any, steps: Any, fraction: Any, rows: Any, columns: Any) -> Any:
    """The matrix with this fraction of its rows orthogonalized, of its columns where there are fewer of these, those with the
    largest sums of absolute values, and zeros elsewhere. rows, columns: readonly states of these shapes, which become 1 for what
    was chosen and else 0, for the next step.
    """
    return _multiplied("orthogonalize_largest", x, coefficients, steps, fraction, rows, columns)


def learn_bases(g: Any, q_left: Any, q_right: Any, gram_left: Any, gram_right: Any, renewal: Any, gain: Any) -> Any:
    """The matrix as it is. The bases become eigenvectors of averages of g g' and g' g of gradients before this one, all of them
    where `renewal` is 2, nearer ones where it is 1, and stay where it is 0, see `gpuopt.bases`; then it becomes part of the
    averages, with the weight `gain`. Both are states of the shapes "left" and "right", None where a side has none.
    """
    return _multiplied("learn_bases", g, q_left, q_right, gram_left, gram_right, renewal, gain)


def learn_roots(
    g: Any, q_left: Any, q_right: Any, gram_left: Any, gram_right: Any, renewal: Any, gain: Any, scale: Any, exponent: Any, eps: Any
) -> Any:  # fmt: skip
    """The matrix as it is, which first becomes part of the averages, as in `learn_bases`. Then, unless `renewal` is 0, each q
    becomes (scale average + eps)^(-exponent), a symmetric matrix; `from_bases` multiplies with both.
    """
    return _multiplied("learn_roots", g, q_left, q_right, gram_left, gram_right, renewal, gain, scale, exponent, eps)


def scale_by_projection(
    g: Any, scale_type: Any, projection: Any, m: Any, v: Any, length: Any, count: Any, gap: Any, beta1: Any, beta2: Any,
    eps: Any, norm_growth: Any,
) -> Any:  # fmt: skip
    """The matrix g with each column (row, where there are no more columns than rows) scaled by what Adam makes of its projection to
    few dimensions, in whose average m and average of squares v this one then has its part, see `gpuopt.projections`. scale_type: a
    compile-time flag, "channel" or "tensor"; count: of the step; gap: after how many steps the projection is drawn anew; length: of
    the last result, which this one exceeds by norm_growth at most. States of the shapes "projection", "projected" and "matrix".
    """
    given = projection, m, v, length, count, gap, beta1, beta2, eps, norm_growth
    return _multiplied("scale_by_projection", g, scale_type, *given)


def whiten(g: Any, left: Any, right: Any, count: Any, chance: Any, precond_lr: Any, init_scale: Any) -> Any:
    """The matrix left' left g right' right, of a root mean square of 1.1 at most, behind a step of both factors towards those that
    whiten matrices such as g, which is made with this chance, see `gpuopt.whitening`. count: of the step; left, right: states of
    the shapes "left_factor" and "right_factor".
    """
    return _multiplied("whiten", g, left, right, count, chance, precond_lr, init_scale)


def to_bases(x: Any, q_left: Any, q_right: Any) -> Any:
    """The matrix q_left' x q_right, in the bases as they are now."""
    return _multiplied("to_bases", x, q_left, q_right)


def from_bases(x: Any, q_left: Any, q_right: Any) -> Any:
    """The matrix q_left x q_right', the way back from `to_bases`."""
    return _multiplied("from_bases", x, q_left, q_right)


def _multiplied(name: str, x: Any, *given: Any) -> Any:
    multiply = getattr(_found(name), "product", None)
    if multiply is None:
        raise InputError(f"{name}: matrices are not multiplied here, where derivatives of a step are asked for")
    return multiply(name, x, *given)


NON_LOCAL: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        orthogonalize,
        orthogonalize_largest,
        learn_bases,
        learn_roots,
        to_bases,
        from_bases,
        scale_by_projection,
        whiten,
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
