"""Program -> typed Python text of a walk over blocks, for `numba.cuda`: the statements that fill kernels/blocks.py.

Prints only; the backend numba-cuda binds the names. What is done to one element is two functions of the device, called for each of
the EACH elements of a lane: the update, and the codes once the extremes are known. Knows no rule and no format.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpuopt.compiler.names import safe
from gpuopt.compiler.parts import Role
from gpuopt.compiler.program import Program
from gpuopt.compiler.template import kernel
from gpuopt.compiler.to_cuda_blocks import coded
from gpuopt.compiler.to_numba import (
    cell_stores,
    drawn,
    of_element,
    random_bits,
    scalar_loads,
    scalar_names,
    statements,
    step_count,
    value_loads,
    walk_constants,
)
from gpuopt.compiler.to_numba_blocks import block_address
from gpuopt.compiler.to_numba_cuda import per_access
from gpuopt.compiler.to_numba_rows import first_element, in_blocks_on_gpu
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch import table as t

EVERY = range(t.EACH)


def cuda_source(program: Program) -> str:
    """The whole text of the GPU kernel."""
    late = coded(program)
    early = [(k, r) for k, r in enumerate(program.roles) if r.written and r.name not in late]
    codes = [(k, r) for k, r in enumerate(program.roles) if r.written and r.name in late]
    names = scalar_names(program)
    shared = [*names, *(f"v{k}" for k in range(len(program.update.values)))]
    shared += ["shape", "slots"] * bool(program.layout_of(program.update).slots)
    holes = {
        "functions": [*updater(program, shared, early), "", "", *encoder(program)],
        "scalars_by_value": [f"{name} = rows[{k}]" for k, name in enumerate(names)],
        "scalars_by_address": scalar_loads_from_device(len(names)),
        "values": value_loads(program.update.values),
        "store_cells": cell_stores(program, "record"),
        "step": step_count(program),
        "pick": in_blocks_on_gpu() if program.picked else [],
        "begin": begin(program),
        "load_blocks": [line for k, r in enumerate(program.blocked) for line in block_loads(program, k, r)],
        "load_packs": [*packs(program, enumerate(program.roles), "load"), *words(program, True)],
        "load_single": [*single_loads(program), *words(program, False)],
        "update": update(program, shared, early),
        "store_packs": packs(program, early, "store"),
        "store_single": single_stores(early),
        "join_lanes": [line for k in range(len(program.extremes)) for line in joined(program, k)],
        "encode": encode(program),
        "store_code_packs": packs(program, codes, "store"),
        "store_single_codes": single_stores(codes),
        "store_blocks": [
            line for k, r in enumerate(program.blocked) if r.written for line in block_stores(program, k, r)
        ],
    }
    return kernel("blocks.py", walk_constants(program), holes)


def scalar_loads_from_device(count: int) -> list[str]:
    """The scalars of the row."""
    return [line.replace("(rows,", "(device_rows,") for line in scalar_loads(count)]


def suffixed(names: Iterable[str], k: int) -> list[str]:
    return [f"{name}_{k}" for name in names]


def given(program: Program) -> list[str]:
    """What the first function takes of an element: its arrays, those of blocks, and random bits."""
    arrays = [safe(r.variable) for r in (*program.roles, *program.blocked)]
    return [*arrays, *(f"w{s}" for s in range(program.streams))]


def left(program: Program, early: Sequence[tuple[int, Role]]) -> list[str]:
    """What it returns: arrays that are written at once, what is kept, and terms of extremes."""
    names = [safe(r.variable) for _, r in early] + [safe(name) for name in program.kept]
    return names + [safe(e.variable) for e in program.extremes]


def updater(program: Program, shared: Sequence[str], early: Sequence[tuple[int, Role]]) -> list[str]:
    """The update of one element as a function of the device."""
    lines = [
        *random_bits(program),
        *of_element(program.layout_of(program.update), "element"),
        *statements(program.update.body),
        f"return ({', '.join(left(program, early))},)",
    ]
    arguments = ", ".join(["element", *given(program), *shared])
    return ["@device", f"def update({arguments}):", *("    " + line for line in lines)]


def after(program: Program) -> list[str]:
    """What the second function returns: the codes of an element and of its blocks."""
    late = coded(program)
    return [safe(r.variable) for r in (*program.roles, *program.blocked) if r.written and r.name in late]


def encoder(program: Program) -> list[str]:
    """The codes of one element as a function of the device."""
    if not program.behind:
        return []
    kept = [safe(name) for name in program.kept]
    arguments = [*kept, *(f"extreme{k}" for k in range(len(program.extremes)))]
    arguments += [f"w{s}" for s in range(program.streams)]
    lines = [*random_bits(program), *statements(program.behind), f"return ({', '.join(after(program))},)"]
    return ["@device", f"def encode({', '.join(arguments)}):", *("    " + line for line in lines)]


def begin(program: Program) -> list[str]:
    """Values of lanes without elements."""
    lines = [f"extreme{k} = C({'-' if e.kind == 'block_max' else ''}1e999)" for k, e in enumerate(program.extremes)]
    lines += [f"{safe(name)}_{k} = C(0)" for name in program.kept for k in EVERY]
    return lines + [f"w{s}_{k} = U(0)" for s in range(program.streams) for k in EVERY]


def zero(role: Role) -> str:
    return "U(0)" if role.code else "C(0)"


def place(program: Program, k: int, role: Role) -> str:
    return block_address(program.first_blocked + k, role, "row", "column")


def block_loads(program: Program, k: int, role: Role) -> list[str]:
    """One number for all elements of a lane, or EACH codes of four bits."""
    if k not in program.update.blocked:
        return [f"{safe(role.variable)}_{j} = {zero(role)}" for j in EVERY]
    name, lines = safe(role.variable), [f"block_at = {place(program, k, role)}"]
    if not role.packed:
        return [*lines, f"{name}_0 = load_block_{k}(block_at, 0)", *(f"{name}_{j} = {name}_0" for j in EVERY[1:])]
    lines += ["if whole:", "    both = load_bits(block_at, 0)", "else:", "    both = U(0)"]
    for j in range(t.EACH // 2):
        lines += [
            f"    if {2 * j} < count:",
            f"        both = ior(both, ishl(load_block_{k}(block_at, {j}), U({8 * j})))",
        ]
    return lines + [f"{name}_{j} = iand(ishr(both, U({4 * j})), U(15))" for j in EVERY]


def block_stores(program: Program, k: int, role: Role) -> list[str]:
    """The number of a block by its first lane, or EACH codes of four bits."""
    name, lines = safe(role.variable), [f"block_at = {place(program, k, role)}"]
    if not role.packed:
        return [*lines, f"if column % {role.per} == 0:", f"    store_block_{k}(block_at, 0, {name}_0)"]
    lines.append("both = U(0)")
    for j in EVERY:
        lines += [f"if {j} < count:", f"    both = ior(both, ishl(iand({name}_{j}, U(15)), U({4 * j})))"]
    lines += ["if whole:", "    store_bits(block_at, 0, both)", "else:"]
    for j in range(t.EACH // 2):
        lines += [
            f"    if {2 * j} < count:",
            f"        store_block_{k}(block_at, {j}, iand(ishr(both, U({8 * j})), U(255)))",
        ]
    return lines


def packs(program: Program, roles: Iterable[tuple[int, Role]], what: str) -> list[str]:
    """The elements of a lane in accesses of up to 16 bytes."""
    lines = []
    for k, role in roles:
        width, name = per_access(role, program.lanes), safe(role.variable)
        for first in range(0, t.EACH, width):
            cells = ", ".join(suffixed([name], first + j)[0] for j in range(width))
            where = first_element(program.picked, k)
            address = f"load_word(at, {k}) + ({where} + {first}) * {STORAGES[role.storage].itemsize}"
            if what == "load":
                lines.append(f"{cells}{',' if width == 1 else ''} = load_pack_{k}({address})")
            else:
                lines.append(f"store_pack_{k}({address}, ({cells},))")
    return lines


def single_loads(program: Program) -> list[str]:
    """The elements of a lane one by one, 0 where there are none."""
    lines = []
    for k, role in enumerate(program.roles):
        for j in EVERY:
            name = f"{safe(role.variable)}_{j}"
            lines += [
                f"{name} = {zero(role)}",
                f"if {j} < count:",
                f"    {name} = load_{k}(load_word(at, {k}), {first_element(program.picked, k)} + {j})",
            ]
    return lines


def single_stores(roles: Iterable[tuple[int, Role]]) -> list[str]:
    """The elements of a lane one by one."""
    lines = []
    for k, role in roles:
        for j in EVERY:
            store = f"store_{k}(load_word(at, {k}), element + {j}, {safe(role.variable)}_{j})"
            lines += [f"if {j} < count:", f"    {store}"]
    return lines


def words(program: Program, whole: bool) -> list[str]:
    """The random bits of the elements of a lane."""
    lines = drawn(program, "element") if program.draws and whole else []
    for s in range(program.streams):
        if whole:
            for first in range(0, t.EACH, program.per_call):
                cells = ", ".join(f"w{s}_{first + j}" for j in range(program.per_call))
                lines.append(f"{cells} = philox((drawn + {first}) // PER_CALL, {s}, step, tensor, seed)")
            continue
        for j in EVERY:
            lines += drawn(program, f"(element + {j})")
            lines.append(f"w{s}_{j} = chosen(philox(drawn // PER_CALL, {s}, step, tensor, seed), drawn % PER_CALL)")
    return lines


def update(program: Program, shared: Sequence[str], early: Sequence[tuple[int, Role]]) -> list[str]:
    """The update of all elements of a lane."""
    lines = []
    for j in EVERY:
        arguments = [f"element + {j}", *suffixed(given(program), j), *shared]
        lines.append(f"({', '.join(suffixed(left(program, early), j))},) = update({', '.join(arguments)})")
        if program.extremes:
            lines.append(f"if {j} < count:")
        for k, e in enumerate(program.extremes):
            joins = e.kind.replace("block_max", "maximum").replace("block_min", "minimum")
            lines.append(f"    extreme{k} = {joins}(extreme{k}, {safe(e.variable)}_{j})")
    return lines


def joined(program: Program, k: int) -> list[str]:
    """An extreme of all lanes of a block; +0 for both zeros, and one NaN for all."""
    of = program.extremes[k]
    joins = of.kind.replace("block_max", "maximum").replace("block_min", "minimum")
    lines, mask = [], 1
    while mask < of.block // t.EACH:
        lines.append(f"extreme{k} = {joins}(extreme{k}, exchange(extreme{k}, {mask}))")
        mask *= 2
    nan = f"bits_float(U({0x7FC00000}))"
    return [*lines, f"extreme{k} = select(extreme{k} == extreme{k}, extreme{k} + C(0), {nan})"]


def encode(program: Program) -> list[str]:
    """The codes of all elements of a lane."""
    if not program.behind:
        return ["pass"]
    shared = [f"extreme{k}" for k in range(len(program.extremes))]
    lines = []
    for j in EVERY:
        kept = suffixed([safe(name) for name in program.kept], j)
        arguments = [*kept, *shared, *suffixed([f"w{s}" for s in range(program.streams)], j)]
        lines.append(f"({', '.join(suffixed(after(program), j))},) = encode({', '.join(arguments)})")
    return lines
