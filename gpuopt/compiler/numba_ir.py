"""Typed loads and stores by address as LLVM IR, for Numba on CPU and CUDA. Used by the numba and numba-cuda backends.

Each role gets its own alias scope: the plan has checked that no two arrays overlap, and telling LLVM so lets it vectorise
loops over any number of arrays. Conversions are those of `gpuopt.compiler.conversions`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types

from gpuopt.compiler import conversions
from gpuopt.compiler.numba_lines import straight
from gpuopt.formats.dtypes import STORAGES

_IR = {
    "float64": ir.DoubleType(),
    "float32": ir.FloatType(),
    "float16": ir.HalfType(),
    "bfloat16": ir.IntType(16),
    "bool": ir.IntType(8),
    **{s.name: ir.IntType(8 * s.itemsize) for s in STORAGES.values() if s.code},
    "int64": ir.IntType(64),
    "uint32": ir.IntType(32),
    "int32": ir.IntType(32),
}
LINE = 64  # bytes of a cache line
# What is no storage of a tensor: its type and bytes.
WHOLE = {"int64": (types.int64, 8), "uint32": (types.uint32, 4), "int32": (types.int32, 4)}
NUMBA_TYPES = {"float64": types.float64, "float32": types.float32}


# Of LLVM, which has instructions for these, or makes them of what the processor has: the same numbers as what is written.
INSTRUCTIONS: dict[str, tuple[str, str]] = {"float16": ("fpext", "fptrunc")}


def decode(builder: ir.IRBuilder, storage: str, value: ir.Value) -> ir.Value:
    """A loaded element in its compute type."""
    if is_code(storage):
        return builder.zext(value, ir.IntType(32))
    if storage == "bool":
        return builder.uitofp(value, ir.FloatType())
    if storage in INSTRUCTIONS:
        return getattr(builder, INSTRUCTIONS[storage][0])(value, ir.FloatType())
    if storage in conversions.CONVERTED:
        code = builder.zext(value, ir.IntType(32))
        return straight(builder, conversions.decoding(storage), {conversions.CODE.variable: code})
    return value


def encode(builder: ir.IRBuilder, storage: str, value: ir.Value) -> ir.Value:
    """A value of the compute type rounded for storage, to nearest even; of a code, its low bits."""
    if is_code(storage):
        return builder.trunc(value, _IR[storage])
    if storage in INSTRUCTIONS:
        return getattr(builder, INSTRUCTIONS[storage][1])(value, _IR[storage])
    if storage in conversions.CONVERTED:
        code = straight(builder, conversions.encoding(storage), {conversions.NUMBER.variable: value})
        return builder.trunc(code, _IR[storage])
    return value


def _mark(builder: ir.IRBuilder, instruction: Any, scope: int, scopes: int) -> None:
    """Say that accesses of different scopes never touch the same memory."""
    module = builder.module
    domain = module.add_metadata(["gpuopt"])
    nodes = [module.add_metadata([f"gpuopt role {k}", domain]) for k in range(scopes)]
    instruction.set_metadata("alias.scope", module.add_metadata([nodes[scope]]))
    if others := [n for k, n in enumerate(nodes) if k != scope]:
        instruction.set_metadata("noalias", module.add_metadata(others))


def is_code(storage: str) -> bool:
    """Whether an element is a code, which is a whole number to the text."""
    return storage in STORAGES and STORAGES[storage].code


def _element(compute: str, storage: str) -> Any:
    if storage in WHOLE:
        return WHOLE[storage][0]
    if is_code(storage):
        return types.uint32
    return NUMBA_TYPES[compute if storage == "bool" else STORAGES[storage].compute]


def _element_pointer(builder: ir.IRBuilder, args: Any, storage: str, space: int) -> ir.Value:
    base = builder.inttoptr(args[0], ir.PointerType(_IR[storage], addrspace=space))
    return builder.gep(base, [args[1]], source_etype=_IR[storage])


def load(intrinsic: Any, storage: str, compute: str, scope: int, scopes: int, space: int = 0) -> Callable[..., Any]:
    """`f(base, index) -> value`: one element. `intrinsic` is Numba's or Numba CUDA's decorator.

    The address goes through getelementptr: LLVM vectorises a loop only where it can see that accesses are consecutive.
    """

    @intrinsic
    def load_element(typingctx: Any, base: Any, index: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            pointer = _element_pointer(builder, args, storage, space)
            value = builder.load(pointer, typ=_IR[storage])
            value.align = bytes_of(storage)
            _mark(builder, value, scope, scopes)
            value = decode(builder, storage, value)
            return builder.fpext(value, ir.DoubleType()) if storage == "bool" and compute == "float64" else value

        return _element(compute, storage)(types.int64, types.int64), codegen

    result: Callable[..., Any] = load_element
    return result


def bytes_of(storage: str) -> int:
    """Of one element, to which it is aligned."""
    return STORAGES[storage].itemsize if storage in STORAGES else WHOLE[storage][1]


def store(intrinsic: Any, storage: str, compute: str, scope: int, scopes: int, space: int = 0) -> Callable[..., Any]:
    """`f(base, index, value)`: one element, rounded to its storage type."""

    @intrinsic
    def store_element(typingctx: Any, base: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            pointer = _element_pointer(builder, args, storage, space)
            instruction = builder.store(encode(builder, storage, args[2]), pointer)
            instruction.align = bytes_of(storage)
            _mark(builder, instruction, scope, scopes)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, _element(compute, storage)), codegen

    result: Callable[..., Any] = store_element
    return result


def prefetch(intrinsic: Any, lines: int = 1) -> Callable[..., Any]:
    """`f(address)`: have cache lines from there on fetched into the second-level cache; no harm where there is no memory."""

    @intrinsic
    def prefetch_lines(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            i32, pointer = ir.IntType(32), ir.PointerType(ir.IntType(8))
            kind = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
            function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
            read, keep, data = (ir.Constant(i32, k) for k in (0, 2, 1))
            for line in range(lines):
                at = builder.add(args[0], ir.Constant(args[0].type, LINE * line))
                builder.call(function, [builder.inttoptr(at, pointer), read, keep, data])
            return context.get_dummy_value()

        return types.void(types.int64), codegen

    result: Callable[..., Any] = prefetch_lines
    return result


def replace(intrinsic: Any) -> Callable[..., Any]:
    """`f(base, index, value)`: store a word; returns the bits in which it differs from what was there."""

    @intrinsic
    def replace_word(typingctx: Any, base: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            pointer = _element_pointer(builder, args, "int64", 0)
            before = builder.load(pointer, typ=_IR["int64"])
            builder.store(args[2], pointer)
            return builder.xor(before, args[2])

        return types.int64(types.int64, types.int64, types.int64), codegen

    result: Callable[..., Any] = replace_word
    return result


def caller(intrinsic: Any, arguments: int) -> Callable[..., Any]:
    """`f(function_address, *int64)`: call a compiled function by address."""
    signature = types.void(*[types.int64] * (arguments + 1))

    def codegen(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * arguments)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    names = ", ".join(f"a{k}" for k in range(arguments + 1))
    namespace: dict[str, Any] = {"signature": signature, "codegen": codegen}
    exec(f"def call(typingctx, {names}):\n    return signature, codegen\n", namespace)
    result: Callable[..., Any] = intrinsic(namespace["call"])
    return result
