"""Packs of elements in one access of 2 to 16 bytes, as LLVM IR for Numba CUDA: what kernels/pack.cuh is for CUDA C.

Used by the numba-cuda backend. Every pack is loaded as 32-bit words, because that is what becomes one `ld.global.v4`;
elements are cut out of the words by shifts, which cost nothing where they fall on register borders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types

from gpuopt.compiler.numba_ir import _IR, NUMBA_TYPES, decode, encode, is_code
from gpuopt.formats.dtypes import STORAGES

_I32 = ir.IntType(32)
_tuple_type: Any = types.UniTuple


def _word_types(storage: str, count: int) -> tuple[ir.Type, int, int]:
    """The type of one access, its bytes, and the bits of one of its words."""
    size = STORAGES[storage].itemsize * count
    if size < 4:
        return ir.IntType(8 * size), size, 8 * size
    return (ir.VectorType(_I32, size // 4) if size > 4 else _I32), size, 32


def _words(builder: ir.IRBuilder, loaded: ir.Value) -> list[ir.Value]:
    if isinstance(loaded.type, ir.VectorType):
        return [builder.extract_element(loaded, ir.Constant(_I32, k)) for k in range(loaded.type.count)]
    return [loaded]


def _cut(builder: ir.IRBuilder, words: list[ir.Value], storage: str, k: int, bits: int) -> ir.Value:
    """The raw k-th element of the words, in its LLVM storage type."""
    size = 8 * STORAGES[storage].itemsize
    target = _IR[storage]
    if size == 64:
        i64 = ir.IntType(64)
        high = builder.shl(builder.zext(words[2 * k + 1], i64), ir.Constant(i64, 32))
        return builder.bitcast(builder.or_(builder.zext(words[2 * k], i64), high), target)
    per = bits // size
    word = words[k // per]
    shifted = builder.lshr(word, ir.Constant(word.type, size * (k % per))) if k % per else word
    narrow = builder.trunc(shifted, ir.IntType(size)) if size < bits else shifted
    return narrow if isinstance(target, ir.IntType) else builder.bitcast(narrow, target)


def _paste(builder: ir.IRBuilder, raws: list[ir.Value], storage: str, bits: int) -> list[ir.Value]:
    """Raw elements joined into words."""
    size = 8 * STORAGES[storage].itemsize
    whole = [r if isinstance(r.type, ir.IntType) else builder.bitcast(r, ir.IntType(size)) for r in raws]
    if size == 64:
        halves = []
        for value in whole:
            halves.append(builder.trunc(value, _I32))
            halves.append(builder.trunc(builder.lshr(value, ir.Constant(value.type, 32)), _I32))
        return halves
    per, words = bits // size, []
    for start in range(0, len(whole), per):
        word = None
        for k, value in enumerate(whole[start : start + per]):
            wide = builder.zext(value, ir.IntType(bits)) if size < bits else value
            wide = builder.shl(wide, ir.Constant(wide.type, size * k)) if k else wide
            word = wide if word is None else builder.or_(word, wide)
        words.append(word)
    return words


def _element_type(storage: str, compute: str) -> Any:
    return types.uint32 if is_code(storage) else NUMBA_TYPES[compute]


def load_pack(intrinsic: Any, storage: str, compute: str, count: int) -> Callable[..., Any]:
    """`f(address) -> tuple of count values` in the compute type; the address is aligned to the whole pack."""
    result_type: Any = _tuple_type(_element_type(storage, compute), count)

    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            kind, align, bits = _word_types(storage, count)
            pointer = builder.inttoptr(args[0], ir.PointerType(kind, addrspace=1))
            words = _words(builder, builder.load(pointer, align=align, typ=kind))
            values = [decode(builder, storage, _cut(builder, words, storage, k, bits)) for k in range(count)]
            if storage == "bool" and compute == "float64":
                values = [builder.fpext(v, ir.DoubleType()) for v in values]
            return context.make_tuple(builder, signature.return_type, values)

        return result_type(types.int64), codegen

    made: Callable[..., Any] = load
    return made


def store_pack(intrinsic: Any, storage: str, compute: str, count: int) -> Callable[..., Any]:
    """`f(address, tuple of count values)`: one access, each value rounded to its storage type."""
    values_type: Any = _tuple_type(_element_type(storage, compute), count)

    @intrinsic
    def store(typingctx: Any, address: Any, values: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            kind, align, bits = _word_types(storage, count)
            values = [builder.extract_value(args[1], k) for k in range(count)]
            words = _paste(builder, [encode(builder, storage, v) for v in values], storage, bits)
            if isinstance(kind, ir.VectorType):
                packed = ir.Constant(kind, ir.Undefined)
                for k, word in enumerate(words):
                    packed = builder.insert_element(packed, word, ir.Constant(_I32, k))
            else:
                packed = words[0]
            pointer = builder.inttoptr(args[0], ir.PointerType(kind, addrspace=1))
            builder.store(packed, pointer, align=align)
            return context.get_dummy_value()

        return types.void(types.int64, values_type), codegen

    made: Callable[..., Any] = store
    return made
