"""Where elements lie in a walk over some rows of each tensor, as typed Python text: what kernels/rows.cuh is for CUDA C.

Used by the printers of the walks for Numba, on a CPU and on a GPU. Prints only, knows no rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpuopt.compiler.parts import GRADIENT, Role
from gpuopt.formats.dtypes import STORAGES

AHEAD = 12  # rows from the one that a CPU updates to the one whose memory it asks for
LINE = 64  # bytes of a cache line

OF_ROW = [
    "row = load_word(load_word(shape, OF_INDICES), counted_row)",
    "gradient = element",
    "element = row * width + column",
    "if load_word(shape, OF_COMPACT) == 0:",
    "    gradient = element",
]
FIND_ROW = [
    "width = load_word(record, COL_WIDTH)",
    "counted_row = quotient(element, width)",
    "column = element - counted_row * width",
]
INSIDE = "row >= 0 and row < load_word(shape, OF_HEIGHT)"


def first_element(picked: bool, role: int) -> str:
    """The variable that says where the elements of a role begin."""
    return "gradient" if picked and role == GRADIENT else "element"


def on_gpu(lines: Sequence[str]) -> list[str]:
    """Statements of the element, or pack, that the walk counts as `element`: on those that lie there, if there is such a row."""
    return [*FIND_ROW, *OF_ROW, f"if {INSIDE}:", *("    " + line for line in lines)]


def in_blocks_on_gpu() -> list[str]:
    """What a lane of a walk over blocks is at: nothing where there is no such row."""
    lines = ["counted_row = row", "width = block_width", *OF_ROW]
    return [*lines, f"if not ({INSIDE}):", "    count = 0", "    whole = False"]


def tensor_on_cpu() -> list[str]:
    """What is the same for all rows of a tensor."""
    return [
        "width = load_word(record, COL_WIDTH)",
        "indices = load_word(shape, OF_INDICES)",
        "compact = load_word(shape, OF_COMPACT)",
        "last_row = quotient(numel, width) - 1",
    ]


def row_on_cpu(roles: Sequence[Role]) -> list[str]:
    """A stretch of elements within one row: its bounds, where it lies, and a request for the memory of a later row."""
    sizes = [STORAGES[r.storage].itemsize for r in roles]
    lines = [
        "counted_row = quotient(element, width)",
        "column = element - counted_row * width",
        "stop = min(stop, start + width - column)",
        "gradient = element",
        "element = load_word(indices, counted_row) * width + column",
        "if compact == 0:",
        "    gradient = element",
        f"later = load_word(indices, min(counted_row + {AHEAD}, last_row)) * width",
    ]
    for k, size in enumerate(sizes):
        base = f"load_word(record, COL_ADDRESS + {k})"
        lines.append(f"at_{k} = {base} + ({first_element(True, k)} - start) * {size}")
        ask = [
            f"prefetch({base} + later * {size})",
            f"prefetch({base} + later * {size} + min({LINE}, width * {size} - 1))",
        ]
        lines += ["if compact == 0:", *("    " + line for line in ask)] if k == GRADIENT else ask
    return lines


def group_on_cpu() -> list[str]:
    """The row of the tensor that a walk over blocks calls its block_row-th."""
    return ["block_row = load_word(load_word(shape, OF_INDICES), block_row)"]


def group_addresses(roles: Sequence[Role], which: Iterable[int]) -> list[str]:
    """Of each role, where the elements of a group of a row lie."""
    lines = ["gradient = begin if load_word(shape, OF_COMPACT) == 0 else counted"]
    for k in which:
        first, size = "gradient" if k == GRADIENT else "begin", STORAGES[roles[k].storage].itemsize
        lines.append(f"at_{k} = load_word(record, COL_ADDRESS + {k}) + {first} * {size}")
    return lines
