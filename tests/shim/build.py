"""Compiles generated CUDA C with g++ and shim.h into a function that Python can launch.

Called by shim.backend and by tests that compile a text of their own. Libraries are kept by content for as long as the run of
pytest lives (see shim.shared), and compiled in parallel where they are announced by `prefetch`. Knows nothing of optimizers.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gpuopt.compiler.program import Program
from gpuopt.source import parts
from shim.shared import folder, once

HEADER = Path(__file__).parent / "shim.h"
FLAGS = ("-std=c++20", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-pthread", "-Wall", "-Wextra")
# Each library has shared memory of its own: by default all of a process would share one array of each name, of the first one's
# size.
FLAGS += ("-fno-gnu-unique",)
FLAGS += ("-Wno-unknown-pragmas", "-Wno-unused-parameter", "-Wno-unused-variable", "-Werror")
SANITIZERS = {
    None: (),
    "address": ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-g1", "-fsanitize=thread"),
}
WITH_BARRIER = (
    "gpuopt_reduce",
    "gpuopt_reduce_along",
    "gpuopt_per_tensor",
    "gpuopt_per_matrix",
    "gpuopt_all_tensors",
)  # the threads of a block run together
BLOCKS = "walk_blocks<Update"  # in the unit of an update whose threads exchange numbers
# ThreadSanitizer's fibers, of all libraries: to make those of a block takes it longer than most launches.
FIBERS = (ctypes.c_void_p * 1024)()


class Kernel:
    """A compiled `extern "C" __global__` function."""

    def __init__(self, library: Path, name: str, together: bool) -> None:
        """together: whether the threads of a block have to run so."""
        self.name, self.together = name, together
        self.entry = ctypes.CDLL(str(library)).shim_entry

    def __call__(self, blocks: int, threads: int, *args: Any, parallel: bool | None = None) -> None:
        """Launch and wait. args: a ctypes number each, or an array whose bytes are the argument (a struct by value).
        parallel: the threads of a block together; None where the kernel needs it.
        """
        values = [a.ctypes.data if isinstance(a, np.ndarray) else ctypes.addressof(a) for a in args]
        parallel = self.together if parallel is None else parallel
        self.entry(blocks, threads, int(parallel), (ctypes.c_void_p * len(values))(*values), FIBERS)


@cache
def pool() -> ThreadPoolExecutor:
    """As many compilers at a time as there are cores."""
    return ThreadPoolExecutor(os.cpu_count())


def compile_with(flags: Iterable[str], *arguments: str | Path) -> None:
    """Run g++; its messages become the error's text."""
    done = subprocess.run(["g++", *flags, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"g++ failed:\n{done.stderr[:8000]}")


@cache
def header(sanitize: str | None) -> Path:
    """shim.h, precompiled: half the time of a unit would go into the standard library's headers."""
    place = folder() / f"header-{sanitize}"
    place.mkdir(exist_ok=True)
    copy = once(place / HEADER.name, lambda made: shutil.copy(HEADER, made))
    flags = (*FLAGS, *SANITIZERS[sanitize])
    once(place / "shim.h.gch", lambda made: compile_with(flags, "-w", "-x", "c++-header", copy, "-o", made))
    return copy


def _compile(source: str, kernel_name: str, sanitize: str | None, library: Path) -> Path:
    def compiled(made: Path) -> None:
        text = library.with_suffix(".cu")
        text.write_text(f"{source}\nSHIM_ENTRY({kernel_name})\n")
        flags = (*FLAGS, *SANITIZERS[sanitize], "-shared", "-x", "c++", "-include")
        compile_with(flags, header(sanitize), text, "-o", made)

    return once(library, compiled)


_libraries: dict[str, Future[Path]] = {}


def prefetch(source: str, kernel_name: str, sanitize: str | None = None) -> Future[Path]:
    """Start compiling, unless that was done before."""
    key = hashlib.sha256(f"{kernel_name} {sanitize}\n{source}".encode()).hexdigest()
    if key not in _libraries:
        header(sanitize)
        _libraries[key] = pool().submit(_compile, source, kernel_name, sanitize, folder() / f"{key}.so")
    return _libraries[key]


def cuda_sources(program: Program) -> dict[str, str]:
    """The units of a program that the backend "shim" compiles, by the names of the parts: passes that sum, and the update."""
    decided = ("sums", "prepare", "all_tensors")
    return {name: text() for name, text in parts(program, "cuda").items() if name not in decided}


def name_in_c(part: str) -> str:
    """The name of the kernel of such a part: gpuopt_reduce of reduce_1."""
    return "gpuopt_" + re.sub(r"_\d+$", "", part)


def build(source: str, kernel_name: str, sanitize: str | None = None) -> Kernel:
    """The kernel of that name in a complete translation unit. sanitize: None, "address" (with undefined) or "thread"."""
    together = kernel_name in WITH_BARRIER or BLOCKS in source
    return Kernel(prefetch(source, kernel_name, sanitize).result(), kernel_name, together)
