"""Numbers of 16 bits to float32 and back: what `formats.native` says, against the casts of NumPy and ml_dtypes, and what emitters
make of it against that: instructions of a processor or GPU where a table names them, elsewhere what is written.

Of float32 all numbers that lie at, halfway between, and next to, what a format holds: between two of these rounding is constant.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from gpuopt.compiler import conversions, numba_ir, numba_lines, nvrtc, to_cuda
from gpuopt.formats.dtypes import STORAGES
from gpuopt.formats.native import native
from shim.build import build

Array = NDArray[Any]
DTYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
CODES = np.arange(1 << 16, dtype=np.uint16)

PROBE = """
extern "C" __global__ void probe(const KIND* codes, const float* numbers, KIND* found, float* values, int64 count, int64 width) {
  const int64 i = blockIdx.x * int64(blockDim.x) + threadIdx.x;
  if (i < width) values[i] = decode<float>(codes[i]);
  if (i < count) found[i] = Encode<KIND>::from(numbers[i]);
}
"""


@cache
def numbers(dtype: str) -> Array:
    """The numbers of that type, halves between two of them, and what is next to both in float32, of both signs; NaN, infinity."""
    held = np.sort(CODES[:32768].view(DTYPES[dtype]).astype(np.float32))
    held = held[np.isfinite(held)].astype(np.float64)
    beyond = 2 * held[-1] - held[-2]  # what the next one would be
    halves = (held + np.append(held[1:], beyond)) / 2
    with np.errstate(over="ignore"):
        exact = np.concatenate([held, halves, [beyond, 3.4e38, np.inf, np.nan, 1e-45]]).astype(np.float32)
        found = np.concatenate([exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(0))])
    return np.concatenate([found, -found])


@cache
def written(dtype: str) -> tuple[Array, Array]:
    """What the format makes of all codes, and of the numbers."""
    half = dtype == "float16"
    (codes,) = native.encoded(numbers(dtype), half, None, (1, numbers(dtype).size))
    return native.decoded([CODES], half)[0], np.asarray(codes).astype(np.uint16)


def check(dtype: str, values: Array, codes: Array) -> None:
    """Raise unless these are what the format says, to the bit, NaN for NaN."""
    expected, nearest = written(dtype)
    pairs = (values, expected), (codes.view(DTYPES[dtype]), nearest.view(DTYPES[dtype]))
    for found, wanted in pairs:
        nan = np.isnan(wanted)
        assert np.array_equal(np.isnan(found), nan) and found[~nan].tobytes() == wanted[~nan].tobytes()


@pytest.mark.once
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_number_of_16_bits_is_that_of_numpy(dtype: str) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        check(dtype, CODES.view(DTYPES[dtype]).astype(np.float32), numbers(dtype).astype(DTYPES[dtype]).view(np.uint16))


def by_llvm(dtype: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What makes IR of a code and of a number, without instructions for it."""

    def value(builder: Any, code: Any) -> Any:
        wide = builder.zext(builder.bitcast(code, ir.IntType(16)), ir.IntType(32))
        return numba_lines.straight(builder, conversions.decoding(dtype), {conversions.CODE.variable: wide})

    def code(builder: Any, number: Any) -> Any:
        made = numba_lines.straight(builder, conversions.encoding(dtype), {conversions.NUMBER.variable: number})
        return builder.trunc(made, ir.IntType(16))

    return value, code


def by_numba(dtype: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The same as kernels have it."""
    kind = ir.HalfType() if dtype == "float16" else ir.IntType(16)

    def value(builder: Any, code: Any) -> Any:
        return numba_ir.decode(builder, dtype, builder.bitcast(code, kind))

    def code(builder: Any, number: Any) -> Any:
        return builder.bitcast(numba_ir.encode(builder, dtype, number), ir.IntType(16))

    return value, code


@pytest.mark.once
@pytest.mark.parametrize("made", [by_llvm, by_numba])
@pytest.mark.parametrize("dtype", DTYPES)
def test_llvm_converts_as_the_format_says(dtype: str, made: Any) -> None:
    emit = made(dtype)

    @intrinsic
    def value(typingctx: Any, code: Any) -> Any:
        return types.float32(types.uint16), lambda context, builder, signature, args: emit[0](builder, args[0])

    @intrinsic
    def code(typingctx: Any, number: Any) -> Any:
        return types.uint16(types.float32), lambda context, builder, signature, args: emit[1](builder, args[0])

    @njit
    def loop(codes: Any, given: Any, values: Any, found: Any) -> None:
        for k in range(codes.size):
            values[k] = value(codes[k])
        for k in range(given.size):
            found[k] = code(given[k])

    values, found = np.empty(CODES.size, np.float32), np.empty(numbers(dtype).size, np.uint16)
    loop(CODES, numbers(dtype), values, found)
    check(dtype, values, found)


def source(dtype: str) -> str:
    """A kernel that converts."""
    return to_cuda.headers() + PROBE.replace("KIND", STORAGES[dtype].ctype)


@pytest.mark.once
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_c_without_instructions_converts_as_the_format_says(dtype: str) -> None:
    values, found = np.empty(CODES.size, np.float32), np.empty(numbers(dtype).size, np.uint16)
    given = (ctypes.c_int64(a.ctypes.data) for a in (CODES, numbers(dtype), found, values))
    sizes = ctypes.c_int64(found.size), ctypes.c_int64(values.size)
    build(source(dtype), "probe")(-(-found.size // 256), 256, *given, *sizes)
    check(dtype, values, found)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_instructions_of_a_gpu_convert_as_the_format_says(dtype: str) -> None:
    import cupy

    values, found = cupy.empty(CODES.size, np.float32), cupy.empty(numbers(dtype).size, np.uint16)
    name = f"sm_{cupy.cuda.Device().compute_capability}"
    kernel = cupy.cuda.function.Module()
    kernel.load(nvrtc.compile_cubin(source(dtype), name))
    given = cupy.asarray(CODES), cupy.asarray(numbers(dtype)), found, values
    kernel.get_function("probe")(
        (-(-found.size // 256),), (256,), (*given, np.int64(found.size), np.int64(values.size))
    )
    check(dtype, values.get(), found.get())
