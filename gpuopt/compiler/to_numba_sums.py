"""Passes that sum, and what is done once a tensor or matrix, as typed Python text that fills the holes of kernels/*.py.

For a CPU; `to_numba_cuda` shares what is the same for both. Prints only, knows no rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpuopt.compiler.names import safe
from gpuopt.compiler.parts import Layout, Pass, PerMatrix, PerTensor
from gpuopt.compiler.template import kernel
from gpuopt.compiler.to_numba import (
    addresses,
    beginning,
    columns_begin,
    joined,
    of_column,
    of_row,
    print_double,
    print_expr,
    scalar_loads,
    segments,
    statements,
    value_loads,
)
from gpuopt.compiler.to_numba_blocks import of_blocks
from gpuopt.compiler.tree import Assign
from gpuopt.launch import table as t


def reduce_constants(layout: Layout, cut: Pass) -> dict[str, int]:
    """The capital names of a pass that sums: N elements are one pack."""
    sizes = {"SUMS": len(cut.sums), "N": layout.lanes, "SCALARS": layout.scalars, "VALUES": len(cut.values)}
    return t.CONSTANTS | sizes


def reduce_source(layout: Layout, cut: Pass) -> str:
    """The whole text of a pass that sums: kernels/reduce_cpu.py."""
    kinds = list(enumerate(cut.sums))
    loads = [f"{safe(layout.roles[k].variable)} = load_{k}(at_{k}, i)" for k in cut.reads] + of_column(layout, "lane")
    loads += of_blocks(layout, "(first + i)")
    stores = [f"store_{k}(at_{k}, i, {safe(layout.roles[k].variable)})" for k in cut.writes]
    holes = {
        "row": segments(layout),
        "scalars": scalar_loads(layout.scalars),
        "values": value_loads(cut.values),
        "addresses": addresses(layout.roles, cut.reads, "first"),
        "begin": [f"sums[{k}, :] = {beginning(kind, 'C')}" for k, kind in kinds],
        "measure": [*loads, *statements(cut.body, first=cut.first, total="sums[{k}, np.uint64(lane)]"), *stores],
        "join_pack": [f"sums[{j}, lane * N] = {joined(s, f'sums[{j}, lane * N]', f'sums[{j}, k]')}" for j, s in kinds],
        "take_lane": [f"sums[{j}, lane] = sums[{j}, lane * N]" for j, _ in kinds],
        "join_lanes": join_lanes(cut.sums, "sums[{}, lane]", "sums[{}, lane + half]"),
    }
    return kernel("reduce_cpu.py", reduce_constants(layout, cut), holes)


def join_lanes(kinds: Sequence[str], into: str, other: str) -> list[str]:
    """Each sum of a lane with that of another."""
    return [f"{into.format(k)} = {joined(kind, into.format(k), other.format(k))}" for k, kind in enumerate(kinds)]


def per_tensor_holes(made: PerTensor) -> dict[str, list[str]]:
    """What fills the twins kernels/per_tensor.py and per_tensor_cpu.py, but for how sums are joined."""
    cells = [
        f"cell_{r.name} = D(load_scalar(load_word(record, COL_ADDRESS + {made.roles + k}), 0))"
        for k, r in enumerate(made.cells)
    ]
    wides = [f"wide{k} = load_double(wide, entry + {k})" for k in range(made.wides)]
    store = f"store_scalar(values, tensor * {len(made.values)} + {{}}, C({{}}))"
    return {
        "wides": [*wides, *cells] if made.values else [],
        "derived": [f"{safe(s.name)} = {print_double(s.expr)}" for s in made.derives.derived] if made.derives else [],
        "values": [store.format(k, print_double(expr)) for k, expr in enumerate(made.values)],
    }


def per_tensor_constants(made: PerTensor) -> dict[str, int]:
    """The capital names of what is done once a tensor."""
    return t.CONSTANTS | {"SUMS": len(made.sums), "FIRST": made.first, "TOTALS": made.totals, "WIDES": made.wides}


def per_tensor_source(made: PerTensor) -> str:
    """The whole text of what is done once a tensor: kernels/per_tensor_cpu.py."""
    kinds = enumerate(made.sums)
    holes = per_tensor_holes(made) | {
        "begin": [f"sums[{k}, :] = {beginning(kind, 'D')}" for k, kind in kinds],
        "join_chunk": join_lanes(made.sums, "sums[{}, lane]", "load_double(partials, (first + c) * SUMS + {})"),
        "join_lanes": join_lanes(made.sums, "sums[{}, lane]", "sums[{}, lane + half]"),
    }
    return kernel("per_tensor_cpu.py", per_tensor_constants(made), holes)


def along_constants(layout: Layout, cut: Pass) -> dict[str, int]:
    """The capital names of a pass that sums along rows and columns."""
    sizes = {"ROW_SUMS": cut.sums.count("row_sum"), "COLUMN_SUMS": cut.sums.count("column_sum")}
    return reduce_constants(layout, cut) | sizes


def ranked(kinds: Iterable[str], kind: str) -> list[tuple[int, int]]:
    """(rank among those of this kind, place among all) of each."""
    return list(enumerate(k for k, found in enumerate(kinds) if found == kind))


def reduce_along_source(layout: Layout, cut: Pass) -> str:
    """The whole text of a pass that sums along rows and columns: kernels/reduce_along_cpu.py."""
    rows, columns = ranked(cut.sums, "row_sum"), ranked(cut.sums, "column_sum")
    loads = [f"{safe(layout.roles[k].variable)} = load_{k}(at_{k}, i)" for k in cut.reads] + of_column(layout, "i")
    loads += of_blocks(layout, "(first + i)")
    add = [
        *(f"across[{rank}, np.uint64(lane)] = across[{rank}, np.uint64(lane)] + sum{k}" for rank, k in rows),
        *(f"down[{rank}, warp, np.uint64(i)] = down[{rank}, warp, np.uint64(i)] + sum{k}" for rank, k in columns),
    ]
    blocks = "store_double(load_word(slots, {}), {}, np.float64({}))"
    at_row = "load_word(shape, OF_ROW_BLOCKS) + row * wide + first_column // BLOCK_COLUMNS"
    at_column = (
        "load_word(shape, OF_COLUMN_BLOCKS) + (matrix * high + first_row // BLOCK_ROWS) * width + first_column + i"
    )
    holes = {
        "scalars": scalar_loads(layout.scalars),
        "values": value_loads(cut.values),
        "addresses": addresses(layout.roles, cut.reads, "first"),
        "vectors_of_row": [*of_row(layout), *columns_begin(layout)],
        "measure": [*loads, *statements(cut.body, first=cut.first), *add],
        "join_pack": [f"across[{k}, lane * N] = across[{k}, lane * N] + across[{k}, lane * N + k]" for k, _ in rows],
        "take_lane": [f"across[{k}, lane] = across[{k}, lane * N]" for k, _ in rows],
        "join_row": [f"across[{k}, 0] = across[{k}, 0] + across[{k}, lane]" for k, _ in rows],
        "store_row": [blocks.format(2 * (cut.first + k), at_row, f"across[{rank}, 0]") for rank, k in rows],
        "join_column": [f"down[{k}, 0, i] = down[{k}, 0, i] + down[{k}, warp, i]" for k, _ in columns],
        "store_column": [blocks.format(2 * (cut.first + k), at_column, f"down[{rank}, 0, i]") for rank, k in columns],
    }
    return kernel("reduce_along_cpu.py", along_constants(layout, cut), holes)


def matrix_constants(made: PerMatrix) -> dict[str, int]:
    """The capital names of what is done once a matrix."""
    derives = made.derives or Pass((), (), (), ())
    kinds = [kind for _, kind in made.sums]
    outs = [v.kind for v in derives.vectors] + [kind_of_state(made, k) for k, _ in derives.kept]
    sizes = {
        "SCALARS": made.scalars,
        "VALUES": len(made.values),
        "ROW_SUMS": kinds.count("row_sum"),
        "COLUMN_SUMS": kinds.count("column_sum"),
        "MATRIX_SUMS": len(derives.matrix_sums),
        "SUMS_OF_ROWS": sum(s.kind == "row" for s in derives.matrix_sums),
        "SUMS_OF_COLUMNS": sum(s.kind == "column" for s in derives.matrix_sums),
        "ROWS_OUT": outs.count("row"),
        "COLUMNS_OUT": outs.count("column"),
    }
    return t.CONSTANTS | sizes


def kind_of_state(made: PerMatrix, k: int) -> str:
    return made.states[k][1].shape


def per_matrix_holes(made: PerMatrix) -> dict[str, list[str]]:
    """What fills the twins kernels/per_matrix.py and per_matrix_cpu.py, but for how matrix sums are added up."""
    derives = made.derives or Pass((), (), (), ())
    found: dict[str, list[str]] = {"scalars": scalar_loads(made.scalars), "values": value_loads(made.values)}
    steps = {"row_sum": ("wide", "at + b", "first_row"), "column_sum": ("high", "at + b * width", "first_column")}
    for kind, name in (("row_sum", "join_row"), ("column_sum", "join_column")):
        count, at, first = steps[kind]
        lines = []
        for k, of in made.sums:
            if of == kind:
                lines += ["total = np.float64(0)", f"for b in range({count}):"]
                lines.append(f"    total = total + load_double(load_word(slots, {2 * k}), {at})")
                lines.append(f"store_scalar(load_word(slots, {2 * k + 1}), {first} + i, C(total))")
        found[name] = lines
    for kind, first in (("row", "first_row"), ("column", "first_column"), ("matrix", "first_matrix")):
        i = "" if kind == "matrix" else " + i"
        outs = [
            f"store_scalar(load_word(slots, {made.slot + k}), {first}{i}, {print_expr(v.expr)})"
            for k, v in enumerate(derives.vectors)
            if v.kind == kind
        ]
        sizes = {"row": "height", "column": "width", "matrix": ""}
        outs += [
            f"store_scalar(load_word(record, COL_ADDRESS + {made.states[k][0]}), matrix * {sizes[kind]} + i, {print_expr(expr)})"
            for k, expr in derives.kept
            if kind_of_state(made, k) == kind
        ]
        own = [] if kind == "matrix" else [*line_loads(made, kind), *lines_of(derives.lines, kind)]
        found[f"finish_{kind}"] = [*own, *outs] if outs else []
    found["matrix"] = lines_of(derives.lines, "matrix")
    return found


def line_loads(made: PerMatrix, kind: str) -> list[str]:
    """What a row or column has: its states, and sums along it."""
    if kind == "matrix":
        return []
    size, first = {"row": ("height", "first_row"), "column": ("width", "first_column")}[kind]
    states = [
        f"{safe(role.name)} = load_scalar(load_word(record, COL_ADDRESS + {place}), matrix * {size} + i)"
        for place, role in made.states
        if role.shape == kind
    ]
    return states + [
        f"along{k} = load_scalar(load_word(slots, {2 * k + 1}), {first} + i)" for k in made.sums_along(kind)
    ]


def lines_of(lines: Iterable[tuple[str, Assign]], kind: str) -> list[str]:
    """The statements of one kind."""
    return [f"{safe(s.name)} = {print_expr(s.expr)}" for of, s in lines if of == kind]


def per_matrix_source(made: PerMatrix) -> str:
    """The whole text of what is done once a matrix: kernels/per_matrix_cpu.py."""
    sums = made.derives.matrix_sums if made.derives else ()
    holes = per_matrix_holes(made) | {
        "take_sums": [f"matrix_sum{k} = C(lanes[{k}, 0])" for k in range(len(sums))],
    }
    for kind in ("row", "column"):
        adds = [
            f"lanes[{k}, lane] = lanes[{k}, lane] + np.float64({print_expr(s.expr)})"
            for k, s in enumerate(sums)
            if s.kind == kind
        ]
        holes[f"sum_{kind}"] = (
            [*line_loads(made, kind), *lines_of(made.lines_before(kind), kind), *adds] if adds else []
        )
    return kernel("per_matrix_cpu.py", matrix_constants(made), holes)
