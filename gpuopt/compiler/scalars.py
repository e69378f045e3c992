"""Scalar formulas as Python text in float64, and the few functions that the text calls; the twins of both are in `to_cuda`.

The host computes what Python would, errors included, but for whole powers, which go by repeated squaring as on the device, so that
both sides give the same bits. Used by `host` and `lower`; knows no rule.
"""

from __future__ import annotations

import math
from typing import Any

from gpuopt.compiler.names import literal, safe
from gpuopt.compiler.tree import Expr
from gpuopt.rules.primitives import PRIMITIVES

_PYTHON = {
    "add": "({} + {})",
    "sub": "({} - {})",
    "mul": "({} * {})",
    "div": "({} / {})",
    "neg": "(-{})",
    "lt": "({} < {})",
    "le": "({} <= {})",
    "gt": "({} > {})",
    "ge": "({} >= {})",
    "eq": "({} == {})",
    "ne": "({} != {})",
    "where": "where({}, {}, {})",
    "if": "({1} if {0} else {2})",
    "pow": "power({}, {})",
    **{name: name + "({})" for name in ("sqrt", "abs", "sign", "exp", "log", "root")},
    **{name: name + "({}, {})" for name in ("minimum", "maximum")},
}


def ipow(base: float | int, exponent: int) -> float:
    """base ** exponent by repeated squaring: the same roundings as the device's loop. Raises what Python raises."""
    if exponent < 0:
        return 1.0 / squaring(base, -exponent)
    result = squaring(base, exponent)
    if math.isinf(result) and not math.isinf(base):
        if not isinstance(base, int):
            raise OverflowError(f"{base!r} ** {exponent} is larger than any float64")
        exact: int = base**exponent
        return exact  # a whole number of Python has no end, and something may be divided by it
    return result


def squaring(base: float, exponent: int) -> float:
    """base ** exponent for exponents from 0 on, from the least significant bit up."""
    result, square = 1.0, float(base)
    while exponent:
        if exponent & 1:
            result *= square
        exponent >>= 1
        square *= square
    return result


def power(base: float, exponent: float) -> float:
    """A real power; an integral exponent of int type takes the exact path."""
    return ipow(base, exponent) if isinstance(exponent, int) else math.pow(base, exponent)


def row_namespace() -> dict[str, Any]:
    """The names that printed expressions call."""
    return {**PRIMITIVES, "power": power, "exp": math.exp, "log": math.log, "root": math.sqrt}


def print_expr(expr: Expr) -> str:
    """Python text of a scalar expression."""
    if expr.op == "name":
        return "step" if expr.args[0] == "step" else safe(str(expr.args[0]))
    if expr.op == "const":
        number = expr.args[0]
        return literal(number, "1e999") if isinstance(number, float) else repr(number)
    if expr.op == "count":
        return f"(step >> {expr.args[0]} & 0xFFFF)"
    return _PYTHON[expr.op].format(*(print_expr(child) for child in expr.children()))


def constant(expr: Expr) -> float:
    """The value of an expression without variables, in float64."""
    return float(eval(print_expr(expr), row_namespace()))
