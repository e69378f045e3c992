"""The tests marked `gpu` on a machine without a GPU: on the driver of tests/driver, which interprets PTX.

Each test here waits for a share of them in a process of its own, since the rest of the suite tests what happens without a driver;
as many of these run at once as there are cores. What only a GPU can show is marked `hardware` and left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from repository import ROOT
from shim.shared import kernels

TESTS = Path(__file__).parent
FILES = sorted(
    path.name for path in TESTS.glob("test_*.py") if "mark.gpu" in path.read_text() and path != Path(__file__)
)
PARTS = 2  # each takes ten seconds to start
CHOSEN = "gpu and not hardware"
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
Done = subprocess.CompletedProcess[str]


class Job(NamedTuple):
    """Words for pytest and environment variables for the driver. tests: how many there are, where that is known here."""

    words: tuple[str, ...]
    environment: dict[str, str]
    tests: int | None = None


def interpret(job: Job) -> Done:
    """pytest on the stand-in, in a process of its own. All of them share compiled kernels."""
    paths = os.pathsep.join([str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")])
    given = {
        "PYTHONPATH": paths,
        "PTX_MULTIPROCESSORS": "1",
        "PYTEST_ADDOPTS": "",
        "GPUOPT_CACHE_DIR": str(kernels()),
        **job.environment,
    }
    inner = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    plugins = ["-p", "driver.plugin", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "--require-gpu", "--durations=0", *job.words]
    return subprocess.run(command, cwd=TESTS, env=inner | given, capture_output=True, text=True, timeout=1800)


# Another architecture is another text, another order of threads shows what is left to chance.
FEW = ("-m", CHOSEN, "-k", "[adamw-float32-everything or [adamw-bfloat16-state16-everything", "test_bits_gpu.py")
PLANTED = (
    "driver/planted.py",
    "driver/planted_numba.py",
    "driver/planted_host.py",
)  # the stand-in's own test: a half, the other one is long
SHORT = {
    **{f"part {k}": Job(("-m", CHOSEN, "--part", f"{k}/{PARTS}", *FILES), {}) for k in range(1, PARTS + 1)},
    "planted faults": Job(("--part", "1/2", *PLANTED), {}),
    "scarce memory": Job(("driver/scarce.py",), {}),
    **{
        f"sm {capability} seed {seed}": Job(FEW, {"PTX_CAPABILITY": capability, "PTX_SEED": seed}, tests=4)
        for capability, seed in (("7.5", "1"), ("12.0", "2"))  # the one has no instruction for bfloat16
    },
}
LONG = {
    **{
        f"sm {capability} part {k}": Job(
            ("--long", "-m", CHOSEN, "--part", f"{k}/{4 * PARTS}", *FILES),
            {"PTX_CAPABILITY": capability, "PTX_SEED": str(k)},
        )
        for capability in CAPABILITIES
        for k in range(1, 4 * PARTS + 1)
    },
    "the other planted faults": Job(("--part", "2/2", *PLANTED), {}),
    "scarce memory, one by one": Job(("--long", "-m", "long", "driver/scarce.py"), {}),
}
JOBS = SHORT | LONG


@pytest.fixture(scope="module")
def started(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Future[Done]]]:
    """The run of a job by its name. All that the chosen tests want are queued at once, but where xdist spreads the tests."""
    futures: dict[str, Future[Done]] = {}

    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def start(name: str) -> Future[Done]:
            if name not in futures:
                futures[name] = pool.submit(interpret, JOBS[name])
            return futures[name]

        if "PYTEST_XDIST_WORKER" not in os.environ:
            for item in request.session.items:
                job = item.callspec.params.get("job") if hasattr(item, "callspec") else None
                if job in JOBS and item.path == Path(__file__):
                    start(job)
        try:
            yield start
        finally:
            pool.shutdown(cancel_futures=True)


def check(name: str, done: Done, record_property: Callable[[str, object], None]) -> None:
    """All passed, none was skipped. Records how many there were, and the launches of each backend."""
    said = done.stdout[-20_000:] + done.stderr[-4000:]
    assert done.returncode == 0, said
    found = re.search(r"(\d+) passed", done.stdout)
    assert found and "skipped" not in done.stdout.splitlines()[-1], said
    assert JOBS[name].tests in (None, int(found[1])), said
    record_property("interpreted", int(found[1]))
    for count, backend in re.findall(r"(\d+) launches of ([\w-]+)", done.stdout):
        record_property(f"launches of {backend}", int(count))


@pytest.mark.slow
@pytest.mark.parametrize("job", SHORT)
def test_on_the_stand_in(job: str, started: Any, record_property: Any) -> None:
    check(job, started(job).result(), record_property)


@pytest.mark.long
@pytest.mark.parametrize("job", LONG)
def test_the_whole_matrix(job: str, started: Any, record_property: Any) -> None:
    check(job, started(job).result(), record_property)
