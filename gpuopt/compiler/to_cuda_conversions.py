"""Conversions of numbers of 16 bits as CUDA C++ text, between `kernels/types.cuh` and the other headers. Called by `to_cuda`."""

from __future__ import annotations

from gpuopt.compiler.conversions import CODE, CONVERTED, NUMBER, decoding, encoding
from gpuopt.compiler.cuda_text import statements
from gpuopt.compiler.names import safe
from gpuopt.formats.dtypes import STORAGES

# Instructions that give the same numbers as what is written, NaN for NaN, and the least architecture that has them.
DECODING = {"float16": ("cvt.f32.f16", 750)}
ENCODING = {"float16": ("cvt.rn.f16.f32", 750), "bfloat16": ("cvt.rn.bf16.f32", 800)}
INLINE = "__device__ __forceinline__"
NAME, BITS = safe(NUMBER.variable), safe(CODE.variable)


def conversions() -> str:
    """`decode` and `Encode` of every such storage."""
    lines = ['#line 1 "conversions"']
    for storage in CONVERTED:
        kind = STORAGES[storage].ctype
        written = [
            f"  const unsigned {BITS} = given.bits;",
            *statements(decoding(storage), [CODE]),
            f"  return {NAME};",
        ]
        used = 'float y; asm("{} %0, %1;" : "=f"(y) : "h"(given.bits)); return y;'
        lines += [f"template <class C> {INLINE} C decode({kind} given) {{"]
        lines += [*chosen(DECODING.get(storage), used, written), "}"]
        written = [*statements(encoding(storage), [NUMBER]), f"  return {{(unsigned short){BITS}}};"]
        used = f'{kind} y; asm("{{}} %0, %1;" : "=h"(y.bits) : "f"({NAME})); return y;'
        lines += [f"template <> struct Encode<{kind}> {{", "  typedef float C;"]
        lines += [f"  static {INLINE} {kind} from(float {NAME}) {{"]
        lines += [*chosen(ENCODING.get(storage), used, written), "  }", "};"]
    return "\n".join(lines) + "\n"


def chosen(instruction: tuple[str, int] | None, used: str, written: list[str]) -> list[str]:
    """The instruction where there is one, else what is written."""
    if instruction is None:
        return written
    name, least = instruction
    head = f"#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= {least}"
    return [head, f"  {used.format(name)}", "#else", *written, "#endif"]
