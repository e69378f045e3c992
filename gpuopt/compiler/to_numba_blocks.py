"""Program -> typed Python text of a walk over blocks, for `numba.njit`: the statements that fill kernels/blocks_cpu.py; and what
the passes that sum need of blocks, for a CPU and a GPU.

Prints only; the names the text calls are bound by the backends. Knows no rule and no format.
"""

from __future__ import annotations

from gpuopt.compiler.names import safe
from gpuopt.compiler.parts import Layout, Role
from gpuopt.compiler.program import Program
from gpuopt.compiler.template import kernel
from gpuopt.compiler.to_cuda_blocks import coded
from gpuopt.compiler.to_numba import (
    addresses,
    cell_stores,
    drawn,
    of_column,
    random_bits,
    scalar_loads,
    segments,
    statements,
    step_count,
    value_loads,
    walk_constants,
)
from gpuopt.compiler.to_numba_rows import group_addresses, group_on_cpu
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch import table as t


def part_of(program: Program) -> int:
    """Elements that have one number of every array of blocks together."""
    return min([r.per for r in program.blocked if not r.packed], default=t.GROUP)


def block_address(place: int, role: Role, row: str, column: str) -> str:
    """Where the number of an element lies, by its row and column."""
    size, wide = STORAGES[role.storage].itemsize, f"(block_width + {role.per - 1}) // {role.per}"
    return f"load_word(record, COL_ADDRESS + {place}) + ({row} * ({wide}) + {column} // {role.per}) * {size}"


def cpu_source(program: Program) -> str:
    """The whole text of the CPU kernel of a program whose states are kept in blocks."""
    roles, late, layout = program.roles, coded(program), program.layout_of(program.update)
    packed = [(k, r) for k, r in enumerate(program.blocked) if r.packed]
    single = [(k, r) for k, r in enumerate(program.blocked) if not r.packed]
    own = {r.name: place for place, (_, r) in enumerate(packed)}
    first, every = program.first_blocked, range(len(roles))
    holes = {
        "scalars": scalar_loads(len(program.row)),
        "values": value_loads(program.update.values),
        "store_cells": cell_stores(program, "record"),
        "pick": group_on_cpu() if program.picked else [],
        "addresses": (group_addresses(roles, every) if program.picked else addresses(roles, every, "begin"))
        + [f"block_{k} = {block_address(first + k, r, 'block_row', 'first')}" for k, r in enumerate(program.blocked)],
        "step": step_count(program),
        "drawn": [
            *drawn(program, "begin"),
            f"together = {'run == 0 or begin % run + length <= run' if program.sharded else 'True'}",
        ],
        "drawn_alone": drawn(program, "(begin + k)"),
        "unpack": [line for k, r in packed if k in program.update.blocked for line in unpacked(k, own[r.name])],
        "load_blocks": [
            f"{safe(r.variable)} = load_block_{k}(block_{k}, part // {r.per})"
            for k, r in single
            if k in program.update.blocked
        ],
        "row": segments(layout),
        "load": [
            *(f"{safe(r.variable)} = load_{k}(at_{k}, i)" for k, r in enumerate(roles)),
            *(f"{safe(r.variable)} = load_nibble(nibbles, {own[r.name]} * GROUP + i)" for _, r in packed),
            *(f"w{s} = load_bits(bits, {s} * ROOM + i + ahead)" for s in range(program.streams)),
            *random_bits(program),
            *of_column(layout, "i"),
        ],
        "update": statements(program.update.body),
        "store": [
            *(
                f"store_{k}(at_{k}, i, {safe(r.variable)})"
                for k, r in enumerate(roles)
                if r.written and r.name not in late
            ),
            *(f"store_kept(kept, {k} * GROUP + i, {safe(name)})" for k, name in enumerate(program.kept)),
            *(f"most{k} = larger(most{k}, {e.kind}_order({safe(e.variable)}))" for k, e in enumerate(program.extremes)),
        ],
        "begin_extremes": [
            f"most{k} = {e.kind}_order(C({'-' if e.kind == 'block_max' else ''}1e999))"
            for k, e in enumerate(program.extremes)
        ],
        "keep_extremes": [f"store_term(terms, {k} * GROUP + part, most{k})" for k in range(len(program.extremes))],
        "extremes": [line for k in range(len(program.extremes)) for line in joined(program, k)],
        "take_extremes": [
            f"extreme{k} = {e.kind}_value(load_term(terms, {k} * GROUP + part // {e.block} * {e.block}))"
            for k, e in enumerate(program.extremes)
        ],
        "encode": [
            *(f"{safe(name)} = load_kept(kept, {k} * GROUP + i)" for k, name in enumerate(program.kept)),
            *(f"w{s} = load_bits(bits, {s} * ROOM + i + ahead)" for s in range(program.streams)),
            *random_bits(program),
            *statements(program.behind),
            *(f"store_{k}(at_{k}, i, {safe(r.variable)})" for k, r in enumerate(roles) if r.written and r.name in late),
            *(f"store_nibble(nibbles, {own[r.name]} * GROUP + i, {safe(r.variable)})" for _, r in packed if r.written),
        ],
        "store_blocks": [
            line
            for k, r in single
            if r.written
            for line in (
                f"if part % {r.per} == 0:",
                f"    store_block_{k}(block_{k}, part // {r.per}, {safe(r.variable)})",
            )
        ],
        "pack": [line for k, r in packed if r.written for line in packed_again(k, own[r.name])],
    }
    sizes = {"KEPT": len(program.kept), "EXTREMES": len(program.extremes), "PART": part_of(program)}
    sizes["ROOM"] = t.GROUP + 2 * program.per_call
    rest = sizes["KEPT"] + sizes["EXTREMES"] + len(packed) + 1
    sizes["SCRATCH"] = program.streams * sizes["ROOM"] + rest * t.GROUP
    return kernel("blocks_cpu.py", walk_constants(program) | sizes, holes)


def joined(program: Program, k: int) -> list[str]:
    """The largest of the ordered terms of each block's parts, in the place of its first."""
    block = program.extremes[k].block
    if block == part_of(program):
        return []
    return [
        f"for part in range(0, length, {block}):",
        f"    most = load_term(terms, {k} * GROUP + part)",
        f"    for i in range(part + PART, min(part + {block}, length), PART):",
        f"        most = larger(most, load_term(terms, {k} * GROUP + i))",
        f"    store_term(terms, {k} * GROUP + part, most)",
    ]


def unpacked(k: int, place: int) -> list[str]:
    """Codes of four bits, each for itself."""
    return [
        "for i in range((length + 1) // 2):",
        f"    both = load_block_{k}(block_{k}, i)",
        f"    store_nibble(nibbles, {place} * GROUP + 2 * i, iand(both, U(15)))",
        f"    store_nibble(nibbles, {place} * GROUP + 2 * i + 1, ishr(both, U(4)))",
    ]


def packed_again(k: int, place: int) -> list[str]:
    """Two codes a byte; the last one of an odd number is alone."""
    low = f"iand(load_nibble(nibbles, {place} * GROUP + 2 * i), U(15))"
    high = f"ishl(load_nibble(nibbles, {place} * GROUP + 2 * i + 1), U(4))"
    return [
        "if length % 2 != 0:",
        f"    store_nibble(nibbles, {place} * GROUP + length, U(0))",
        "for i in range((length + 1) // 2):",
        f"    store_block_{k}(block_{k}, i, ior({low}, {high}))",
    ]


def of_blocks(layout: Layout, element: str) -> list[str]:
    """The numbers of the blocks of one element, for passes that sum; `record`: the tensor's record of the table."""
    if not layout.blocked:
        return []
    lines = [
        "block_width = load_word(record, COL_WIDTH)",
        f"block_row = quotient({element}, block_width)",
        f"in_row = {element} - block_row * block_width",
    ]
    for k, (place, r) in enumerate(layout.blocked):
        at = f"block_row * ((block_width + {r.per - 1}) // {r.per}) + in_row // {r.per}"
        found = f"load_block_{k}(load_word(record, COL_ADDRESS + {place}), {at})"
        if r.packed:
            found = f"iand(ishr({found}, U((in_row & 1) * 4)), U(15))"
        lines.append(f"{safe(r.variable)} = {found}")
    return lines
