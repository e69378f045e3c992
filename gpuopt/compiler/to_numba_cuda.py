"""Program -> typed Python text for `numba.cuda`: the walk of kernels/multi_tensor.cuh, by address, in packs of 16 bytes.

Prints only; the backend numba-cuda binds the names. The update is printed by `to_numba`, as for the CPU, once for each
element of a pack, because Numba compiles no separate device function without a GPU.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from gpuopt.compiler.host import is_integer, prepare_statements, whole_variables
from gpuopt.compiler.lower import Program, Role
from gpuopt.compiler.names import literal, safe
from gpuopt.compiler.to_numba import (
    TEXT,
    print_expr,
    scalar_names,
    sizes,
    source_of_bits,
    statements,
    tile_bounds,
)
from gpuopt.compiler.tree import Expr
from gpuopt.errors import InputError
from gpuopt.formats.dtypes import STORAGES
from gpuopt.formats.philox import PER_BLOCK
from gpuopt.launch import table as t

MULTIPLIER = safe("@grad_multiplier")


def per_access(role: Role, lanes: int) -> int:
    """Elements of a role in one access of at most 16 bytes."""
    return min(lanes, 16 // STORAGES[role.storage].itemsize)


def _address(index: int, role: Role, element: str) -> str:
    return f"load_word(record, {t.ADDRESS + index}) + ({element}) * {STORAGES[role.storage].itemsize}"


def _packed(program: Program) -> list[str]:
    """The statements for `lanes` elements from element `at` on: as in kernels/multi_tensor.cuh, one turn after another."""
    lanes, roles = program.lanes, program.roles
    turn = min(per_access(r, lanes) for r in roles)
    names = [safe(r.name) for r in roles]
    lines: list[str] = []
    for offset in range(0, lanes, turn):
        for k, r in enumerate(roles):
            width = per_access(r, lanes)
            if offset % width == 0:
                cells = ", ".join(f"{names[k]}_{offset + j}" for j in range(width))
                lines.append(f"{cells}{',' if width == 1 else ''} = load_pack_{k}({_address(k, r, f'at + {offset}')})")
        for j in range(offset, offset + turn):
            lines += statements(program, f"_{j}")
        for block in range(-(-offset // PER_BLOCK) * PER_BLOCK, offset + turn, PER_BLOCK):
            for s in range(program.streams):
                words = _tuple(f"w{s}_{block + j}" for j in range(PER_BLOCK))
                lines.append(f"{words} = philox((at + {block}) // {PER_BLOCK}, {s}, step, tensor, seed)")
        for k, r in enumerate(roles):
            width = per_access(r, lanes)
            if r.written and (offset + turn) % width == 0:
                begin = offset + turn - width
                cells = _tuple(f"{names[k]}_{begin + j}" for j in range(width))
                if k in program.draws:
                    cells += ", " + _tuple(f"w{program.draws[k].stream}_{begin + j}" for j in range(width))
                lines.append(f"store_pack_{k}({_address(k, r, f'at + {begin}')}, {cells})")
    return lines


def _tuple(names: Iterable[str]) -> str:
    return f"({''.join(f'{name}, ' for name in names)})"


def _single(program: Program) -> list[str]:
    """The statements for the one element `at`."""
    roles = program.roles
    names = [safe(r.name) for r in roles]
    lines = [f"{n} = load_{k}(load_word(record, {t.ADDRESS + k}), at)" for k, n in enumerate(names)]
    lines += statements(program)
    for s in range(program.streams):
        lines.append(f"w{s} = chosen(philox(at // {PER_BLOCK}, {s}, step, tensor, seed), at % {PER_BLOCK})")
    for k, (name, r) in enumerate(zip(names, roles, strict=True)):
        if r.written:
            word = f", w{program.draws[k].stream}" if k in program.draws else ""
            lines.append(f"store_{k}(load_word(record, {t.ADDRESS + k}), at, {name}{word})")
    return lines


def _indent(lines: list[str], depth: int) -> list[str]:
    return ["    " * depth + line for line in lines]


def _scalars(program: Program) -> list[str]:
    """One row by value, or rows in device memory."""
    names = scalar_names(program)
    if not names:
        return []
    by_value = [f"{name} = values[{k}]" for k, name in enumerate(names)]
    by_address = [f"{name} = load_scalar(row, {k})" for k, name in enumerate(names)]
    return ["if rows == 0:", *_indent(by_value, 1), "else:", *_indent(by_address, 1)]


def cuda_source(program: Program) -> str:
    """The whole text of the GPU kernel: the update of one element and the persistent walk over all tiles."""
    lanes = program.lanes
    lines = [
        "def walk(table, tiles, tile_count, tile_size, unit, rows, skip, values):",
        f'    """{program.name} on every tile; addresses and counts are int64, `values` is the row of scalars."""',
        "    if skip != 0 and load_flag(skip, 0) != 0:",
        "        return",
        "    lane = cuda.threadIdx.x % unit",
        "    per_block = cuda.blockDim.x // unit",
        "    tile = cuda.blockIdx.x * per_block + cuda.threadIdx.x // unit",
        "    while tile < tile_count:",
        *[line.format(**sizes(program)) for line in tile_bounds("        ")],
        *_indent(_scalars(program), 2),
        *_indent(source_of_bits(program) if program.draws else [], 2),
        "        count = end - first",
        "        body = 0",
        f"        if count > 0 and load_word(record, {t.ALIGNED}) & 1:",
        f"            body = count // {lanes} * {lanes}",
        f"        i = lane * {lanes}",
        "        while i < body:",
        "            at = first + i",
        *_indent(_packed(program), 3),
        f"            i += unit * {lanes}",
        "        if index == 0 and lane < head and lane < numel:",
        "            at = numel * 0 + lane",
        *_indent(_single(program), 3),
        "        i = body + lane",
        "        while i < count:",
        "            at = first + i",
        *_indent(_single(program), 3),
        "            i += unit",
        "        tile += cuda.gridDim.x * per_block",
    ]
    return "\n".join(lines) + "\n"


def sums_source(storage: str, compute: str) -> str:
    """The text of the GPU sums: kernels/reduce.cuh in Python, the same chunks, lanes and tree."""
    from gpuopt.rules.options import sums

    size = STORAGES[storage].itemsize
    width = 16 // size
    terms = sums.tree.results
    ranks = range(len(terms))
    names = [safe("g") + f"_{j}" for j in range(width)]
    packed = [f"total{k} = total{k} + {print_expr(terms[k], f'_{j}')}" for j in range(width) for k in ranks]
    steps = t.CHUNK // (t.THREADS * width)
    ahead = min(steps, 8)  # loads on their way before the first is measured
    whole = []
    for begin in range(0, steps, ahead):
        for a in range(begin, begin + ahead):
            whole.append(f"{', '.join(f'{n}_{a}' for n in names)} = load_pack_0(at + lane * 16 + {a * t.THREADS * 16})")
        for a in range(begin, begin + ahead):
            for j in range(width):
                whole += [f"total{k} = total{k} + {print_expr(terms[k], f'_{j}_{a}')}" for k in ranks]
    lines = [
        "def sums(table, columns, role, chunks, chunk_count, partials):",
        *[f"    shared{k} = cuda.shared.array({t.THREADS}, dtype)" for k in ranks],
        "    lane = cuda.threadIdx.x",
        "    chunk = cuda.blockIdx.x",
        "    while chunk < chunk_count:",
        "        word = load_word(chunks, chunk)",
        "        record = table + (word >> 32) * columns * 8",
        f"        first = (word & 0xFFFFFFFF) * {t.CHUNK}",
        f"        count = min({t.CHUNK}, load_word(record, {t.NUMEL}) - first)",
        f"        at = load_word(record, {t.ADDRESS} + role) + first * {size}",
        f"        aligned = (load_word(record, {t.ALIGNED}) >> (1 + role)) & 1",
        *[f"        total{k} = C(0)" for k in ranks],
        f"        if aligned == 1 and count == {t.CHUNK}:",
        *_indent(whole, 3),
        f"        i = lane * {width} if aligned == 0 or count < {t.CHUNK} else count",
        "        while i < count:",
        f"            if aligned == 1 and i + {width} <= count:",
        f"                {', '.join(names)} = load_pack_0(at + i * {size})",
        *_indent(packed, 4),
        "            else:",
        f"                for k in range(i, min(i + {width}, count)):",
        f"                    {safe('g')} = load_0(at, k)",
        *[f"                    total{k} = total{k} + {print_expr(terms[k])}" for k in ranks],
        f"            i += {t.THREADS * width}",
        *[f"        shared{k}[lane] = total{k}" for k in ranks],
        *_indent(_tree([f"shared{k}" for k in ranks]), 2),
        "        if lane == 0:",
        *[f"            store_sum(partials, chunk * {len(terms)} + {k}, shared{k}[0])" for k in ranks],
        "        cuda.syncthreads()",
        "        chunk += cuda.gridDim.x",
    ]
    return "\n".join(lines) + "\n"


def _tree(names: list[str]) -> list[str]:
    """The fixed tree over the lanes of a block."""
    return [
        f"half = {t.THREADS // 2}",
        "while half > 0:",
        "    cuda.syncthreads()",
        "    if lane < half:",
        *[f"        {n}[lane] = {n}[lane] + {n}[lane + half]" for n in names],
        "    half //= 2",
    ]


_DOUBLE = TEXT | {"pow": "pow({}, {})", "exp": "exp({})", "log": "log({})"}


def _double(expr: Expr, whole: Collection[str] = ()) -> str:
    """Typed Python in float64, integer powers by repeated squaring: the twin of to_cuda.print_double."""
    if expr.op == "name":
        return "D(step)" if expr.args[0] == "step" else safe(str(expr.args[0]))
    if expr.op == "const":
        return f"D({literal(float(expr.args[0]), '1e999')})"  # type: ignore[arg-type]
    if expr.op == "count":
        return f"D(step >> {expr.args[0]} & 0xFFFF)"
    if expr.op == "pow" and is_integer(list(expr.children())[1], whole):
        base, exponent = expr.children()
        return f"ipow({_double(base, whole)}, int64({_double(exponent, whole)}))"
    return _DOUBLE[expr.op].format(*(_double(child, whole) for child in expr.children()))


def _given(name: str, k: int, inputs: int) -> list[str]:
    """A hyperparameter: a number, or where on the device it is read; see Hyper in kernels/prepare.cuh."""
    return [
        f"{name} = load_double(hyper, record * {2 * inputs} + {k})",
        f"source = load_word(hyper, record * {2 * inputs} + {inputs + k})",
        "if source & 1 == 1:",
        f"    {name} = load_double(source - 1, 0)",
        "elif source != 0:",
        f"    {name} = D(load_float(source, 0))",
    ]


def prepare_source(program: Program, inputs: tuple[str, ...]) -> str:
    """The text of the GPU decision: kernels/prepare.cuh in Python; rows of scalars in float64 on the device."""
    loads = [line for k, n in enumerate(inputs) if safe(n) != MULTIPLIER for line in _given(safe(n), k, len(inputs))]
    statements_of = prepare_statements(program.signature.definition)
    if statements_of is None:
        raise InputError(f"the prepare function of {program.name} uses Python that cannot run on the device")
    whole = whole_variables(statements_of)
    body = [f"{safe(name)} = {_double(expr, whole)}" for name, expr in statements_of]
    stores = [f"store_row(rows, r * {len(program.row)} + {k}, {_double(e)})" for k, e in enumerate(program.row)]
    lines = [
        "def prepare(chunk_count, max_norm, grad_scale_value, grad_scale, found_inf, check_finite, row_count, partials,",
        "            hyper, clocks, rows, skip, skipped):",
        f"    squares = cuda.shared.array({t.THREADS}, D)",
        f"    broken = cuda.shared.array({t.THREADS}, D)",
        "    lane = cuda.threadIdx.x",
        "    total = D(0)",
        "    bad = D(0)",
        f"    for c in range(lane, chunk_count, {t.THREADS}):",
        "        total = total + load_sum(partials, 2 * c)",
        "        bad = bad + load_sum(partials, 2 * c + 1)",
        "    squares[lane] = total",
        "    broken[lane] = bad",
        *_indent(_tree(["squares", "broken"]), 1),
        "    cuda.syncthreads()",
        "    scale = D(grad_scale_value)",
        "    if grad_scale != 0:",
        "        scale = D(load_float(grad_scale, 0))",
        "    inverse = div(D(1), scale)",
        "    norm = mul(sqrt(squares[0]), inverse)",
        "    multiplier = inverse",
        "    if D(max_norm) - D(max_norm) == D(0):",
        "        multiplier = mul(minimum(div(D(max_norm), norm + D(1e-6)), D(1)), inverse)",
        "    skipping = False",
        "    if found_inf != 0:",
        "        skipping = load_float(found_inf, 0) != D(0)",
        "    if check_finite != 0 and not broken[0] == D(0):",
        "        skipping = True",
        "    if lane == 0:",
        "        store_word(skip, 0, 1 if skipping else 0)",
        "        if skipped != 0 and skipping:",
        "            store_word(skipped, 0, load_word(skipped, 0) + 1)",
        f"    for r in range(lane, row_count, {t.THREADS}):",
        "        if not skipping:",
        "            counted = load_word(clocks, 2 * r)",
        "            record = load_word(clocks, 2 * r + 1)",
        "            step = load_word(counted, 0) + 1",
        "            store_word(counted, 0, step)",
        *_indent(loads, 3),
        f"            {MULTIPLIER} = multiplier",
        *_indent([*body, *stores], 3),
    ]
    return "\n".join(lines) + "\n"
