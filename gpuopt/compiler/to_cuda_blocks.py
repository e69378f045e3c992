"""What a walk over blocks (kernels/blocks.cuh) asks of the struct of an update, as CUDA C++ text. Used by `to_cuda` only.

Knows no rule and no format: codes and extremes are statements like all others.
"""

from __future__ import annotations

from gpuopt.compiler.cuda_text import loaded, statements
from gpuopt.compiler.names import safe
from gpuopt.compiler.parts import Layout
from gpuopt.compiler.program import Program
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch import table as t


def coded(program: Program) -> set[str]:
    """The names of the arrays that get their codes behind the extremes of a block."""
    return {name for each in program.signature.coded if each.format.in_rows for name in each.planes}


def loads(program: Program) -> list[str]:
    """The variables of the arrays of one number for several elements."""
    first = len(program.roles) + len(program.update.vectors)
    return [loaded(first + k, r, "C") for k, r in enumerate(program.blocked)]


def endings(program: Program) -> list[str]:
    """The end of the first function: what is kept, and what goes to the extremes."""
    lines = [f"    kept[{k}] = {safe(name)};" for k, name in enumerate(program.kept)]
    return lines + [f"    terms[{k}] = {safe(e.variable)};" for k, e in enumerate(program.extremes)]


def encoder(program: Program, random: list[str]) -> list[str]:
    """The second function, which makes codes."""
    first, late = len(program.roles) + len(program.update.vectors), coded(program)
    roles = [r for r in (*program.roles, *program.blocked) if r.name in late]
    lines = [f"    const float {safe(name)} = kept[{k}];" for k, name in enumerate(program.kept)]
    lines += [f"    {'unsigned' if r.code else 'C'} {safe(r.variable)};" for r in roles if r.written]
    lines += [*random, *statements(program.behind, roles, others=program.kept), '#line 1 "generated"']
    places = {r.name: k for k, r in enumerate(program.roles)}
    places |= {r.name: first + k for k, r in enumerate(program.blocked)}
    for r in roles:
        if r.written:
            value = f"bits_float({safe(r.variable)})" if r.code else safe(r.variable)
            lines.append(f"    x[{places[r.name]}] = {value};")
    return [
        "  static __device__ __forceinline__ void encode(C* x, const C* kept, const C* extremes, const unsigned* words) {",
        *lines,
        "  }",
    ]


def members(program: Program) -> list[str]:
    """Constants of the struct."""
    late = coded(program)
    codes = " || ".join(f"r == {k}" for k, r in enumerate(program.roles) if r.name in late) or "false"
    largest = " || ".join(f"e == {k}" for k, e in enumerate(program.extremes) if e.kind == "block_max") or "false"
    lanes = "".join(f"e == {k} ? {e.block // t.EACH} : " for k, e in enumerate(program.extremes))
    return [
        f"  static constexpr int BLOCKED = {len(program.blocked)}, FIRST_BLOCKED = {program.first_blocked};",
        f"  static constexpr int EXTREMES = {len(program.extremes)}, KEPT = {len(program.kept)};",
        "  template <int B> struct Blocked;",
        f"  static __device__ constexpr bool coded(int r) {{ return {codes}; }}",
        f"  static __device__ constexpr bool largest(int e) {{ return {largest}; }}",
        f"  static __device__ constexpr int lanes(int e) {{ return {lanes}1; }}",
    ]


def storages(program: Program) -> list[str]:
    """The types of the arrays of one number for several elements."""
    lines = []
    for k, r in enumerate(program.blocked):
        known = f"typedef {STORAGES[r.storage].ctype} T; static constexpr int PER = {r.per};"
        flags = {"PACKED": r.packed, "READ": k in program.update.blocked, "WRITTEN": r.written}
        known += "".join(f" static constexpr bool {name} = {str(on).lower()};" for name, on in flags.items())
        lines.append(f"template <> struct Update::Blocked<{k}> {{ {known} }};  // {r.name}")
    return lines


def of_element(layout: Layout) -> list[str]:
    """The numbers of the blocks of an element, for passes that sum: behind those of its row, column and matrix."""
    if not layout.blocked:
        return []
    lines = [
        f"    const int64* record = shape - {layout.record};",
        "    const int64 width = record[COL_WIDTH], block_row = quotient(i, width), in_row = i - block_row * width;",
    ]
    for k, (place, r) in enumerate(layout.blocked, len(layout.slots)):
        kind, at = STORAGES[r.storage].ctype, f"block_row * ((width + {r.per - 1}) / {r.per}) + in_row / {r.per}"
        value = f"decode<C>(reinterpret_cast<const {kind}*>(record[COL_ADDRESS + {place}])[{at}])"
        if r.packed:
            value = f"bits_float(float_bits({value}) >> (in_row % 2 * 4) & 15u)"
        lines.append(f"    out[{k}] = {value};")
    return lines
