"""The kernels' text under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, each proved able to see.

Each test runs in a process of its own: tests/shim/scenarios.py with the sanitizer's runtime preloaded, or the shim without one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from gpuopt.formats.dtypes import PARAMETER_DTYPES
from shim import build
from shim.scenarios import BARRIERS, EDITS
from shim.shared import FOLDER, folder

pytestmark = pytest.mark.once
SCRIPT = Path(build.__file__).with_name("scenarios.py")
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


@cache
def fixed_addresses() -> tuple[str, ...]:
    """The command that switches address randomisation off, which older ThreadSanitizers need, where it is allowed."""
    command = ("setarch", "-R")
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    return command if allowed else ()


def run(sanitizer: str, scenario: str, edit: str = "") -> subprocess.CompletedProcess[str]:
    """The scenario in a process of its own, compiled libraries shared between all of them."""
    build.header(sanitizer)
    found = subprocess.run(
        ["g++", f"-print-file-name={LIBRARIES[sanitizer]}"], capture_output=True, text=True, check=True
    )
    environment = {**os.environ, **OPTIONS, "LD_PRELOAD": found.stdout.strip(), FOLDER: str(folder())}
    command = [*fixed_addresses(), sys.executable, str(SCRIPT), scenario, sanitizer, *([edit] if edit else [])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


def assert_clean(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0 and done.stdout.strip() == "finished", done.stderr[-6000:]
    assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr, done.stderr[-6000:]


@pytest.mark.parametrize("dtype", PARAMETER_DTYPES)
def test_updates_stay_in_bounds_and_aligned(dtype: str) -> None:
    assert_clean(run("address", f"updates-{dtype}"))


@pytest.mark.parametrize(
    ("sanitizer", "dtype"),
    [*(("address", dtype) for dtype in PARAMETER_DTYPES), ("thread", "float64"), ("thread", "bfloat16")],
)
def test_sums_and_decisions(sanitizer: str, dtype: str) -> None:
    """In bounds, aligned, and without a data race between the threads of a block; so are the updates behind them."""
    assert_clean(run(sanitizer, f"decisions-{dtype}"))


@pytest.mark.parametrize(("sanitizer", "dtype"), [("address", "bfloat16"), ("thread", "float32")])
def test_rules_that_sum(sanitizer: str, dtype: str) -> None:
    """The same of passes over several arrays, and of what is computed between them."""
    assert_clean(run(sanitizer, f"sums-{dtype}"))


@pytest.mark.parametrize(
    ("sanitizer", "dtype"), [("address", "bfloat16"), ("address", "float32"), ("thread", "bfloat16")]
)
def test_walks_over_blocks(sanitizer: str, dtype: str) -> None:
    """Codes and numbers of blocks too, and the lanes that exchange numbers."""
    assert_clean(run(sanitizer, f"blocks-{dtype}"))


REPORTS = {
    "tail-one-too-far": "AddressSanitizer: use-after-poison",
    "head-of-short-tensors": "AddressSanitizer: use-after-poison",
    "packs-unaligned": "misaligned address",
    "sums-over-the-end": "AddressSanitizer: use-after-poison",
    "sums-unaligned": "misaligned address",
    "lines-unaligned": "misaligned address",
    "lane-too-far": "AddressSanitizer: use-after-poison",
    "lanes-unaligned": "misaligned address",
    "code-too-many": "AddressSanitizer: use-after-poison",
    "width-no-whole-pack": "misaligned address",
    "lines-over-the-end": "AddressSanitizer: use-after-poison",
}  # of all others, an array of the heap is left


@pytest.mark.parametrize("edit", EDITS)
def test_a_mistake_is_reported(edit: str) -> None:
    done = run("address", f"{EDITS[edit][2]}-float32", edit)
    report = REPORTS.get(edit, "AddressSanitizer: heap-buffer-overflow")
    assert done.returncode != 0 and report in done.stderr, done.stderr[-6000:]


@pytest.mark.parametrize("barrier", BARRIERS)
def test_a_missing_barrier_is_reported(barrier: str) -> None:
    done = run("thread", f"{BARRIERS[barrier]}-float32", barrier)
    where = re.search(r"^SUMMARY: ThreadSanitizer: data race (\S+)", done.stderr, re.MULTILINE)
    assert done.returncode != 0 and where and where[1].startswith("kernels/"), done.stderr[-6000:]


TURNS = """
import ctypes
from shim import build
text = 'extern "C" __global__ void kernel(int stop) {{ if (int(threadIdx.x) < stop) return; __syncthreads(); }}'
kernel = build.build(text, "kernel")
kernel(2, 8, ctypes.c_int(0), parallel=True)
print("finished", flush=True)
kernel(2, 8, ctypes.c_int({stop}), parallel={parallel})
"""


@pytest.mark.parametrize(
    ("stop", "parallel", "why"),
    [(3, True, "that not every thread of a block reaches"), (0, False, "in a kernel launched without threads")],
)
def test_a_barrier_that_cannot_be_met_is_reported(stop: int, parallel: bool, why: str) -> None:
    """By the shim itself, no sanitizer needed."""
    script = TURNS.format(stop=stop, parallel=parallel)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[2]), str(SCRIPT.parents[1])])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "finished" and done.returncode != 0, done.stderr[-3000:]
    assert f"shim: __syncthreads() {why}" in done.stderr
