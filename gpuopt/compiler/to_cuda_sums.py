"""Passes that sum, and what is done once a tensor, a matrix and over all tensors, as CUDA C++ translation units.

Called by the backends that compile with NVRTC and by `kernel_source`. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpuopt.compiler import to_cuda
from gpuopt.compiler.cuda_text import CTYPE, loaded, print_expr, statements
from gpuopt.compiler.names import safe
from gpuopt.compiler.parts import Layout, Pass, PerMatrix, PerTensor
from gpuopt.compiler.to_cuda import joins, print_double, vector_members
from gpuopt.compiler.tree import Assign
from gpuopt.formats.dtypes import STORAGES

LANES = 24  # elements of all arrays that a lane of a pass asks for at once and 80 registers hold


def reduce_source(layout: Layout, cut: Pass) -> str:
    """The translation unit of `gpuopt_reduce`, a pass that sums, or `gpuopt_reduce_along`, one along rows and columns."""
    roles = [layout.roles[k] for k in cut.reads]
    written = [place for place, k in enumerate(cut.reads) if k in cut.writes]
    references = [loaded(k, r, "C&" if k in written else "C") for k, r in enumerate(roles)]
    references += [loaded(k, r, "C") for k, (_, r) in enumerate(layout.blocked, len(roles) + len(layout.slots))]
    storages = [
        f"template <> struct Measure::Storage<{k}> {{ typedef {STORAGES[r.storage].ctype} T; }};  // {r.name}"
        for k, r in enumerate(roles)
    ]
    lines = [
        "struct Measure {",
        f"  typedef {CTYPE[layout.compute]} C;",
        f"  static constexpr int N = {layout.lanes}, ROLES = {len(roles)}, SUMS = {len(cut.sums)};",
        f"  static constexpr int SCALARS = {layout.scalars}, VALUES = {len(cut.values)};",
        f"  static constexpr int AHEAD = {cut.ahead};",
        f"  static constexpr int BATCH = {cut.batch(STORAGES[layout.compute].itemsize)};",
        f"  static constexpr int64 ALIGNED = {sum(2 << k for k in cut.reads)};",
        "  template <int R> struct Storage;",
        choice("place", cut.reads),
        f"  static constexpr bool STORES = {str(bool(written)).lower()};",
        f"  static __device__ constexpr bool written(int r) {{ return {' || '.join(f'r == {k}' for k in written) or 'false'}; }}",
        *(along_members(cut.sums, cut.first) if cut.along else joins(cut.sums, "C")),
        *vector_members(layout),
        "  static __device__ __forceinline__ void measure(C* x, const C* row, C* sums) {",
        *references,
        *statements(cut.body, (*roles, *(r for _, r in layout.blocked)), cut.first),
        '#line 1 "generated"',
        "  }",
        "};",
        *storages,
    ]
    return (
        to_cuda.headers()
        + '#line 1 "generated"\n'
        + "\n".join(lines)
        + (ALONG_KERNEL if cut.along else REDUCE_KERNEL).format(blocks=reduce_blocks(layout, cut))
    )


REDUCE_KERNEL = """
extern "C" __global__ void __launch_bounds__(THREADS, {blocks})
gpuopt_reduce(const int64* table, int64 columns, const int64* chunks, int64 chunk_count, const Measure::C* rows,
              const Measure::C* values, const int64* slots, double* partials, const int64* skip) {{
  reduce<Measure>(table, columns, chunks, chunk_count, rows, values, slots, partials, skip);
}}
"""
ALONG_KERNEL = """
extern "C" __global__ void __launch_bounds__(THREADS, {blocks})
gpuopt_reduce_along(const int64* table, int64 columns, const int64* blocks, int64 block_count, const Measure::C* rows,
                    const Measure::C* values, const int64* slots) {{
  reduce_along<Measure>(table, columns, blocks, block_count, rows, values, slots);
}}
"""


def choice(name: str, found: Sequence[int]) -> str:
    """A member that gives the k-th of these numbers."""
    chosen = "".join(f"k == {k} ? {n} : " for k, n in enumerate(found))
    return f"  static __device__ constexpr int {name}(int k) {{ return {chosen}0; }}"


def along_members(kinds: Sequence[str], first: int) -> list[str]:
    """Which sums are along rows and which along columns; those of blocks are in every second slot."""
    which = {kind: [k for k, found in enumerate(kinds) if found == kind] for kind in ("row_sum", "column_sum")}
    return [
        f"  static constexpr int ROW_SUMS = {len(which['row_sum'])}, COLUMN_SUMS = {len(which['column_sum'])};",
        choice("row_sum", which["row_sum"]),
        choice("column_sum", which["column_sum"]),
        f"  static __device__ constexpr int blocks(int k) {{ return 2 * ({first} + k); }}",
    ]


def per_matrix_source(made: PerMatrix) -> str:
    """The translation unit of `gpuopt_per_matrix`, what is done once a matrix between two passes."""
    derives = made.derives or Pass((), (), (), ())
    which = {kind: [k for k, found in made.sums if found == kind] for kind in ("row_sum", "column_sum")}
    members = [
        f"  typedef {CTYPE[made.compute]} C;",
        f"  static constexpr int SCALARS = {made.scalars}, VALUES = {len(made.values)};",
        f"  static constexpr int ROW_SUMS = {len(which['row_sum'])}, COLUMN_SUMS = {len(which['column_sum'])};",
        f"  static constexpr int MATRIX_SUMS = {len(derives.matrix_sums)};",
        choice("row_sum", which["row_sum"]),
        choice("column_sum", which["column_sum"]),
    ]
    for kind in ("row", "column"):
        adds = [
            f"    sums[{k}] = sums[{k}] + double({print_expr(s.expr)});"
            for k, s in enumerate(derives.matrix_sums)
            if s.kind == kind
        ]
        before = made.lines_before(kind)
        body = [*line_loads(made, kind), *line_statements(before, kind), *adds] if adds else []
        members += [
            f"  static __device__ __forceinline__ void sum_{kind}(const Here& here, int64 i, const C* row, double* sums) {{",
            *body,
            "  }",
        ]
    for kind, name, i in (
        ("matrix", "finish", ""),
        ("row", "finish_row", "int64 i, "),
        ("column", "finish_column", "int64 i, "),
    ):
        members.append(
            f"  static __device__ __forceinline__ void {name}(const Here& here, {i}const C* row, const C* m) {{"
        )
        members += [*finished(made, derives, kind), "  }"]
    kernel = """
extern "C" __global__ void __launch_bounds__(THREADS)
gpuopt_per_matrix(const int64* table, int64 columns, const int64* matrices, int64 matrix_count, const PerMatrix::C* rows,
                  const PerMatrix::C* values, const int64* slots, const int64* skip) {
  per_matrix<PerMatrix>(table, columns, matrices, matrix_count, rows, values, slots, skip);
}
"""
    return (
        to_cuda.headers()
        + '#line 1 "generated"\n'
        + "\n".join(["struct PerMatrix {", *members, '#line 1 "generated"', "};"])
        + kernel
    )


SIZES = {"row": "here.height", "column": "here.width"}


def line_loads(made: PerMatrix, kind: str) -> list[str]:
    """What a row or column has: its states, and sums along it."""
    lines = [
        f"    const C {safe(role.name)} = "
        f"reinterpret_cast<const C*>(here.record[COL_ADDRESS + {place}])[here.matrix * {SIZES[kind]} + i];"
        for place, role in made.states
        if role.shape == kind
    ]
    along = "    const C along{} = reinterpret_cast<const C*>(here.slots[{}])[here.first_{} + i];"
    return lines + [along.format(k, 2 * k + 1, kind) for k in made.sums_along(kind)]


def line_statements(lines: Sequence[tuple[str, Assign]], *kinds: str) -> list[str]:
    """The statements of these kinds."""
    found = []
    for of, s in lines:
        if of in kinds:
            found += [f'#line {s.line} "{s.file}"', f"    const C {safe(s.name)} = {print_expr(s.expr)};"]
    return found


def finished(made: PerMatrix, derives: Pass, kind: str) -> list[str]:
    """Numbers of a row, column or matrix that the next pass uses, and states."""
    i = "" if kind == "matrix" else " + i"
    outs = [
        f"    reinterpret_cast<C*>(here.slots[{made.slot + k}])[here.first_{kind}{i}] = {print_expr(v.expr)};"
        for k, v in enumerate(derives.vectors)
        if v.kind == kind
    ]
    for k, expr in derives.kept:
        place, role = made.states[k]
        if role.shape == kind:
            into = f"reinterpret_cast<C*>(here.record[COL_ADDRESS + {place}])[here.matrix * {SIZES[kind]} + i]"
            outs.append(f"    {into} = {print_expr(expr)};")
    if not outs:
        return []
    loads = [] if kind == "matrix" else line_loads(made, kind)
    return [*loads, *line_statements(derives.lines, "matrix", kind), *outs]


def reduce_blocks(layout: Layout, cut: Pass) -> int:
    """Blocks a multiprocessor: 4 leave 64 registers to a thread. Passes over several arrays, sums of columns (one for each that a
    lane has) and numbers of rows need more, as do elements of more arrays than LANES hold at once, and twice as many in float64.
    """
    wide = len(cut.reads) * layout.lanes > LANES
    reasons = (len(cut.reads) > 1) + wide + cut.along + bool(layout.slots)
    return max(2, 4 - reasons * (2 if layout.compute == "float64" else 1))


def per_tensor_source(made: PerTensor) -> str:
    """The translation unit of `gpuopt_per_tensor`, what is done once a tensor between two passes."""
    lines = [
        f"    const double cell_{r.name} = *reinterpret_cast<const C*>(record[COL_ADDRESS + {made.roles + k}]);"
        for k, r in enumerate(made.cells)
    ]
    lines = lines if made.values else []
    lines += [
        f"    const double {safe(s.name)} = {print_double(s.expr)};"
        for s in (made.derives.derived if made.derives else ())
    ]
    lines += [f"    out[{k}] = C({print_double(expr)});" for k, expr in enumerate(made.values)]
    sizes = {
        "SUMS": len(made.sums),
        "FIRST": made.first,
        "TOTALS": made.totals,
        "WIDES": made.wides,
        "VALUES": len(made.values),
    }
    members = [f"  static constexpr int {name} = {value};" for name, value in sizes.items()]
    struct = [
        "struct PerTensor {",
        f"  typedef {CTYPE[made.compute]} C;",
        *members,
        *joins(made.sums, "double"),
        "  static __device__ void derive(const int64* record, const int64* shape, const double* wide, const double* totals,",
        "                                C* out) {",
        *lines,
        "  }",
        "};",
    ]
    kernel = """
extern "C" __global__ void __launch_bounds__(THREADS)
gpuopt_per_tensor(const int64* table, int64 columns, int64 tensor_count, const int64* begins, const double* wide,
                  const double* partials, double* totals, PerTensor::C* values) {
  per_tensor<PerTensor>(table, columns, tensor_count, begins, wide, partials, totals, values);
}
"""
    return to_cuda.headers() + '#line 1 "generated"\n' + "\n".join(struct) + kernel


def exchange_source() -> str:
    """The translation unit of `gpuopt_exchange`, which brings sums of parts of tensors together and back."""
    return (
        to_cuda.headers()
        + """#line 1 "generated"
extern "C" __global__ void __launch_bounds__(THREADS)
gpuopt_exchange(const int64* parts, int64 count, int64 numbers, double* buffer, int64 back, int64 largest) {
  exchange(parts, count, numbers, buffer, back, largest);
}
"""
    )


def all_tensors_source() -> str:
    """The translation unit of `gpuopt_all_tensors`, sums over all tensors."""
    return (
        to_cuda.headers()
        + """#line 1 "generated"
extern "C" __global__ void __launch_bounds__(THREADS)
gpuopt_all_tensors(const int64* parts, int64 launches, int64 sums, double* result) {
  all_tensors(parts, launches, sums, result);
}
"""
    )
