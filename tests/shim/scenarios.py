"""Whole steps under a sanitizer: `python scenarios.py NAME SANITIZER [EDIT]`, run by tests/test_sanitizers.py.

The sanitizer's runtime must be preloaded. EDIT names a mistake to make in the kernels' text first, to see it reported.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from unittest import mock

os.environ.pop("LD_PRELOAD", None)  # for this process, not for the compilers it starts
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from gpuopt import rules
from gpuopt.compiler import to_cuda
from gpuopt.formats.dtypes import PARAMETER_DTYPES
from gpuopt.rules.options import BESIDE
from gpuopt.source import program
from shim.arena import Arena, Case
from shim.backend import Backend, installed
from shim.build import prefetch
from shim.variants import EVERYTHING, richest
from summing_rules import HYPER, RULES

SIZES = [0, 1, 2, 3, 5, 8, 31, 33, 64, 257, 0, 1023, 2047, 2049, 4097, 9001, 2, 100]
GROUPS = ({"lr": 0.01}, {"lr": 0.02}, {"lr": 0.03})
# name -> (text of the kernels, what stands there instead, the scenario that finds it)
EDITS = {
    "tail-one-too-far": ("i < count; i += unit)", "i <= count; i += unit)", "updates"),
    "head-of-short-tensors": ("lane < head && lane < numel)", "lane < head)", "updates"),
    "packs-unaligned": ("record[COL_ALIGNED] & 1 ? count", "true ? count", "updates"),
    "next-row": ("record[COL_ROW] * U::SCALARS", "(record[COL_ROW] + 1) * U::SCALARS", "updates"),
    "tile-too-many": ("tile < tile_count;", "tile <= tile_count;", "updates"),
    "sums-over-the-end": ("if (aligned && i + N <= count)", "if (aligned)", "decisions"),
    "sums-unaligned": ("(record[COL_ALIGNED] & M::ALIGNED) == M::ALIGNED;", "true;", "decisions"),
    "chunk-too-many": ("chunk < chunk_count;", "chunk <= chunk_count;", "decisions"),
    "partials-too-many": ("c < end;", "c <= end;", "decisions"),
    "tensor-too-many": ("tensor < tensor_count;", "tensor <= tensor_count;", "decisions"),
    "sum-too-many": ("k < sums;", "k <= sums;", "decisions"),
    "total-too-many": ("t < part[1]; t += THREADS) *", "t <= part[1]; t += THREADS) *", "decisions"),
    "row-too-many": ("r < d.row_count;", "r <= d.row_count;", "decisions"),
    "lines-unaligned": ("(record[COL_ALIGNED] & M::ALIGNED) == M::ALIGNED && width", "width", "lines"),
    "width-no-whole-pack": ("== M::ALIGNED && width % N == 0", "== M::ALIGNED", "lines"),
    "lines-over-the-end": ("aligned && c + N <= column_count", "aligned", "lines"),
    "block-too-many": ("block < block_count;", "block <= block_count;", "lines"),
    "matrix-too-many": ("m < matrix_count;", "m <= matrix_count;", "lines"),
    "block-of-a-row-too-many": ("b < wide;", "b <= wide;", "lines"),
    "lane-too-far": ("k < count ? from[k] : T{}", "k <= count ? from[k] : T{}", "blocks"),
    "lanes-unaligned": ("aligned && count == EACH, s)", "count == EACH, s)", "blocks"),
    "code-too-many": ("if (k < count) from[k] = raw[k];", "if (k <= count) from[k] = raw[k];", "blocks"),
    "block-of-a-column-too-many": ("b < high;", "b <= high;", "lines"),
}
BARRIER = "__syncthreads();"
# those of the kernels in their order, each with the scenario that finds it missing
BARRIERS = {
    "the tree of a chunk": "decisions",
    "before the next chunk": "decisions",
    "lanes of a row": "lines",
    "before columns take the place of rows": "lines",
    "warps of a column": "lines",
    "before the next block": "lines",
    "the tree of a tensor": "decisions",
    "before the next tensor": "decisions",
    "before the next matrix": "lines",
    "the tree of a matrix": "lines",
    "before the sum over a matrix is read": "lines",
    "before all tensors are joined": "decisions",
    "the tree of all tensors": "decisions",
    "before the sum over all is read": "decisions",
}


def edited(text: str, edit: str) -> str:
    """The kernels' text with a mistake in it: one of EDITS, or one of BARRIERS removed."""
    if edit in BARRIERS:
        parts = text.split(BARRIER)
        assert len(parts) == len(BARRIERS) + 1, "the kernels have other barriers"
        k = list(BARRIERS).index(edit)
        return BARRIER.join(parts[: k + 1]) + BARRIER.join(["", *parts[k + 1 :]]).removeprefix(BARRIER)
    old, new, _ = EDITS[edit]
    assert text.count(old) == 1, f"{edit}: the kernels no longer say {old!r}"
    return text.replace(old, new)


@contextmanager
def poisoned(arenas: Mapping[str, Arena]) -> Iterator[None]:
    """AddressSanitizer reports every access between the arrays."""
    runtime, gaps = ctypes.CDLL(None), []
    if not hasattr(runtime, "__asan_poison_memory_region"):
        yield
        return
    for arena in arenas.values():
        ends = [0, *(end for _, end in arena.spans)]
        begins = [*(begin for begin, _ in arena.spans), arena.memory.size]
        base = arena.memory.ctypes.data
        gaps += [(base + end, begin - end) for end, begin in zip(ends, begins, strict=True)]
    arguments = [(ctypes.c_void_p(at), ctypes.c_size_t(size)) for at, size in gaps]
    for pair in arguments:
        runtime.__asan_poison_memory_region(*pair)
    yield
    for pair in arguments:
        runtime.__asan_unpoison_memory_region(*pair)


def steps(case: Case, backend: str) -> None:
    """Two steps of a case, as Case.run, with everything between the arrays forbidden where AddressSanitizer can see it."""
    arenas = {role: arena.copy() for role, arena in case.start.items()}
    made = case.optimizer(arenas, backend)
    count = len(case.groups)
    grads = [arenas["g"].arrays[k::count] for k in range(count)]
    for _ in range(2):
        with poisoned(arenas):
            made.step(grads)


def places(seed: int, count: int) -> dict[str, list[int]]:
    """Offsets: all alike, so that packs are walked behind a head (seed 0), or each role its own."""
    states = {s.name for name in rules.NAMES for s in rules.get(name).states}
    return {
        role: [(k * (1 + seed * r)) % 16 for k in range(count)]
        for r, role in enumerate(("p", "g", *BESIDE, *sorted(states)))
    }


def one_of_each_walk() -> list[str]:
    """The first rule of those that go through so many arrays, with or without sums, numbers of rows, and states of one number: they
    differ in arithmetic, which touches no memory, so that another one has no place where a sanitizer could see more.
    """
    found = dict[tuple[int, bool, bool, bool], str]()
    for name in rules.NAMES:
        made = program(name, mask=True, bounds=True, **(richest(name) | EVERYTHING))
        kind = len(made.roles), bool(made.cuts), bool(made.update.vectors), bool(made.signature.cells)
        found.setdefault(kind, name)
    return list(found.values())


def updates(shim: Backend, dtype: str, names: Sequence[str]) -> None:
    """These rules with every option, on arrays in packs and one by one, rows by value and by pointer; Adam once more with states
    that are rounded at random.
    """
    cases = [
        Case(name, richest(name) | EVERYTHING, dtype, SIZES, mask=True, bounds=True, groups=GROUPS)
        for name in (*names, "adam")
    ]
    cases[-1] = replace(cases[-1], state_format="bfloat16")
    for case in cases:
        prefetch(to_cuda.update_source(case.program), "gpuopt_update", "address")
    for case, seed in product(cases, (0, 1)):
        for shim.unit, shim.tile_size, shim.blocks, shim.device_rows in ((32, 2048, 2, False), (256, 4096, 1, True)):
            steps(replace(case, offsets=places(seed, len(SIZES))), "shim")


def decisions(shim: Backend, dtype: str) -> None:
    """Sums of several chunks a block, decisions, and the updates that wait for them."""
    options = {"max_grad_norm": 1.0, "skip_nonfinite": True}
    sizes = [*SIZES, 20_000]
    case = Case("adamw", richest("adamw"), dtype, sizes, groups=GROUPS, odd=0, options=options)
    for seed in (0, 1):
        steps(replace(case, offsets=places(seed, len(sizes))), "shim-device")


def sums(shim: Backend, dtype: str, names: Sequence[str] = tuple(RULES)) -> None:
    """Rules that ask for sums: more tensors than blocks, and a tensor of several chunks, or of several blocks as a matrix."""
    for name in names:
        case = Case(RULES[name], HYPER[name], dtype, [*SIZES, 20_000, 72_000], groups=GROUPS, odd=0)
        steps(replace(case, offsets=places(1, len(case.sizes))), "shim-device")


def lines(shim: Backend, dtype: str) -> None:
    """The one of them that sums along rows and columns."""
    sums(shim, dtype, ["lined"])


def blocks(shim: Backend, dtype: str) -> None:
    """States in blocks of rows: whole and broken blocks and lanes, and a rule that sums before."""
    shapes: list[tuple[int, ...]] = [(16, 256), (13, 320), (3, 1367), (9, 8, 64)]
    kept = {"param_format": "split8"} if dtype == "bfloat16" else {}
    for name, state_format in (("adamw", "int4"), ("adamw", "int8"), ("lamb", "float8")):
        case = Case(name, richest(name), dtype, shapes, groups=GROUPS, odd=0, state_format=state_format, options=kept)
        roles = [r.name for r in (*case.program.roles, *case.program.blocked)]
        for seed in (0, 1):
            moved = {r: [seed * (k + j) % 16 for j in range(len(shapes))] for k, r in enumerate(roles)}
            steps(replace(case, offsets=moved), "shim-device")


def main(name: str, sanitizer: str, edit: str = "") -> None:
    scenario, _, dtype = name.partition("-")
    text = edited(to_cuda.headers(), edit) if edit else to_cuda.headers()
    with installed(sanitizer) as shim, mock.patch.object(to_cuda, "headers", lambda: text):
        shim.runtime.parallel = True if sanitizer == "thread" else None
        if scenario == "updates":
            of = PARAMETER_DTYPES.index(dtype)  # each rule in one of the dtypes, whose packs the walk takes all alike
            updates(shim, dtype, ("adamw",) if edit else one_of_each_walk()[of :: len(PARAMETER_DTYPES)])
        else:
            {"decisions": decisions, "sums": sums, "lines": lines, "blocks": blocks}[scenario](shim, dtype)
    print("finished")


if __name__ == "__main__":
    main(*sys.argv[1:])
