"""The tests marked `gpu` on a machine without a GPU: on the driver of tests/driver, which interprets PTX.

Each test here runs a share of them in a process of its own, since the rest of the suite tests what happens without a driver.
What only a GPU can show is marked `hardware` and left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from repository import ROOT

TESTS = Path(__file__).parent
FILES = sorted(
    path.name for path in TESTS.glob("test_*.py") if "mark.gpu" in path.read_text() and path != Path(__file__)
)
PARTS = 4  # each takes ten seconds to start
CHOSEN = "gpu and not hardware"
PLANTED = ("driver/planted.py", "driver/planted_numba.py")
Count = Callable[[str, object], None]


def interpret(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """pytest on the stand-in, in a process of its own."""
    paths = os.pathsep.join([str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")])
    given = {"PYTHONPATH": paths, "PTX_MULTIPROCESSORS": "1", "PYTEST_ADDOPTS": "", **environment}
    inner = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    plugins = ["-p", "driver.plugin", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "--require-gpu", "--durations=0", *words]
    return subprocess.run(command, cwd=TESTS, env=inner | given, capture_output=True, text=True, timeout=1200)


def passed(done: subprocess.CompletedProcess[str], record_property: Count = lambda name, value: None) -> int:
    """How many tests passed; an AssertionError with what failed unless all did. Records the launches of each backend."""
    said = done.stdout[-20_000:] + done.stderr[-4000:]
    assert done.returncode == 0, said
    found = re.search(r"(\d+) passed", done.stdout)
    assert found and "skipped" not in done.stdout.splitlines()[-1], said
    for count, backend in re.findall(r"(\d+) launches of ([\w-]+)", done.stdout):
        record_property(f"launches of {backend}", int(count))
    return int(found[1])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, PARTS + 1))
def test_on_the_stand_in(part: int, record_property: Count) -> None:
    count = passed(interpret("-m", CHOSEN, "--part", f"{part}/{PARTS}", *FILES), record_property)
    record_property("interpreted", count)


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "seed"), [("7.5", "1"), ("8.6", "2"), ("12.0", "3")])
def test_other_architectures_and_orders_of_threads(capability: str, seed: str) -> None:
    """What is compiled for them differs; any order of threads gives the same bits."""
    chosen = "(adamw or lion) and float32-everything or bfloat16-state16-everything and rmsprop or float16-everything and sgd"
    done = interpret("-m", CHOSEN, "-k", chosen, "test_bits_gpu.py", PTX_CAPABILITY=capability, PTX_SEED=seed)
    assert passed(done) == 8


@pytest.mark.slow
def test_planted_faults_are_found(record_property: Count) -> None:
    record_property("planted", passed(interpret(*PLANTED)))


@pytest.mark.slow
def test_memory_may_run_out_anywhere() -> None:
    passed(interpret("driver/scarce.py"))


@pytest.mark.long
def test_memory_may_run_out_anywhere_once() -> None:
    passed(interpret("--long", "-m", "long", "driver/scarce.py"))


@pytest.mark.long
@pytest.mark.parametrize("part", range(1, 4 * PARTS + 1))
@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"])
def test_the_whole_matrix(capability: str, part: int, record_property: Count) -> None:
    share = f"{part}/{4 * PARTS}"
    done = interpret("--long", "-m", CHOSEN, "--part", share, *FILES, PTX_CAPABILITY=capability, PTX_SEED=str(part))
    record_property("interpreted", passed(done, record_property))
