"""Program -> a complete CUDA C++ translation unit: the text of `kernels/*.cuh` pasted in, then the generated rule.

Called by the backends that compile with NVRTC and by `kernel_source`. `#line` points back at the Python file of the rule.
Nothing here knows how the unit is compiled or launched.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from gpuopt.compiler.host import is_integer, prepare_statements, whole_variables
from gpuopt.compiler.lower import Program
from gpuopt.compiler.names import literal, safe
from gpuopt.compiler.tree import Assign, Expr
from gpuopt.errors import InputError
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch import table

_C = {
    "add": "({} + {})",
    "sub": "({} - {})",
    "mul": "({} * {})",
    "div": "({} / {})",
    "neg": "(-{})",
    "lt": "({} < {})",
    "le": "({} <= {})",
    "gt": "({} > {})",
    "ge": "({} >= {})",
    "eq": "({} == {})",
    "ne": "({} != {})",
    "where": "select<C>({}, {}, {})",
    "abs": "absolute({})",
    "sqrt": "square_root({})",
    "sign": "sign_of({})",
    "minimum": "minimum<C>({}, {})",
    "maximum": "maximum<C>({}, {})",
}
# `prepare` in float64 on the device: the twin of the table in host.py.
_DOUBLE = _C | {
    "where": "({} ? {} : {})",
    "minimum": "minimum<double>({}, {})",
    "maximum": "maximum<double>({}, {})",
    "pow": "pow({}, {})",
    "exp": "exp({})",
    "log": "log({})",
}
INFINITY = "(1e300 * 1e300)"  # NVRTC knows no name for it without a header
_CTYPE = {"float32": "float", "float64": "double"}
# Arrays, scalars and words of random bits that 64 registers hold (80 in float64), by lanes.
MANY = {2: 13, 4: 16, 8: 11}
ROW_BYTES = 3840  # of the 4 KB that kernel arguments may take


def kernels_folder() -> Path:
    """Where the hand-written headers are: in the wheel beside the package's files, in a checkout beside the package."""
    spec = find_spec("gpuopt")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    return package / "kernels" if (package / "kernels").is_dir() else package.parent / "kernels"


@cache
def headers() -> str:
    """The table's constants and every header, in reading order."""
    constants = {f"COL_{name}": value for name, value in table.COLUMNS.items()}
    constants |= {"CHUNK": table.CHUNK, "THREADS": table.THREADS}
    text = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    for name in ("types", "random", "pack", "multi_tensor", "reduce", "prepare"):
        body = (kernels_folder() / f"{name}.cuh").read_text()
        text += f'#line 1 "kernels/{name}.cuh"\n' + body.replace("#pragma once\n", "\n")
    return text


def print_expr(expr: Expr) -> str:
    """C++ text in the compute type `C`; `row` holds the scalars."""
    if expr.op == "name":
        return safe(str(expr.args[0]))
    if expr.op == "scalar":
        return f"row[{expr.args[0]}]"
    if expr.op == "const":
        return f"C({literal(float(expr.args[0]), INFINITY)})"  # type: ignore[arg-type]
    return _C[expr.op].format(*(print_expr(child) for child in expr.children()))


def statements(body: tuple[Assign, ...], declared: set[str]) -> list[str]:
    """One declared variable per local name, one line per statement, each under the line it came from."""
    lines: list[str] = []
    for s in body:
        lines.append(f'#line {s.line} "{s.file}"')
        lines.append(f"    {'' if s.name in declared else 'C '}{safe(s.name)} = {print_expr(s.expr)};")
        declared.add(s.name)
    return lines


def rows_capacity(program: Program) -> int:
    """Rows of scalars that travel as a kernel argument."""
    return max(1, ROW_BYTES // (STORAGES[program.compute].itemsize * max(1, len(program.row))))


def blocks_per_sm(program: Program) -> int:
    """4 blocks of 256 threads leave 64 registers each, which is enough for most kernels. float64 needs two registers a value,
    random bits a generator, and more arrays, scalars and words of random bits than MANY spill, so there one block less each:
    80 registers, 128 for two of them. Even 512 threads keep 32 KB a multiprocessor in flight.
    """
    heavy = len(program.roles) + len(program.row) + program.streams > MANY[program.lanes]
    return max(2, 4 - heavy - (program.compute == "float64") - bool(program.draws))


def update_struct(program: Program) -> str:
    """The rule as a functor for multi_tensor.cuh."""
    references = [f"    C& {safe(r.name)} = slot[{k}];" for k, r in enumerate(program.roles)]
    written = " || ".join(f"r == {k}" for k, r in enumerate(program.roles) if r.written)
    streams = " : ".join(f"r == {k} ? {d.stream}" for k, d in program.draws.items())
    shifts = " : ".join(f"r == {k} ? {d.shift}" for k, d in program.draws.items())
    sizes = " : ".join(f"r == {k} ? {STORAGES[r.storage].itemsize}" for k, r in enumerate(program.roles))
    storages = [
        f"template <> struct Update::Storage<{k}> {{ typedef {STORAGES[r.storage].ctype} T; }};  // {r.name}"
        for k, r in enumerate(program.roles)
    ]
    return "\n".join(
        [
            f"struct Update {{  // {program.name}",
            f"  typedef {_CTYPE[program.compute]} C;",
            f"  static constexpr int LANES = {program.lanes}, ROLES = {len(references)}, SCALARS = {len(program.row)};",
            "  template <int R> struct Storage;",
            f"  static __device__ constexpr bool written(int r) {{ return {written}; }}",
            f"  static __device__ constexpr int64 size(int r) {{ return {sizes} : 0; }}",
            f"  static constexpr int STREAMS = {program.streams};",
            f"  static __device__ constexpr int stream(int r) {{ return {streams + ' : ' if streams else ''}0; }}",
            f"  static __device__ constexpr int shift(int r) {{ return {shifts + ' : ' if shifts else ''}0; }}",
            "  static __device__ __forceinline__ void update(C* slot, const C* row) {",
            *references,
            *statements(program.body, {r.name for r in program.roles}),
            '#line 1 "generated"',
            "  }",
            "};",
            *storages,
        ]
    )


def update_source(program: Program) -> str:
    """The translation unit of `gpuopt_update`, the one launch of an ordinary step."""
    capacity = rows_capacity(program) * max(1, len(program.row))
    kernel = f"""
extern "C" __global__ void __launch_bounds__(THREADS, {blocks_per_sm(program)})
gpuopt_update(const int64* table, const int64* tiles, int64 tile_count, int64 tile_size, int unit,
              const Update::C* device_rows, const int64* skip, const __grid_constant__ Rows<Update::C, {capacity}> rows) {{
  walk<Update, {capacity}>(table, tiles, tile_count, tile_size, unit, device_rows, skip, rows);
}}
"""
    return headers() + '#line 1 "generated"\n' + update_struct(program) + "\n" + kernel


def sums_source(storage: str, compute: str) -> str:
    """The translation unit of `gpuopt_sums`: squares and non-finite counts of gradients of this dtype."""
    from gpuopt.rules.options import sums

    adds = [f"    out[{k}] = out[{k}] + {print_expr(result)};" for k, result in enumerate(sums.tree.results)]
    return (
        headers()
        + f"""#line 1 "generated"
struct Sums {{
  typedef {_CTYPE[compute]} C;
  typedef {STORAGES[storage].ctype} T;
  static constexpr int SUMS = {len(adds)};
  static __device__ __forceinline__ void measure(C {safe("g")}, C* out) {{
"""
        + "\n".join(adds)
        + """
  }
};
extern "C" __global__ void __launch_bounds__(THREADS, 4)
gpuopt_sums(const int64* table, int64 columns, int role, const int64* chunks, int64 chunk_count, double* partials) {
  reduce<Sums>(table, columns, role, chunks, chunk_count, partials);
}
"""
    )


def print_double(expr: Expr, whole: Collection[str] = ()) -> str:
    """C++ text in float64, with integer powers by repeated squaring."""
    if expr.op == "name":
        return "double(step)" if expr.args[0] == "step" else safe(str(expr.args[0]))
    if expr.op == "const":
        return literal(float(expr.args[0]), INFINITY)  # type: ignore[arg-type]
    if expr.op == "count":
        return f"double(step >> {expr.args[0]} & 0xffff)"
    if expr.op == "pow" and is_integer(list(expr.children())[1], whole):
        base, exponent = expr.children()
        return f"integer_power({print_double(base, whole)}, int64({print_double(exponent, whole)}))"
    return _DOUBLE[expr.op].format(*(print_double(child, whole) for child in expr.children()))


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
    return (
        headers()
        + f"""#line 1 "generated"
struct Prepare {{  // {program.name}
  typedef {_CTYPE[program.compute]} C;
  static constexpr int SCALARS = {len(program.row)}, INPUTS = {len(inputs)};
  static __device__ void row(int64 step, const Hyper& hyper, double option_grad_multiplier, C* out) {{
"""
        + "\n".join(lines)
        + """
  }
};
extern "C" __global__ void __launch_bounds__(THREADS)
gpuopt_prepare(const Decision decision, const double* partials, const double* hyper, const Clock* clocks,
               Prepare::C* rows, int64* skip, int64* skipped) {
  prepare<Prepare>(decision, partials, hyper, clocks, rows, skip, skipped);
}
"""
    )
