"""Program -> typed Python text for `numba.njit` and `numba.cuda`. Prints only; the names the text calls are bound by the backends.

The update function is one text for both: `mul` and `sqrt` are plain on the CPU and the non-contracting libdevice calls on
the GPU, where Numba would otherwise fuse a product and a sum.
"""

from __future__ import annotations

from gpuopt.compiler.lower import Program
from gpuopt.compiler.names import literal, safe
from gpuopt.compiler.tree import Expr
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


def print_expr(expr: Expr, suffix: str = "") -> str:
    """Typed Python text: constants are cast to the compute type `C`, scalars are `s0, s1, ...`, variables get a suffix."""
    if expr.op == "name":
        return safe(str(expr.args[0])) + suffix
    if expr.op == "scalar":
        return f"s{expr.args[0]}"
    if expr.op == "const":
        return f"C({literal(float(expr.args[0]), '1e999')})"  # type: ignore[arg-type]
    return TEXT[expr.op].format(*(print_expr(child, suffix) for child in expr.children()))


def scalar_names(program: Program) -> list[str]:
    """s0, s1, ...: one for each entry of the row."""
    return [f"s{k}" for k in range(len(program.row))]


def statements(program: Program, suffix: str = "") -> list[str]:
    """The update of one element, in place of the variables named after the roles."""
    return [f"{safe(s.name)}{suffix} = {print_expr(s.expr, suffix)}" for s in program.body]


def update_source(program: Program) -> str:
    """`update(roles..., scalars...) -> written roles`, one element, typed Python."""
    roles = [safe(r.name) for r in program.roles]
    lines = [f"def update({', '.join(roles + scalar_names(program))}):", f'    """{program.name} on one element."""']
    lines += [f"    {line}" for line in statements(program)]
    written = [safe(r.name) for r in program.roles if r.written]
    lines.append(f"    return {', '.join(written)}{',' if len(written) == 1 else ''}")
    return "\n".join(lines) + "\n"


def tile_bounds(indent: str) -> list[str]:
    """Shared by both walks: which tensor a tile belongs to, and which elements it covers."""
    return [
        indent + line
        for line in (
            "word = load_word(tiles, tile)",
            "record = table + (word >> 32) * {record}",
            "index = word & 0xFFFFFFFF",
            f"numel = load_word(record, {t.NUMEL})",
            f"head = load_word(record, {t.HEAD})",
            "first = head + index * tile_size",
            "end = min(first + tile_size, numel)",
            f"row = rows + load_word(record, {t.ROW}) * {{row}}",
        )
    ]


# Hardware fetches ahead within a page only: the walk asks for the first lines of the next tensor while it updates this one. It
# saves a tenth of the time of 1,000 tensors of 1,000 elements from memory; asking for more costs as much where all is cached.
NEXT_TENSOR = "        other = table + (load_word(tiles, min(tile + 1, hi - 1)) >> 32) * {record}"


def sizes(program: Program) -> dict[str, int]:
    """Bytes of one table record and of one row of scalars."""
    return {
        "record": 8 * (t.ADDRESS + len(program.roles)),
        "row": STORAGES[program.compute].itemsize * len(program.row),
    }


def scalar_loads(program: Program, indent: str) -> list[str]:
    """Read the row's scalars by address."""
    return [f"{indent}{name} = load_scalar(row, {k})" for k, name in enumerate(scalar_names(program))]


# Elements whose random bits are made before they are used: 4 KB a stream, which stay in the first-level cache.
STRIP = 1024
# Numba frees an array behind its last use, whoever has its address.
SCRATCH = """    scratch = np.empty({words}, np.uint32)
    bits = scratch.ctypes.data"""


def cpu_source(program: Program) -> str:
    """The whole text of the CPU kernel: the update, and the walk over tiles `lo` to `hi` by address."""
    roles = program.roles
    lines = [
        update_source(program),
        "",
        "def walk(table, tiles, lo, hi, tile_size, rows):",
        f'    """{program.name} on the tiles lo to hi; every argument is an address or a count (int64)."""',
        *(SCRATCH.format(words=program.streams * STRIP).splitlines() if program.draws else []),
        "    for tile in range(lo, hi):",
        *[line.format(**sizes(program)) for line in tile_bounds("        ")],
        "        begin = first if index > 0 else 0",
        *scalar_loads(program, "        "),
    ]
    for k, r in enumerate(roles):
        size = STORAGES[r.storage].itemsize
        lines.append(f"        at_{k} = load_word(record, {t.ADDRESS + k}) + begin * {size}")
    lines.append(NEXT_TENSOR.format(**sizes(program)))
    lines += [f"        prefetch(load_word(other, {t.ADDRESS + k}))" for k in range(len(roles))]
    if program.draws:
        lines += [*(f"        {line}" for line in strips(program)), "    scratch[0] = 0  # in use until here"]
    else:
        lines += ["        for i in range(end - begin):", *element(program, "            ")]
    return "\n".join(lines) + "\n"


def element(program: Program, indent: str) -> list[str]:
    """Load the roles of element `i`, update, store; where rounded at random with its words `w0`, `w1`, ..."""
    roles = program.roles
    written = [safe(r.name) for r in roles if r.written]
    arguments = ", ".join([safe(r.name) for r in roles] + scalar_names(program))
    lines = [f"{safe(r.name)} = load_{k}(at_{k}, i)" for k, r in enumerate(roles)]
    lines.append(f"{', '.join(written)}{',' if len(written) == 1 else ''} = update({arguments})")
    for k, r in enumerate(roles):
        if r.written:
            word = f", w{program.draws[k].stream}" if k in program.draws else ""
            lines.append(f"store_{k}(at_{k}, i, {safe(r.name)}{word})")
    return [indent + line for line in lines]


def source_of_bits(program: Program) -> list[str]:
    """What the random numbers of a tensor depend on, from its record and its row."""
    low, high = scalar_names(program)[-2:]
    return [
        f"tensor = load_word(record, {t.TENSOR})",
        f"seed = load_word(record, {t.SEED})",
        f"step = int64({low}) | int64({high}) << 16",
    ]


def strips(program: Program) -> list[str]:
    """The loop over the elements of a tile, in strips: first the random bits of a strip, then its elements. A tile begins with an
    element that begins a block of random numbers (see Plan).
    """
    lines = [
        *source_of_bits(program),
        f"for strip in range(0, end - begin, {STRIP}):",
        f"    length = min({STRIP}, end - begin - strip)",
        f"    block = (begin + strip) // {PER_BLOCK}",
        f"    for k in range((length + {PER_BLOCK - 1}) // {PER_BLOCK}):",
    ]
    words = ", ".join(f"r{k}" for k in range(PER_BLOCK))
    for s in range(program.streams):
        lines.append(f"        {words} = philox(block + k, {s}, step, tensor, seed)")
        at = f"{s * STRIP} + {PER_BLOCK} * k"
        lines += [f"        store_bits(bits, {at} + {k}, r{k})" for k in range(PER_BLOCK)]
    lines.append("    for i in range(strip, strip + length):")
    lines += [f"        w{s} = load_bits(bits, {s * STRIP} + i - strip)" for s in range(program.streams)]
    return [*lines, *element(program, "        ")]


def sums_source(storage: str, compute: str) -> str:
    """The text of `sums(table, columns, role, chunks, lo, hi, partials)`, in the order of kernels/reduce.cuh."""
    from gpuopt.rules.options import sums

    width = 16 // STORAGES[storage].itemsize
    terms = [print_expr(result) for result in sums.tree.results]
    add = [f"lanes{k}[lane] = lanes{k}[lane] + {term}" for k, term in enumerate(terms)]
    lines = [
        "def sums(table, columns, role, chunks, lo, hi, partials):",
        *[f"    lanes{k} = np.empty({t.THREADS}, dtype)" for k in range(len(terms))],
        "    for chunk in range(lo, hi):",
        "        word = load_word(chunks, chunk)",
        "        record = table + (word >> 32) * columns * 8",
        f"        first = (word & 0xFFFFFFFF) * {t.CHUNK}",
        f"        count = min({t.CHUNK}, load_word(record, {t.NUMEL}) - first)",
        f"        at = load_word(record, {t.ADDRESS} + role) + first * {STORAGES[storage].itemsize}",
        *[f"        lanes{k}[:] = C(0)" for k in range(len(terms))],
        f"        full = count // {t.THREADS * width}",
        "        for turn in range(full):",
        f"            for lane in range({t.THREADS}):",
        f"                i = (turn * {t.THREADS} + lane) * {width}",
    ]
    for k in range(width):
        lines += [f"                {safe('g')} = load_0(at, i + {k})", *[f"                {a}" for a in add]]
    lines += [
        f"        for i in range(full * {t.THREADS * width}, count):",
        f"            lane = (i // {width}) % {t.THREADS}",
        f"            {safe('g')} = load_0(at, i)",
        *[f"            {a}" for a in add],
        f"        half = {t.THREADS // 2}",
        "        while half > 0:",
        "            for lane in range(half):",
        *[f"                lanes{k}[lane] = lanes{k}[lane] + lanes{k}[lane + half]" for k in range(len(terms))],
        "            half //= 2",
        *[
            f"        store_sum(partials, chunk * {len(terms)} + {k}, np.float64(lanes{k}[0]))"
            for k in range(len(terms))
        ],
    ]
    return "\n".join(lines) + "\n"
