"""Random bits as LLVM IR, for Numba on CPU and CUDA: what kernels/random.cuh is for CUDA C. See formats/philox.py.

Used by the numba and numba-cuda backends. Knows no storage format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types

from gpuopt.formats import philox as generator

_tuple_type: Any = types.UniTuple


def philox(intrinsic: Any, bits: int = generator.WORD) -> Callable[..., Any]:
    """`f(block, stream, step, tensor, seed) -> the bits of each element of a block`: see formats/philox.py."""
    i32, i64 = ir.IntType(32), ir.IntType(64)

    def half(builder: ir.IRBuilder, value: ir.Value, upper: bool) -> ir.Value:
        return builder.trunc(builder.lshr(value, ir.Constant(i64, 32)) if upper else value, i32)

    def round_of(builder: ir.IRBuilder, counter: list[ir.Value], key: list[ir.Value]) -> list[ir.Value]:
        a, b, c, d = counter
        factors = [ir.Constant(i64, m) for m in generator.MULTIPLIERS]
        first, second = (builder.mul(builder.zext(x, i64), m) for x, m in zip((a, c), factors, strict=True))
        left = builder.xor(builder.xor(half(builder, second, True), b), key[0])
        right = builder.xor(builder.xor(half(builder, first, True), d), key[1])
        return [left, half(builder, second, False), right, half(builder, first, False)]

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        block, stream, step, tensor, seed = args
        above = builder.shl(half(builder, stream, False), ir.Constant(i32, 24))
        counter = [half(builder, block, False), builder.or_(half(builder, block, True), above)]
        counter += [half(builder, step, False), half(builder, tensor, False)]
        key = [half(builder, seed, False), half(builder, seed, True)]
        for number in range(generator.ROUNDS):
            counter = round_of(builder, counter, key)
            if number + 1 < generator.ROUNDS:
                key = [builder.add(k, ir.Constant(i32, w)) for k, w in zip(key, generator.WEYL, strict=True)]
        shifts = [ir.Constant(i32, shift) for shift in range(0, generator.WORD, bits)]
        parts = [builder.lshr(word, shift) for word in counter for shift in shifts]
        parts = [builder.and_(part, ir.Constant(i32, (1 << bits) - 1)) for part in parts]
        return context.make_tuple(builder, signature.return_type, parts)

    @intrinsic
    def words(typingctx: Any, block: Any, stream: Any, step: Any, tensor: Any, seed: Any) -> Any:
        return _tuple_type(types.uint32, generator.per_call(bits))(*(types.int64,) * 5), codegen

    result: Callable[..., Any] = words
    return result


def chosen(intrinsic: Any) -> Callable[..., Any]:
    """`f(bits of each element, index) -> those of one`, without memory that would be indexed."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        words, index = args
        found = builder.extract_value(words, 0)
        for k in range(1, signature.args[0].count):
            here = builder.icmp_signed("==", index, ir.Constant(index.type, k))
            found = builder.select(here, builder.extract_value(words, k), found)
        return found

    @intrinsic
    def choose(typingctx: Any, words: Any, index: Any) -> Any:
        return types.uint32(words, types.int64), codegen

    result: Callable[..., Any] = choose
    return result
