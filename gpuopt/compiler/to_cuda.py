"""Program -> a complete CUDA C++ translation unit: the text of `kernels/*.cuh` pasted in, then the generated rule.

Called by the backends that compile with NVRTC and by `kernel_source`. `#line` points back at the Python file of the rule.
Nothing here knows how the unit is compiled or launched.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache

from gpuopt.compiler import to_cuda_blocks as blocks
from gpuopt.compiler.cuda_text import CTYPE, DOUBLE, INFINITY, joined, loaded, statements
from gpuopt.compiler.host import is_integer, prepare_statements, whole_variables
from gpuopt.compiler.names import literal, safe
from gpuopt.compiler.parts import Layout
from gpuopt.compiler.program import Program
from gpuopt.compiler.template import kernel_text
from gpuopt.compiler.to_cuda_conversions import conversions
from gpuopt.compiler.tree import Expr
from gpuopt.errors import InputError
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch import table

# Arrays, scalars and words of random bits that 64 registers hold (80 in float64), by lanes.
MANY = {2: 10, 4: 14, 8: 11}
ROW_BYTES = 3840  # of the 4 KB that kernel arguments may take


@cache
def headers() -> str:
    """The table's constants and every header, in reading order."""
    text = "".join(f"#define {name} {value}\n" for name, value in table.CONSTANTS.items())
    text += header("types") + conversions()
    for name in (
        "random",
        "pack",
        "rows",
        "shards",
        "multi_tensor",
        "blocks",
        "reduce",
        "reduce_along",
        "per_tensor",
        "per_matrix",
        "all_tensors",
        "exchange",
        "prepare",
    ):
        text += header(name)
    return text


def header(name: str) -> str:
    """One of them, under its name."""
    return f'#line 1 "kernels/{name}.cuh"\n' + kernel_text(f"{name}.cuh").replace("#pragma once\n", "\n")


def joins(kinds: Sequence[str], number: str) -> list[str]:
    """The members begin and join of the structs that sum."""
    least = [f"k == {k} ? {number}(-{INFINITY}) : " for k, kind in enumerate(kinds) if kind == "tensor_max"]
    largest = [
        f"k == {k} ? {joined(kind, number).format('a', 'b')} : " for k, kind in enumerate(kinds) if kind == "tensor_max"
    ]
    head = f"  static __device__ __forceinline__ {number}"
    return [
        f"{head} begin(int k) {{ return {''.join(least)}{number}(0); }}",
        f"{head} join(int k, {number} a, {number} b) {{ return {''.join(largest)}a + b; }}",
    ]


def rows_capacity(program: Program) -> int:
    """Rows of scalars that travel as a kernel argument."""
    return max(1, ROW_BYTES // (STORAGES[program.compute].itemsize * max(1, len(program.row))))


def blocks_per_sm(program: Program) -> int:
    """4 blocks of 256 threads leave 64 registers each, which is enough for most kernels. float64 needs two registers a value,
    random bits a generator, numbers of rows their addresses, and more arrays, scalars and words of random bits than MANY spill, so
    there one block less each: 80 registers, 128 for two of them. Even 512 threads keep 32 KB a multiprocessor in flight.
    In a walk over blocks each thread keeps EACH new values of every state until the extremes are known, and the addresses of all
    arrays; with random bits besides, 80 registers spill.
    """
    if program.in_blocks:
        return 3 if len(program.kept) < 2 and not program.update.vectors and not program.draws else 2
    scalars = len(program.row) + len(program.update.values)
    heavy = len(program.roles) + scalars + program.streams > MANY[program.lanes]
    return max(2, 4 - heavy - bool(program.update.vectors) - (program.compute == "float64") - bool(program.draws))


def update_struct(program: Program) -> str:
    """The rule as a functor for multi_tensor.cuh, or for blocks.cuh."""
    late = blocks.coded(program)
    random = [f"    const unsigned random_{k} = words[{d.stream}] >> {d.shift};" for k, d in program.draws.items()]
    references = [loaded(k, r, "C&") for k, r in enumerate(program.roles)] + blocks.loads(program) + random
    codes = [
        (k, r) for k, r in enumerate(program.roles) if r.code and k in program.update.writes and r.name not in late
    ]
    stores = [f"    x[{k}] = bits_float({safe(r.variable)});" for k, r in codes]
    read = " || ".join(f"r == {k}" for k in program.update.reads) or "false"
    written = " || ".join(f"r == {k}" for k in program.update.writes)
    sizes = " : ".join(f"r == {k} ? {STORAGES[r.storage].itemsize}" for k, r in enumerate(program.roles))
    storages = [
        f"template <> struct Update::Storage<{k}> {{ typedef {STORAGES[r.storage].ctype} T; }};  // {r.name}"
        for k, r in enumerate(program.roles)
    ]
    return "\n".join(
        [
            f"struct Update {{  // {program.name}",
            f"  typedef {CTYPE[program.compute]} C;",
            f"  static constexpr int LANES = {program.lanes}, ROLES = {len(program.roles)}, SCALARS = {len(program.row)};",
            f"  static constexpr int ADDRESSES = {program.addresses}, VALUES = {len(program.update.values)};",
            "  template <int R> struct Storage;",
            f"  static __device__ constexpr bool read(int r) {{ return {read}; }}",
            f"  static __device__ constexpr bool written(int r) {{ return {written}; }}",
            f"  static __device__ constexpr int64 size(int r) {{ return {sizes} : 0; }}",
            f"  static constexpr int STREAMS = {program.streams}, BITS = {program.bits};",
            f"  static constexpr bool PICKED = {str(program.picked).lower()}, SHARDED = {str(program.sharded).lower()};",
            *(blocks.members(program) if program.in_blocks else ()),
            "  static __device__ __forceinline__ void "
            f"update(C* x, const C* row, const unsigned* words{', C* kept, C* terms' if program.in_blocks else ''}) {{",
            *references,
            *statements(program.update.body, (*program.roles, *program.blocked)),
            '#line 1 "generated"',
            *stores,
            *blocks.endings(program),
            "  }",
            *(blocks.encoder(program, random) if program.in_blocks else ()),
            *vector_members(program.layout_of(program.update)._replace(blocked=())),
            "  static __device__ __forceinline__ void store_cells(const int64* record, const C* row) {",
            *cell_stores(program),
            "  }",
            "};",
            *storages,
            *blocks.storages(program),
        ]
    )


def vector_members(layout: Layout) -> list[str]:
    """The numbers of the row, column, matrix and blocks of an element, for the structs of passes."""
    where = {
        "row": "shape[OF_FIRST_ROW] + at",
        "column": "shape[OF_FIRST_COLUMN] + matrix * shape[OF_COLUMNS] + i - at * shape[OF_COLUMNS]",
        "matrix": "shape[OF_FIRST_MATRIX] + matrix",
    }
    lines = [
        f"    out[{k}] = reinterpret_cast<const C*>(slots[{slot}])[{where[kind]}];"
        for k, (kind, slot) in enumerate(layout.slots)
    ]
    at = ["    const int64 at = quotient(i, shape[OF_COLUMNS]), matrix = quotient(at, shape[OF_ROWS]);"]
    head = "const int64* shape, const int64* slots, int64 i, C* out"
    return [
        f"  static constexpr int VECTORS = {len(layout.slots) + len(layout.blocked)};",
        f"  static __device__ __forceinline__ void vectors({head}) {{",
        *(at + lines if lines else []),
        *blocks.of_element(layout),
        "  }",
    ]


def cell_stores(program: Program) -> list[str]:
    """States of one number become what was computed of them; one that all tensors share is stored by its owner."""
    lines = []
    for cell, value in program.update.stores:
        owner = "if (record[COL_OWNER]) " if program.signature.cells[cell].shared else ""
        address = f"record[COL_ADDRESS + {len(program.roles) + cell}]"
        lines.append(f"    {owner}*reinterpret_cast<C*>({address}) = row[SCALARS + {value}];")
    return lines


def update_source(program: Program) -> str:
    """The translation unit of `gpuopt_update`, the one launch of an ordinary step."""
    capacity = rows_capacity(program) * max(1, len(program.row))
    call = (
        f"walk<Update, {capacity}>(table, tiles, tile_count, tile_size, unit, device_rows, skip, values, slots, rows);"
    )
    if program.in_blocks:
        call = call.replace("walk<", "walk_blocks<").replace(" unit,", "")
    kernel = f"""
extern "C" __global__ void __launch_bounds__(THREADS, {blocks_per_sm(program)})
gpuopt_update(const int64* table, const int64* tiles, int64 tile_count, int64 tile_size, int unit,
              const Update::C* device_rows, const int64* skip, const Update::C* values, const int64* slots,
              const __grid_constant__ Rows<Update::C, {capacity}> rows) {{
  {call}
}}
"""
    return headers() + '#line 1 "generated"\n' + update_struct(program) + "\n" + kernel


# Of a tensor, in float64.
LEAVES = {"wide": "wide[{}]", "total": "totals[{}]", "cell": "cell_{}", "numel": "double(record[COL_WHOLE])"}
LEAVES |= {"rows": "double(shape[OF_ROWS])", "columns": "double(shape[OF_COLUMNS])"}


def print_double(expr: Expr, whole: Collection[str] = ()) -> str:
    """C++ text in float64, with integer powers by repeated squaring."""
    if expr.op == "name":
        return "double(step)" if expr.args[0] == "step" else safe(str(expr.args[0]))
    if expr.op == "const":
        return literal(float(expr.args[0]), INFINITY)  # type: ignore[arg-type]
    if expr.op == "count":
        return f"double(step >> {expr.args[0]} & 0xffff)"
    if expr.op in LEAVES:
        return LEAVES[expr.op].format(*expr.args)
    if expr.op == "pow" and is_integer(list(expr.children())[1], whole):
        base, exponent = expr.children()
        return f"integer_power({print_double(base, whole)}, int64({print_double(exponent, whole)}))"
    return DOUBLE[expr.op].format(*(print_double(child, whole) for child in expr.children()))


def prepare_source(program: Program, inputs: tuple[str, ...]) -> str:
    """The translation unit of `gpuopt_prepare`: step counts, clip and skip on the device. See kernels/prepare.cuh.

    Raises InputError where `prepare` is Python that only the host can run.
    """
    rule = program.signature.rule
    statements = prepare_statements(program.signature.definition)
    if statements is None:
        raise InputError(f"the prepare function of {rule.name} uses Python that cannot run on the device, as a step "
                         "that may be skipped or captured needs; keep to + - * / ** sqrt minimum maximum exp log")  # fmt: skip
    lines = [f"    double {safe(n)} = hyper[{k}];" for k, n in enumerate(inputs) if n != "@grad_multiplier"]
    declared, whole = set(inputs), whole_variables(statements)
    for name, expr in statements:
        lines.append(f"    {'' if name in declared else 'double '}{safe(name)} = {print_double(expr, whole)};")
        declared.add(name)
    lines += [f"    out[{k}] = C({print_double(e)});" for k, e in enumerate(program.row)]
    lines += [f"    wide[{k}] = {print_double(e)};" for k, e in enumerate(program.wide)]
    return (
        headers()
        + f"""#line 1 "generated"
struct Prepare {{  // {program.name}
  typedef {CTYPE[program.compute]} C;
  static constexpr int SCALARS = {len(program.row)}, WIDES = {len(program.wide)}, INPUTS = {len(inputs)};
  static __device__ void row(int64 step, const Hyper& hyper, double option_grad_multiplier, C* out, double* wide) {{
"""
        + "\n".join(lines)
        + """
  }
};
extern "C" __global__ void __launch_bounds__(THREADS)
gpuopt_prepare(const Decision decision, const double* hyper, const StepCounter* counters, Prepare::C* rows, double* wide,
               int64* skip, int64* skipped) {
  prepare<Prepare>(decision, hyper, counters, rows, wide, skip, skipped);
}
"""
    )
