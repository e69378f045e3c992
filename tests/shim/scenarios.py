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
from shim.arena import Arena, Case
from shim.backend import Backend, installed
from shim.build import prefetch
from shim.variants import EVERYTHING, richest

SIZES = [0, 1, 2, 3, 5, 8, 31, 33, 64, 257, 0, 1023, 2047, 2049, 4097, 9001, 2, 100]
GROUPS = ({"lr": 0.01}, {"lr": 0.02}, {"lr": 0.03})
# name -> (text of the kernels, what stands there instead)
EDITS = {
    "tail-one-too-far": ("i < count; i += unit)", "i <= count; i += unit)"),
    "head-of-short-tensors": ("lane < head && lane < numel)", "lane < head)"),
    "packs-unaligned": ("record[COL_ALIGNED] & 1 ? count", "true ? count"),
    "next-row": ("record[COL_ROW] * U::SCALARS", "(record[COL_ROW] + 1) * U::SCALARS"),
    "tile-too-many": ("tile < tile_count;", "tile <= tile_count;"),
    "sums-over-the-end": ("if (aligned && i + N <= count)", "if (aligned)"),
    "sums-unaligned": ("record[COL_ALIGNED] >> (1 + role) & 1", "true"),
    "partials-too-many": ("c < d.chunk_count;", "c <= d.chunk_count;"),
    "row-too-many": ("r < d.row_count;", "r <= d.row_count;"),
}
BARRIER = "__syncthreads();"


def edited(text: str, edit: str) -> str:
    """The kernels' text with a mistake in it: one of EDITS, or `barrier-K`, the K-th barrier removed."""
    if edit.startswith("barrier-"):
        parts = text.split(BARRIER)
        k = int(edit.removeprefix("barrier-"))
        return BARRIER.join(parts[: k + 1]) + BARRIER.join(["", *parts[k + 1 :]]).removeprefix(BARRIER)
    old, new = EDITS[edit]
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
        for r, role in enumerate(("p", "g", "mask", *sorted(states)))
    }


def updates(shim: Backend, dtype: str, names: Sequence[str]) -> None:
    """These rules with every option, on arrays in packs and one by one, rows by value and by pointer; the last of them once
    more with states that are rounded at random.
    """
    cases = [Case(name, richest(name) | EVERYTHING, dtype, SIZES, mask=True, groups=GROUPS) for name in names]
    cases.append(replace(cases[-1], state_format="bfloat16"))
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


def main(name: str, sanitizer: str, edit: str = "") -> None:
    scenario, _, dtype = name.partition("-")
    text = edited(to_cuda.headers(), edit) if edit else to_cuda.headers()
    with installed(sanitizer) as shim, mock.patch.object(to_cuda, "headers", lambda: text):
        shim.runtime.parallel = True if sanitizer == "thread" else None
        if scenario == "updates":
            updates(shim, dtype, ("adamw",) if edit else rules.NAMES)
        else:
            decisions(shim, dtype)
    print("finished")


if __name__ == "__main__":
    main(*sys.argv[1:])
