"""Program -> typed Python text for `numba.cuda`: the statements that fill kernels/multi_tensor.py, reduce.py and prepare.py.

Prints only; the backend numba-cuda binds the names. What is done to one element is a function of the device in front of the walk,
printed by `to_numba` as for the CPU and called for each element of a pack: Numba reads and types it once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from gpuopt.compiler.host import prepare_statements, whole_variables
from gpuopt.compiler.kinds import LINE_SUMS
from gpuopt.compiler.names import safe
from gpuopt.compiler.parts import Layout, Pass, PerMatrix, PerTensor, Role
from gpuopt.compiler.program import Program
from gpuopt.compiler.template import kernel
from gpuopt.compiler.to_numba import (
    beginning,
    cell_stores,
    drawn,
    joined,
    of_element,
    print_double,
    print_expr,
    random_bits,
    scalar_loads,
    scalar_names,
    statements,
    step_count,
    value_loads,
    walk_constants,
)
from gpuopt.compiler.to_numba_blocks import of_blocks
from gpuopt.compiler.to_numba_rows import first_element, on_gpu
from gpuopt.compiler.to_numba_sums import (
    along_constants,
    join_lanes,
    line_loads,
    lines_of,
    matrix_constants,
    per_matrix_holes,
    per_tensor_constants,
    per_tensor_holes,
    ranked,
    reduce_constants,
)
from gpuopt.errors import InputError
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch import table as t

MULTIPLIER = safe("@grad_multiplier")


def per_access(role: Role, lanes: int) -> int:
    """Elements of a role in one access of at most 16 bytes."""
    return min(lanes, 16 // STORAGES[role.storage].itemsize)


def _address(index: int, role: Role, element: str) -> str:
    return f"load_word(at, {index}) + ({element}) * {STORAGES[role.storage].itemsize}"


def _of_one(
    name: str, layout: Layout, cut: Pass, results: list[str], words: int = 0, first: Sequence[str] = ()
) -> tuple[list[str], Callable[..., str], list[str]]:
    """A pass on one element as a function of the device; its call: of the element at `at`, on variables that have a suffix; and
    what it is given that is the same for all elements. results: roles that it returns; with none, the sums of the pass: `sum0`,
    `sum1` ..., which the call may have under other names, and the roles that it stores. words: of random bits, which `first`
    takes apart.
    """
    parts = (part for s in cut.body for part in s.expr.parts())
    numbers = sorted({(p.op, int(p.args[0])) for p in parts if p.op in ("scalar", "value")})  # type: ignore[arg-type]
    shared = [f"{op[0]}{k}" for op, k in numbers] + ["shape", "slots"] * bool(layout.slots or layout.blocked)
    own = [safe(layout.roles[k].variable) for k in cut.reads] + [f"w{s}" for s in range(words)]
    sums = [] if results else [f"sum{k}" for k in range(len(cut.sums))]
    kept = results or [safe(layout.roles[k].variable) for k in cut.writes]
    into = [total for total, kind in zip(sums, cut.sums, strict=False) if kind not in LINE_SUMS]
    lines = [
        *first,
        *of_element(layout, "element"),
        *([f"record = shape - {8 * layout.record}"] if layout.blocked else []),
        *of_blocks(layout, "element"),
        *statements(cut.body, first=cut.first),
        f"return {', '.join([*sums, *kept])}",
    ]
    function = ["@device", f"def {name}({', '.join(['element', *own, *into, *shared])}):", *_indented(lines)]

    def call(at: str, suffix: str = "", lane: str = "") -> str:
        given = [at, *(n + suffix for n in own), *(n + lane for n in into), *shared]
        found = [n + lane for n in sums] + [n + suffix for n in kept]
        return f"{', '.join(found)} = {name}({', '.join(given)})"

    return function, call, shared


def _packed(program: Program, update: Callable[..., str]) -> list[str]:
    """The statements for `lanes` elements from `element` on: as in kernels/multi_tensor.cuh, one turn after another."""
    lanes, roles = program.lanes, program.roles
    turn = min(per_access(r, lanes) for r in roles)
    names = [safe(r.variable) for r in roles]
    first = [first_element(program.picked, k) for k in range(len(roles))]
    lines: list[str] = []
    for offset in range(0, lanes, turn):
        for k, r in enumerate(roles):
            width = per_access(r, lanes)
            if offset % width == 0:
                cells = ", ".join(f"{names[k]}_{offset + j}" for j in range(width))
                lines.append(
                    f"{cells}{',' if width == 1 else ''} = load_pack_{k}({_address(k, r, f'{first[k]} + {offset}')})"
                )
        lines += drawn(program, "element") if program.draws and not offset else ()
        lines += _random_packs(program, offset, offset + turn)
        for j in range(offset, offset + turn):
            lines.append(update(f"element + {j}", f"_{j}"))
        for k, r in enumerate(roles):
            width = per_access(r, lanes)
            if k in program.update.writes and (offset + turn) % width == 0:
                begin = offset + turn - width
                cells = _tuple(f"{names[k]}_{begin + j}" for j in range(width))
                lines.append(f"store_pack_{k}({_address(k, r, f'element + {begin}')}, {cells})")
    return lines


def _random_packs(program: Program, first: int, end: int) -> list[str]:
    """The random bits of the elements of a pack that are made with those from the `first` on."""
    lines, each = [], program.per_call
    for begin in range(-(-first // each) * each, end, each):
        for s in range(program.streams):
            call = f"philox((drawn + {begin}) // PER_CALL, {s}, step, tensor, seed)"
            if each <= program.lanes:
                lines.append(f"{_tuple(f'w{s}_{begin + j}' for j in range(each))} = {call}")
                continue
            lines.append(f"words = {call}")
            lines += [f"w{s}_{j} = chosen(words, drawn % PER_CALL + {j})" for j in range(program.lanes)]
    return lines


def _tuple(names: Iterable[str]) -> str:
    return f"({''.join(f'{name}, ' for name in names)})"


def _single(program: Program, update: Callable[..., str]) -> list[str]:
    """The statements for the one `element`."""
    roles = program.roles
    first = [first_element(program.picked, k) for k in range(len(roles))]
    lines = [f"{safe(r.variable)} = load_{k}(load_word(at, {k}), {first[k]})" for k, r in enumerate(roles)]
    lines += drawn(program, "element") if program.draws else ()
    for s in range(program.streams):
        lines.append(f"w{s} = chosen(philox(drawn // PER_CALL, {s}, step, tensor, seed), drawn % PER_CALL)")
    lines.append(update("element"))
    for k, r in enumerate(roles):
        if k in program.update.writes:
            lines.append(f"store_{k}(load_word(at, {k}), element, {safe(r.variable)})")
    return lines


def cuda_source(program: Program) -> str:
    """The whole text of the GPU kernel: kernels/multi_tensor.py for one program."""
    names = scalar_names(program)
    everything = replace(program.update, reads=tuple(range(len(program.roles))))
    written = [safe(program.roles[k].variable) for k in program.update.writes]
    layout, words = program.layout_of(program.update), program.streams
    placed = on_gpu if program.picked else list
    function, update, _ = _of_one("update", layout, everything, written, words, random_bits(program))
    holes = {
        "function": function,
        "scalars_by_value": [f"{name} = rows[{k}]" for k, name in enumerate(names)],
        "scalars_by_address": [f"{name} = load_scalar(device_rows, entry + {k})" for k, name in enumerate(names)],
        "values": value_loads(program.update.values),
        "store_cells": cell_stores(program, "record"),
        "step": step_count(program),
        "update_packs": placed(_packed(program, update)),
        "update_one": placed(_single(program, update)),
    }
    return kernel("multi_tensor.py", walk_constants(program) | {"LANES": program.lanes}, holes)


def reduce_source(layout: Layout, cut: Pass) -> str:
    """The whole text of a pass that sums: kernels/reduce.py. The accumulators `sum0_0`, `sum0_1` ... of a lane, and the elements of
    a pack, go as tuples `sum0`, `p_` ... through a function of the device that measures a pack.
    """
    width, ranks = layout.lanes, list(enumerate(cut.sums))
    steps = t.CHUNK // (t.THREADS * width)
    ahead = min(steps, cut.ahead)
    names = {k: safe(layout.roles[k].variable) for k in cut.reads}
    function, measure, shared = _of_one("measure", layout, cut, [])
    sums, written = [f"sum{j}" for j, _ in ranks], {k: names[k] for k in cut.writes}

    def cells(name: str) -> str:
        return _tuple(f"{name}_{k}" for k in range(width))

    apart = [f"{cells(name)} = {name}" for name in sums]
    together = [f"{name} = {cells(name)}" for name in sums]
    kept = [f"{name} = {cells(name)}" for name in written.values()]
    pack = [f"{cells(name)} = {name}" for name in names.values()] + apart
    pack += [measure(f"element + {k}", f"_{k}", f"_{k}") for k in range(width)]
    arguments = ", ".join(["element", *names.values(), *sums, *shared])
    found = f"return {', '.join([*sums, *written.values()])}"
    function += ["", "", "@device", f"def measure_pack({arguments}):", *_indented([*pack, *together, *kept, found])]

    def loads(suffix: str, offset: str) -> list[str]:
        lines = []
        for role, name in names.items():
            per, of = per_access(layout.roles[role], width), layout.roles[role]
            parts = (_address(role, of, f"element + {offset} + {begin}") for begin in range(0, width, per))
            lines.append(f"{name}{suffix} = {' + '.join(f'load_pack_{role}({part})' for part in parts)}")
        return lines

    def measured(suffix: str, offset: str) -> list[str]:
        given = ", ".join([f"element + {offset}", *(n + suffix for n in names.values()), *sums, *shared])
        lines = [f"{', '.join([*sums, *(n + suffix for n in written.values())])} = measure_pack({given})"]
        for role, name in written.items():
            per, of = per_access(layout.roles[role], width), layout.roles[role]
            for begin in range(0, width, per):
                some = _tuple(f"{name}{suffix}[{begin + k}]" for k in range(per))
                lines.append(f"store_pack_{role}({_address(role, of, f'element + {offset} + {begin}')}, {some})")
        return lines

    single = []
    for k in range(width):
        one = [f"{name}_{k} = load_{role}(load_word(at, {role}), element + {k})" for role, name in names.items()]
        one.append(measure(f"element + {k}", f"_{k}", f"_{k}"))
        one += [f"store_{r}(load_word(at, {r}), element + {k}, {name}_{k})" for r, name in written.items()]
        single += [f"if i + {k} < count:", *_indented(one)]
    share = list(apart)
    for j, kind in ranks:
        share += [f"sum{j}_0 = {joined(kind, f'sum{j}_0', f'sum{j}_{k}')}" for k in range(1, width)]
        share.append(f"shared[{j}, lane] = sum{j}_0")
    places = [(f"_{a}", f"{a} * THREADS * N") for a in range(ahead)]
    holes = {
        "function": function,
        "scalars": scalar_loads(layout.scalars),
        "values": value_loads(cut.values),
        "begin": [f"sum{j} = {_tuple([beginning(kind, 'C')] * width)}" for j, kind in ranks],
        "load_ahead": [line for place in places for line in loads(*place)],
        "measure_ahead": [line for place in places for line in measured(*place)],
        "measure_pack": [*loads("", "0"), *measured("", "0")],
        "measure_single": [*apart, *single, *together],
        "share": share,
        "join_lanes": join_lanes(cut.sums, "shared[{}, lane]", "shared[{}, lane + half]"),
    }
    known = {"STEPS": steps, "AHEAD": ahead, "ALIGNED": sum(2 << k for k in cut.reads), "STORES": int(bool(written))}
    return kernel("reduce.py", reduce_constants(layout, cut) | known, holes)


def reduce_along_source(layout: Layout, cut: Pass) -> str:
    """The whole text of a pass that sums along rows and columns: kernels/reduce_along.py."""
    width = layout.lanes
    packs = t.BLOCK_COLUMNS // (t.WARP * width)
    rows, columns = ranked(cut.sums, "row_sum"), ranked(cut.sums, "column_sum")
    names = {k: safe(layout.roles[k].variable) for k in cut.reads}
    function, measure_one, _ = _of_one("measure", layout, cut, [])
    asked: list[list[str]] = []  # of each pack
    measured: list[list[str]] = []
    for j in range(packs):
        at = f"({j} * WARP + lane) * N"
        loads, adds = [], []
        for role, name in names.items():
            per = per_access(layout.roles[role], width)
            for begin in range(0, width, per):
                cells = _tuple(f"{name}_{j}_{begin + k}" for k in range(per))[1:-1]
                address = _address(role, layout.roles[role], f"first + {at} + {begin}")
                loads.append(f"{cells} = load_pack_{role}({address})")
        for k in range(width):
            element = f"(first + {at} + {k})"
            alone = [f"{name}_{j}_{k} = load_{role}(load_word(at, {role}), {element})" for role, name in names.items()]
            lines = ["if not aligned:", *_indented(alone), measure_one(element, f"_{j}_{k}", f"_{k}")]
            lines += [f"across{q}_{k} = across{q}_{k} + sum{place}_{k}" for q, place in rows]
            lines += [f"down{q}_{j * width + k} = down{q}_{j * width + k} + sum{place}_{k}" for q, place in columns]
            adds += [f"if {at} + {k} < column_count:", *_indented(lines)]
        asked.append([f"if aligned and {at} + N <= column_count:", *_indented(loads)])
        measured.append(adds)
    groups = [slice(begin, begin + cut.ahead) for begin in range(0, packs, cut.ahead)]
    measure = [line for group in groups for lines in (*asked[group], *measured[group]) for line in lines]
    share = []
    for q, _ in rows:
        share += [f"across{q}_0 = across{q}_0 + across{q}_{k}" for k in range(1, width)]
        share.append(f"shared[({q} * BATCH + r - begin_row) * (WARP + 1) + lane] = across{q}_0")
    store_row, store_columns = [], []
    for q, place in rows:
        store_row += [f"begin = ({q} * BATCH + r - begin_row) * (WARP + 1)", "total = shared[begin]"]
        store_row += ["for k in range(1, WARP):", "    total = total + shared[begin + k]"]
        store_row.append(f"store_double(load_word(slots, {2 * (cut.first + place)}), block_at, D(total))")
    at_column = (
        "load_word(shape, OF_COLUMN_BLOCKS) + (matrix * high + first_row // BLOCK_ROWS) * width + first_column + c"
    )
    for q, place in columns:
        spots = [(j, k) for j in range(packs) for k in range(width)]
        store_columns += [
            *(
                f"shared[warp * BLOCK_COLUMNS + ({j} * WARP + lane) * N + {k}] = down{q}_{j * width + k}"
                for j, k in spots
            ),
            "cuda.syncthreads()",
            "for c in range(cuda.threadIdx.x, column_count, THREADS):",
            "    total = shared[c]",
            "    for w in range(1, WARPS):",
            "        total = total + shared[w * BLOCK_COLUMNS + c]",
            f"    store_double(load_word(slots, {2 * (cut.first + place)}), {at_column}, D(total))",
            "cuda.syncthreads()",
        ]
    holes = {
        "function": function,
        "scalars": scalar_loads(layout.scalars),
        "values": value_loads(cut.values),
        "begin_columns": [f"down{q}_{k} = C(0)" for q, _ in columns for k in range(packs * width)],
        "begin_row": [f"across{q}_{k} = C(0)" for q, _ in rows for k in range(width)],
        "measure": measure,
        "share_row": share,
        "store_row": store_row,
        "store_columns": store_columns,
    }
    batch = cut.batch(STORAGES[layout.compute].itemsize)
    across, least = len(rows) * batch * (t.WARP + 1), t.THREADS // t.WARP * t.BLOCK_COLUMNS
    known = {"ALIGNED": sum(2 << k for k in cut.reads), "SHARED": max(across, least), "BATCH": batch}
    return kernel("reduce_along.py", along_constants(layout, cut) | known, holes)


def _indented(lines: Iterable[str]) -> list[str]:
    return ["    " + line for line in lines]


def per_matrix_source(made: PerMatrix) -> str:
    """The whole text of what is done once a matrix: kernels/per_matrix.py."""
    sums = made.derives.matrix_sums if made.derives else ()
    ranks = range(len(sums))
    holes = per_matrix_holes(made) | {
        "begin_sums": [f"sum{k} = np.float64(0)" for k in ranks],
        "share_sums": [f"lanes[{k}, lane] = sum{k}" for k in ranks],
        "take_sums": [f"matrix_sum{k} = C(lanes[{k}, 0])" for k in ranks],
    }
    for kind in ("row", "column"):
        adds = [f"sum{k} = sum{k} + np.float64({print_expr(s.expr)})" for k, s in enumerate(sums) if s.kind == kind]
        holes[f"sum_{kind}"] = (
            [*line_loads(made, kind), *lines_of(made.lines_before(kind), kind), *adds] if adds else []
        )
    return kernel("per_matrix.py", matrix_constants(made) | {"SPACE": max(1, len(sums))}, holes)


def per_tensor_source(made: PerTensor) -> str:
    """The whole text of what is done once a tensor: kernels/per_tensor.py."""
    ranks = list(enumerate(made.sums))
    holes = per_tensor_holes(made) | {
        "begin": [f"sum{k} = {beginning(kind, 'D')}" for k, kind in ranks],
        "join_chunk": join_lanes(made.sums, "sum{}", "load_double(partials, c * SUMS + {})"),
        "share": [f"shared[{k}, lane] = sum{k}" for k, _ in ranks],
        "join_lanes": join_lanes(made.sums, "shared[{}, lane]", "shared[{}, lane + half]"),
    }
    return kernel("per_tensor.py", per_tensor_constants(made) | {"SPACE": max(1, len(made.sums))}, holes)


def exchange_source() -> str:
    """The whole text of what brings sums of parts of tensors together and back: kernels/exchange.py."""
    return kernel("exchange.py", t.CONSTANTS, {})


def all_tensors_source() -> str:
    """The whole text of the sums over all tensors: kernels/all_tensors.py."""
    return kernel("all_tensors.py", t.CONSTANTS, {})


def _given(name: str, k: int) -> list[str]:
    """A hyperparameter: a number, or where on the device it is read; see Hyper in kernels/prepare.cuh."""
    read = "load_double(source - 1, 0) if source & 1 else D(load_float(source, 0))"
    return [f"source = load_word(sources, {k})", f"{name} = load_double(numbers, {k}) if source == 0 else {read}"]


def prepare_source(program: Program, inputs: tuple[str, ...]) -> str:
    """The whole text of the GPU decision: kernels/prepare.py for one program.

    Raises InputError where `prepare` is Python that only the host can run.
    """
    statements_of = prepare_statements(program.signature.definition)
    if statements_of is None:
        raise InputError(f"the prepare function of {program.name} uses Python that cannot run on the device")
    whole = whole_variables(statements_of)
    loads = [_given(safe(n), k) for k, n in enumerate(inputs) if safe(n) != MULTIPLIER]
    holes = {
        "hyper": [*(line for lines in loads for line in lines), f"{MULTIPLIER} = multiplier"],
        "prepare": [f"{safe(name)} = {print_double(expr, whole)}" for name, expr in statements_of],
        "row": [f"store_row(rows, r * SCALARS + {k}, {print_double(e)})" for k, e in enumerate(program.row)],
        "wide": [f"store_double(wide, r * WIDES + {k}, {print_double(e)})" for k, e in enumerate(program.wide)],
    }
    sizes = {"SCALARS": len(program.row), "WIDES": len(program.wide), "INPUTS": len(inputs)}
    return kernel("prepare.py", t.CONSTANTS | sizes, holes)
