"""The kernels' text under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, each proved able to see.

Each test runs tests/shim/scenarios.py in a process of its own, with the sanitizer's runtime preloaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from gpuopt.compiler import to_cuda
from gpuopt.formats.dtypes import PARAMETER_DTYPES
from shim import build
from shim.scenarios import BARRIER

pytestmark = pytest.mark.once
SCRIPT = Path(build.__file__).with_name("scenarios.py")
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}
BARRIERS = ("the tree of the sums", "before the next chunk", "the tree of the decision", "before the decision is read")


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
    environment = {**os.environ, **OPTIONS, "LD_PRELOAD": found.stdout.strip(), build.FOLDER: str(build.folder())}
    command = [*fixed_addresses(), sys.executable, str(SCRIPT), scenario, sanitizer, *([edit] if edit else [])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


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
    """In bounds, aligned, and without a data race at one thread for each CUDA thread; so are the updates behind them."""
    assert_clean(run(sanitizer, f"decisions-{dtype}"))


@pytest.mark.parametrize(
    ("edit", "scenario", "report"),
    [
        ("tail-one-too-far", "updates-float32", "AddressSanitizer: use-after-poison"),
        ("head-of-short-tensors", "updates-float32", "AddressSanitizer: use-after-poison"),
        ("packs-unaligned", "updates-float32", "misaligned address"),
        ("next-row", "updates-float32", "AddressSanitizer: heap-buffer-overflow"),
        ("tile-too-many", "updates-float32", "AddressSanitizer: heap-buffer-overflow"),
        ("sums-over-the-end", "decisions-float32", "AddressSanitizer: use-after-poison"),
        ("sums-unaligned", "decisions-float32", "misaligned address"),
        ("partials-too-many", "decisions-float32", "AddressSanitizer: heap-buffer-overflow"),
        ("row-too-many", "decisions-float32", "AddressSanitizer: heap-buffer-overflow"),
    ],
)
def test_a_mistake_is_reported(edit: str, scenario: str, report: str) -> None:
    done = run("address", scenario, edit)
    assert done.returncode != 0 and report in done.stderr, done.stderr[-6000:]


@pytest.mark.parametrize("barrier", range(len(BARRIERS)), ids=BARRIERS)
def test_a_missing_barrier_is_reported(barrier: int) -> None:
    assert to_cuda.headers().count(BARRIER) == len(BARRIERS)
    done = run("thread", "decisions-float32", f"barrier-{barrier}")
    assert done.returncode != 0 and "WARNING: ThreadSanitizer: data race" in done.stderr, done.stderr[-6000:]
