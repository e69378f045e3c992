"""Arithmetic of generated text as LLVM IR, for Numba on CPU and CUDA: rounded as IEEE 754 says, without branches.

Used by the numba and numba-cuda backends. Knows no memory and no storage type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types


def _call(name: str) -> Callable[..., ir.Value]:
    """Emit a call of an LLVM or NVVM intrinsic of the operands' type; `{}` in the name is f or d."""

    def emit(builder: ir.IRBuilder, *values: ir.Value) -> ir.Value:
        kind = values[0].type
        if "{}" in name:
            full = name.format("f" if isinstance(kind, ir.FloatType) else "d")
            found = builder.module.globals.get(full)
            function = found or ir.Function(builder.module, ir.FunctionType(kind, [kind] * len(values)), full)
        else:
            function = builder.module.declare_intrinsic(name, [kind])
        return builder.call(function, values)

    return emit


def _pick(comparison: str) -> Callable[..., ir.Value]:
    """minimum and maximum of rules.language: `a` where it compares or is NaN, else `b`."""

    def emit(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
        first = builder.or_(builder.fcmp_ordered(comparison, a, b), builder.fcmp_unordered("uno", a, a))
        return builder.select(first, a, b)

    return emit


def _sign(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    zero = ir.Constant(x.type, 0.0)
    rest = builder.select(builder.fcmp_ordered("<", x, zero), ir.Constant(x.type, -1.0), builder.fsub(x, x))
    return builder.select(builder.fcmp_ordered(">", x, zero), ir.Constant(x.type, 1.0), rest)


def _whole(name: str) -> tuple[int, Callable[..., ir.Value]]:
    """An operation on whole numbers of 32 bits."""
    return 2, lambda builder, a, b: getattr(builder, name)(a, b)


# What the primitives become. LLVM fuses a product and a sum on the GPU only, so only there `mul` needs a name of its own;
# branches are never emitted, and math.sqrt (which sets errno) is not called, so that loops vectorise.
_SHARED: dict[str, tuple[int, Callable[..., ir.Value]]] = {
    "minimum": (2, _pick("<")),
    "maximum": (2, _pick(">")),
    "sign": (1, _sign),
    "iadd": _whole("add"),
    "isub": _whole("sub"),
    "imul": _whole("mul"),
    "iand": _whole("and_"),
    "ior": _whole("or_"),
    "ixor": _whole("xor"),
    "ishl": _whole("shl"),
    "ishr": _whole("lshr"),
}
ARITHMETIC: dict[str, dict[str, tuple[int, Callable[..., ir.Value]]]] = {
    "cpu": _SHARED
    | {
        "mul": (2, lambda builder, a, b: builder.fmul(a, b)),
        "div": (2, lambda builder, a, b: builder.fdiv(a, b)),
        "sqrt": (1, _call("llvm.sqrt")),
        "absolute": (1, _call("llvm.fabs")),
    },
    "cuda": _SHARED
    | {
        "mul": (2, _call("llvm.nvvm.mul.rn.{}")),
        "div": (2, _call("llvm.nvvm.div.rn.{}")),
        "sqrt": (1, _call("llvm.nvvm.sqrt.rn.{}")),
        "absolute": (1, _call("llvm.nvvm.fabs.{}")),
    },
}


def arithmetic(intrinsic: Any, target: str) -> dict[str, Callable[..., Any]]:
    """The primitives that generated text calls, as functions for Numba on this target."""
    made: dict[str, Callable[..., Any]] = {"select": _select(intrinsic)}
    made |= {"float_bits": _cast(intrinsic, types.float32, types.uint32), "U": np.uint32}
    made |= {name: _order(intrinsic, sign) for name, sign in (("block_max_order", 1.0), ("block_min_order", -1.0))}
    made |= {name: _value(intrinsic, sign) for name, sign in (("block_max_value", 1.0), ("block_min_value", -1.0))}
    made["larger"] = _larger(intrinsic)
    made["bits_float"] = _cast(intrinsic, types.uint32, types.float32)
    for name, (count, emit) in ARITHMETIC[target].items():
        made[name] = intrinsic(_typed(count, emit))
    return made


def _cast(intrinsic: Any, of: Any, to: Any) -> Callable[..., Any]:
    """`f(x)`: the same 32 bits as another type."""

    @intrinsic
    def cast(typingctx: Any, x: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return builder.bitcast(args[0], context.get_value_type(to))

        return to(of), codegen

    made: Callable[..., Any] = cast
    return made


def _order(intrinsic: Any, sign: float) -> Callable[..., Any]:
    """`f(x)`: a whole number with a sign that is larger where x is, or where x is smaller for the other sign; larger than all of
    them for NaN. A maximum of such numbers is vectorised, one of floating-point numbers that minds NaN is not.
    """

    @intrinsic
    def order(typingctx: Any, x: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            i32 = ir.IntType(32)
            y = args[0]
            bits = builder.bitcast(builder.fneg(y) if sign < 0 else y, i32)
            flip = builder.and_(builder.ashr(bits, ir.Constant(i32, 31)), ir.Constant(i32, 0x7FFFFFFF))
            found = builder.xor(bits, flip)
            nan = builder.and_(bits, ir.Constant(i32, 0x7FFFFFFF))  # so written, it costs nothing for what has no sign
            return builder.select(builder.fcmp_unordered("uno", y, y), nan, found)

        return types.int32(types.float32), codegen

    made: Callable[..., Any] = order
    return made


def _larger(intrinsic: Any) -> Callable[..., Any]:
    """`f(a, b)`: the larger of two whole numbers with a sign."""

    @intrinsic
    def larger(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return builder.select(builder.icmp_signed(">", *args), *args)

        return types.int32(types.int32, types.int32), codegen

    made: Callable[..., Any] = larger
    return made


def _value(intrinsic: Any, sign: float) -> Callable[..., Any]:
    """The number that `_order` made such a one of; +0 for both zeros, and one NaN for all."""

    @intrinsic
    def value(typingctx: Any, n: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            i32, f32 = ir.IntType(32), ir.FloatType()
            flip = builder.and_(builder.ashr(args[0], ir.Constant(i32, 31)), ir.Constant(i32, 0x7FFFFFFF))
            found = builder.bitcast(builder.xor(args[0], flip), f32)
            found = builder.fadd(builder.fneg(found) if sign < 0 else found, ir.Constant(f32, 0.0))
            nan = builder.icmp_signed(">", args[0], ir.Constant(i32, 0x7F800000))
            return builder.select(nan, builder.bitcast(ir.Constant(i32, 0x7FC00000), f32), found)

        return types.float32(types.int32), codegen

    made: Callable[..., Any] = value
    return made


def integer_power(intrinsic: Any) -> Callable[..., Any]:
    """`ipow(base, exponent)` in float64 by repeated squaring, the same roundings as compiler/host.py; on the GPU."""
    _, mul = ARITHMETIC["cuda"]["mul"]

    @intrinsic
    def ipow(typingctx: Any, base: Any, exponent: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            f64, i64 = ir.DoubleType(), ir.IntType(64)
            zero, one = ir.Constant(i64, 0), ir.Constant(f64, 1.0)
            negative = builder.icmp_signed("<", args[1], zero)
            start = builder.block
            test, body, end = (builder.append_basic_block(n) for n in ("power.test", "power.body", "power.end"))
            count = builder.select(negative, builder.sub(zero, args[1]), args[1])
            builder.branch(test)
            builder.position_at_end(test)
            n, square, result = builder.phi(i64), builder.phi(f64), builder.phi(f64)
            builder.cbranch(builder.icmp_signed("!=", n, zero), body, end)
            builder.position_at_end(body)
            odd = builder.trunc(n, ir.IntType(1))
            product = builder.select(odd, mul(builder, result, square), result)
            half, squared = builder.lshr(n, ir.Constant(i64, 1)), mul(builder, square, square)
            builder.branch(test)
            for phi, first, later in ((n, count, half), (square, args[0], squared), (result, one, product)):
                phi.add_incoming(first, start)
                phi.add_incoming(later, body)
            builder.position_at_end(end)
            return builder.select(negative, builder.fdiv(one, result), result)

        return types.float64(types.float64, types.int64), codegen

    made: Callable[..., Any] = ipow
    return made


def quotient(intrinsic: Any) -> Callable[..., Any]:
    """a // b of numbers from 0 on, in 32 bits where both have no more, which is several times as fast."""

    @intrinsic
    def divided(typingctx: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            i64, i32 = ir.IntType(64), ir.IntType(32)
            high = builder.lshr(builder.or_(*args), ir.Constant(i64, 32))
            with builder.if_else(builder.icmp_signed("!=", high, ir.Constant(i64, 0))) as (large, small):
                with large:
                    whole, first = builder.udiv(*args), builder.block
                with small:
                    short = builder.zext(builder.udiv(*(builder.trunc(a, i32) for a in args)), i64)
                    second = builder.block
            result = builder.phi(i64)
            result.add_incoming(whole, first)
            result.add_incoming(short, second)
            return result

        return types.int64(types.int64, types.int64), codegen

    made: Callable[..., Any] = divided
    return made


def double_bits(intrinsic: Any) -> Callable[..., Any]:
    """The 64 bits of a double as a whole number."""

    @intrinsic
    def bits(typingctx: Any, x: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return builder.bitcast(args[0], ir.IntType(64))

        return types.int64(types.float64), codegen

    made: Callable[..., Any] = bits
    return made


def power_of_two(intrinsic: Any) -> Callable[..., Any]:
    """2 to an exponent up to 1023, as float64; zero below the smallest normal number."""

    @intrinsic
    def power(typingctx: Any, exponent: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            i64 = ir.IntType(64)
            bits = builder.shl(builder.add(args[0], ir.Constant(i64, 1023)), ir.Constant(i64, 52))
            small = builder.icmp_signed("<", args[0], ir.Constant(i64, -1022))
            return builder.bitcast(builder.select(small, ir.Constant(i64, 0), bits), ir.DoubleType())

        return types.float64(types.int64), codegen

    made: Callable[..., Any] = power
    return made


def _typed(count: int, emit: Callable[..., ir.Value]) -> Callable[..., Any]:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return emit(builder, *args)

    def unary(typingctx: Any, a: Any) -> Any:
        return a(a), codegen

    def binary(typingctx: Any, a: Any, b: Any) -> Any:
        return a(a, a), codegen

    return unary if count == 1 else binary


def _select(intrinsic: Any) -> Callable[..., Any]:
    """`f(condition, a, b)` without a branch."""

    def select(typingctx: Any, condition: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return builder.select(args[0], args[1], args[2])

        return a(types.boolean, a, a), codegen

    result: Callable[..., Any] = intrinsic(select)
    return result
