"""Straight lines of typed operations as LLVM IR: conversions of elements, made where these are loaded and stored, out of sight of
Numba's text. Called by `numba_ir`. Knows no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llvmlite import ir

from gpuopt.compiler.numba_arithmetic import ARITHMETIC
from gpuopt.compiler.tree import COMPARISONS, Assign, Expr
from gpuopt.compiler.whole import CONSTANT, FOLDED

_SIGNS = dict(zip(COMPARISONS, ("<", "<=", ">", ">=", "==", "!="), strict=True))
_I32, _F32 = ir.IntType(32), ir.FloatType()


def _compared(sign: str) -> Callable[..., ir.Value]:
    """Of numbers: nothing but != is true of NaN."""
    return lambda b, x, y: (b.fcmp_unordered if sign == "!=" else b.fcmp_ordered)(sign, x, y)


# What primitives become on every target; a product is written only where no sum follows it, with which NVVM would fuse it.
_EMIT: dict[str, Callable[..., Any]] = {
    "add": lambda b, x, y: b.fadd(x, y),
    "sub": lambda b, x, y: b.fsub(x, y),
    "mul": lambda b, x, y: b.fmul(x, y),
    "where": lambda b, c, x, y: b.select(c, x, y),
    "iwhere": lambda b, c, x, y: b.select(c, x, y),
    "bits": lambda b, x: b.bitcast(x, _I32),
    "from_bits": lambda b, x: b.bitcast(x, _F32),
    "abs": ARITHMETIC["cpu"]["absolute"][1],
    **{op: _compared(sign) for op, sign in _SIGNS.items()},
    **{"i" + op: lambda b, x, y, sign=sign: b.icmp_unsigned(sign, x, y) for op, sign in _SIGNS.items()},
    **{op: ARITHMETIC["cpu"][op][1] for op in FOLDED},
}


def straight(builder: ir.IRBuilder, body: Sequence[Assign], given: Mapping[str, ir.Value]) -> ir.Value:
    """What the last statement assigns. given: the variables that there are before the first."""
    known = dict(given)

    def value(expr: Expr) -> ir.Value:
        if expr.op == "name":
            return known[str(expr.args[0])]
        if expr.op == CONSTANT:
            return ir.Constant(_I32, expr.args[0])
        if expr.op == "const":
            return ir.Constant(_F32, expr.args[0])
        return _EMIT[expr.op](builder, *map(value, expr.children()))

    for statement in body:
        known[statement.name] = value(statement.expr)
    return known[body[-1].name]
