"""Program -> typed Python text for `numba.njit` and `numba.cuda`: the statements that fill the holes of `kernels/*.py`.

Prints only; the names the text calls are bound by the backends. Statements are the same for both: `mul` and `sqrt` are plain on the
CPU and the non-contracting libdevice calls on the GPU, where Numba would otherwise fuse a product and a sum.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from gpuopt.compiler.extremes import EXTREME
from gpuopt.compiler.host import is_integer
from gpuopt.compiler.kinds import LINE_SUMS
from gpuopt.compiler.names import literal, safe
from gpuopt.compiler.parts import Layout, Role
from gpuopt.compiler.program import Program
from gpuopt.compiler.template import kernel
from gpuopt.compiler.to_numba_rows import row_on_cpu, tensor_on_cpu
from gpuopt.compiler.tree import COMPARISONS, Add, Assign, Expr
from gpuopt.compiler.whole import ARITHMETIC, CONSTANT, RANDOM
from gpuopt.formats.dtypes import STORAGES
from gpuopt.formats.philox import PER_BLOCK
from gpuopt.launch import table as t

TEXT = {
    "add": "({} + {})",
    "sub": "({} - {})",
    "mul": "mul({}, {})",
    "div": "div({}, {})",
    "neg": "(-{})",
    "lt": "({} < {})",
    "le": "({} <= {})",
    "gt": "({} > {})",
    "ge": "({} >= {})",
    "eq": "({} == {})",
    "ne": "({} != {})",
    "where": "select({}, {}, {})",
    "abs": "absolute({})",
    "sqrt": "sqrt({})",
    "sign": "sign({})",
    "minimum": "minimum({}, {})",
    "maximum": "maximum({}, {})",
}


TEXT |= {
    "bits": "float_bits({})",
    "from_bits": "bits_float({})",
    "iwhere": "select({}, {}, {})",
    **{op: op + "({}, {})" for op in ARITHMETIC.values()},
    **{"i" + op: TEXT[op] for op in COMPARISONS},
}
# Of a row, column or matrix, as the kernels name them.
ALONG = {"vector": "vector{}", "sum_along": "along{}", "sum_of_matrix": "matrix_sum{}"}


def print_expr(expr: Expr) -> str:
    """Typed Python text: constants are cast to the compute type `C`, scalars are `s0, s1, ...`, values `v0, v1, ...`."""
    if expr.op == "name":
        return safe(str(expr.args[0]))
    if expr.op in ("scalar", "value"):
        return f"{expr.op[0]}{expr.args[0]}"
    if expr.op == RANDOM:
        return f"random_{expr.args[0]}"
    if expr.op == CONSTANT:
        return f"U({expr.args[0]})"
    if expr.op == EXTREME:
        return f"extreme{expr.args[0]}"
    if expr.op in ALONG:
        return ALONG[expr.op].format(*expr.args)
    if expr.op == "const":
        return f"C({literal(float(expr.args[0]), '1e999')})"  # type: ignore[arg-type]
    return TEXT[expr.op].format(*map(print_expr, expr.children()))


def scalar_names(program: Program) -> list[str]:
    """s0, s1, ...: one for each entry of the row."""
    return [f"s{k}" for k in range(len(program.row))]


def joined(kind: str, a: str, b: str) -> str:
    """Two parts of a sum in one."""
    return f"maximum({a}, {b})" if kind == "tensor_max" else f"({a} + {b})"


def beginning(kind: str, number: str) -> str:
    """What a sum of nothing is, in the type of that name."""
    return f"{number}(-1e999)" if kind == "tensor_max" else f"{number}(0)"


def statements(body: tuple[Assign | Add, ...], first: int = 0, total: str = "sum{k}") -> list[str]:
    """A pass on one element: in place of the variables named after the roles, and onto the sums from `first` on. What it adds to
    sums along rows and columns is left to the caller, as `total`.
    """
    lines = []
    for s in body:
        value = print_expr(s.expr)
        if isinstance(s, Assign):
            lines.append(f"{safe(s.name)} = {value}")
        else:
            into = total.format(k=s.index - first)
            lines.append(f"{into} = {value if s.kind in LINE_SUMS else joined(s.kind, into, value)}")
    return lines


def walk_constants(program: Program) -> dict[str, int]:
    """The capital names of both walks."""
    sizes = {"ROLES": len(program.roles), "SCALARS": len(program.row), "STREAMS": program.streams}
    sizes |= {"ADDRESSES": program.addresses, "VALUES": len(program.update.values)}
    return t.CONSTANTS | sizes | {"PER_BLOCK": PER_BLOCK, "PER_CALL": program.per_call}


def value_loads(values: Sequence[Expr]) -> list[str]:
    """The numbers of the tensor that a pass uses."""
    return [f"v{k} = load_scalar(values, value + {k})" for k in range(len(values))]


def cell_stores(program: Program, record: str) -> list[str]:
    """States of one number become what was computed of them; one that all tensors share is stored by its owner."""
    lines = []
    for cell, value in program.update.stores:
        role, address = program.signature.cells[cell], f"load_word({record}, COL_ADDRESS + {len(program.roles) + cell})"
        store = f"store_scalar({address}, 0, v{value})"
        lines += [f"if load_word({record}, COL_OWNER) != 0:", f"    {store}"] if role.shared else [store]
    return lines


def step_count(program: Program) -> list[str]:
    """The step count of which the row of scalars holds the halves, where the program takes random bits."""
    if not program.draws:
        return []
    low, high = scalar_names(program)[-2:]
    return [f"step = int64({low}) | int64({high}) << 16"]


def random_bits(program: Program) -> list[str]:
    """The random bits of each value that takes some, of the element's words."""
    return [f"random_{k} = ishr(w{d.stream}, U({d.shift}))" for k, d in program.draws.items()]


# Elements whose random bits are made before they are used: 4 KB a stream, which stay in the first-level cache.
STRIP = 1024
WHOLE = 2**31  # no tile is as long


def drawn(program: Program, element: str) -> list[str]:
    """`drawn`, the element of the whole tensor that an element is, on which its random bits depend: as kernels/shards.cuh."""
    if not program.sharded:
        return [f"drawn = {element}"]
    return [
        "run = load_word(shape, OF_RUN)",
        f"drawn = load_word(shape, OF_FIRST) + {element}",
        "if run != 0:",
        f"    drawn += quotient({element}, run) * load_word(shape, OF_SKIP)",
    ]


def cpu_source(program: Program) -> str:
    """The whole text of the CPU kernel: kernels/multi_tensor_cpu.py for one program."""
    roles, layout = program.roles, program.layout_of(program.update)
    holes = {
        "scalars": scalar_loads(len(program.row)),
        "values": value_loads(program.update.values),
        "store_cells": cell_stores(program, "record"),
        "addresses": tensor_on_cpu() if program.picked else addresses(roles, range(len(roles)), "begin"),
        "step": step_count(program),
        "drawn": [
            *drawn(program, "element"),
            *(["if run != 0:", "    stop = min(stop, start + run - element % run)"] if program.sharded else ()),
        ],
        "row": row_on_cpu(roles) if program.picked else segments(layout),
        "load": [
            *(f"{safe(r.variable)} = load_{k}(at_{k}, i)" for k, r in enumerate(roles)),
            *(f"w{s} = load_bits(bits, {s} * ROOM + i + ahead)" for s in range(program.streams)),
            *random_bits(program),
            *of_column(layout, "i"),
        ],
        "update": statements(program.update.body),
        "store": [
            f"store_{k}(at_{k}, i, {safe(r.variable)})" for k, r in enumerate(roles) if k in program.update.writes
        ],
    }
    strip = {"STRIP": STRIP if program.draws else WHOLE, "ROOM": STRIP + 2 * program.per_call}
    return kernel("multi_tensor_cpu.py", walk_constants(program) | strip, holes)


def scalar_loads(count: int) -> list[str]:
    """The scalars of the row."""
    return [f"s{k} = load_scalar(rows, entry + {k})" for k in range(count)]


def addresses(roles: Sequence[Role], which: Iterable[int], first: str) -> list[str]:
    """Of each of these roles, where an element lies."""
    sizes = [STORAGES[r.storage].itemsize for r in roles]
    return [f"at_{k} = load_word(record, COL_ADDRESS + {k}) + {first} * {sizes[k]}" for k in which]


def segments(layout: Layout) -> list[str]:
    """Bounds of a stretch of elements within one row, and the numbers of that row; the stretch begins at `start`, counted from the
    tensor's element `begin`.
    """
    if not layout.slots:
        return []
    return [
        "width = load_word(shape, OF_COLUMNS)",
        "row = (begin + start) // width",
        "stop = min(stop, (row + 1) * width - begin)",
        "matrix = row // load_word(shape, OF_ROWS)",
        *of_row(layout),
        "column = matrix * width + begin - row * width",
        *columns_begin(layout),
    ]


def of_row(layout: Layout) -> list[str]:
    """The numbers of the row `row` and of the matrix that a pass uses, and where those of columns begin, so that element i has the
    one at `i`; `column`: the first column's place among those of the tensor.
    """
    firsts = {"row": "load_word(shape, OF_FIRST_ROW) + row", "matrix": "load_word(shape, OF_FIRST_MATRIX) + matrix"}
    return [
        f"vector{k} = load_scalar(load_word(slots, {slot}), {firsts[kind]})"
        for k, (kind, slot) in enumerate(layout.slots)
        if kind != "column"
    ]


def columns_begin(layout: Layout) -> list[str]:
    """Where the numbers of the column `column`, counted from the first of the tensor, lie: once a row, for addresses that are
    loaded for each element keep loops from being vectorised.
    """
    size = STORAGES[layout.compute].itemsize
    return [
        f"from_{k} = load_word(slots, {slot}) + (load_word(shape, OF_FIRST_COLUMN) + column) * {size}"
        for k, (kind, slot) in enumerate(layout.slots)
        if kind == "column"
    ]


def of_column(layout: Layout, i: str) -> list[str]:
    """The numbers of the column of element `i`, which lies `i` behind the one at `column`."""
    return [f"vector{k} = load_scalar(from_{k}, {i})" for k, (kind, _) in enumerate(layout.slots) if kind == "column"]


def of_element(layout: Layout, element: str) -> list[str]:
    """The numbers of the row, column and matrix of one element that a pass uses; `shape`: the end of the tensor's record."""
    if not layout.slots:
        return []
    where = {
        "row": "load_word(shape, OF_FIRST_ROW) + row",
        "column": f"load_word(shape, OF_FIRST_COLUMN) + matrix * width + {element} - row * width",
        "matrix": "load_word(shape, OF_FIRST_MATRIX) + matrix",
    }
    return [
        "width = load_word(shape, OF_COLUMNS)",
        f"row = quotient({element}, width)",
        "matrix = quotient(row, load_word(shape, OF_ROWS))",
        *(
            f"vector{k} = load_scalar(load_word(slots, {slot}), {where[kind]})"
            for k, (kind, slot) in enumerate(layout.slots)
        ),
    ]


_DOUBLE = TEXT | {"pow": "pow({}, {})", "exp": "exp({})", "log": "log({})"}


def print_double(expr: Expr, whole: Collection[str] = ()) -> str:
    """Typed Python in float64, integer powers by repeated squaring: the twin of to_cuda.print_double."""
    if expr.op == "name":
        return "D(step)" if expr.args[0] == "step" else safe(str(expr.args[0]))
    if expr.op == "const":
        return f"D({literal(float(expr.args[0]), '1e999')})"  # type: ignore[arg-type]
    if expr.op == "count":
        return f"D(step >> {expr.args[0]} & 0xFFFF)"
    if expr.op in LEAVES:
        return LEAVES[expr.op].format(*expr.args)
    if expr.op == "pow" and is_integer(list(expr.children())[1], whole):
        base, exponent = expr.children()
        return f"ipow({print_double(base, whole)}, int64({print_double(exponent, whole)}))"
    return _DOUBLE[expr.op].format(*(print_double(child, whole) for child in expr.children()))


# Of a tensor, in float64, as the kernels once a tensor name them.
LEAVES = {
    "wide": "wide{}",
    "total": "load_double(totals, tensor * TOTALS + {})",
    "cell": "cell_{}",
    "numel": "D(load_word(record, COL_WHOLE))",
    "rows": "D(load_word(record + columns * 8, OF_ROWS))",
    "columns": "D(load_word(record + columns * 8, OF_COLUMNS))",
}
