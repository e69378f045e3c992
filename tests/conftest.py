"""What every test shares: the option `--require-gpu`, the one reason for which a test may be skipped, and what
several files ask for: `rng`, `native`, `looks`.

Loaded by pytest. Imports nothing of gpuopt at its top, so that a broken package still gives readable failures.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # small matrices, and a worker for every core: threads would only wait

import numpy as np
import pytest

NEEDED = {"gpu": 1, "multigpu": 2}


@cache
def gpu_count() -> int:
    """The GPUs that the driver sees; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="fail a test that needs a GPU where there is none")
    parser.addoption("--long", action="store_true", help="also the tests marked long, which take hours")
    parser.addoption("--without-torch", action="store_true", help="leave out the test files that name torch")
    parser.addoption("--proof", action="store_true", help="run nothing; print what the tests prove of each GPU backend")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite on all cores, unless `-n` says otherwise; named files and tests in this process, as usual."""
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS and not config.option.collectonly
    reading = config.getoption("--proof") or config.option.usepdb or "PYTEST_XDIST_WORKER" in os.environ
    if whole and not reading and config.getoption("numprocesses", None) is None:
        config.option.numprocesses, config.option.dist = len(os.sched_getaffinity(0)), "worksteal"


def pytest_configure(config: pytest.Config) -> None:
    """One folder of compiled kernels for all workers and for the processes that tests start."""
    importlib.import_module("shim.shared").folder()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files that name torch, where that is asked for, and those of which -m leaves out every test, as to import them takes long.
    Never by what is installed: a torch that does not import must not be unseen.
    """
    if not collection_path.name.startswith("test_"):
        return None
    text = collection_path.read_text()
    marks = [mark for mark in ("once", "gpu", "slow") if re.search(rf"\bnot {mark}\b", config.option.markexpr)]
    whole = any(f"\npytestmark = pytest.mark.{mark}\n" in text for mark in marks)
    return whole or (config.getoption("--without-torch") and "torch" in text) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    long = [] if config.getoption("--long") else [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    items[:] = spread(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def spread(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """The slow ones first, since a slow one last would leave the other cores idle: as many at the begin of each part that xdist
    hands to a worker.
    """
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = iter([item for item in items if not item.get_closest_marker("slow")])
    size, found = -(-len(items) // workers), []
    for worker in range(workers):
        mine = slow[worker::workers]
        found += [*mine, *islice(others, max(0, size - len(mine)))]
    return [*found, *others]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """With --proof, a table in the place of the tests."""
    if not session.config.getoption("--proof"):
        return None
    lines = importlib.import_module("proof").lines(session.items)
    print("", *lines, sep="\n")
    return True


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many tests ran on the stand-in for a GPU, in processes of their own, and how many kernels these launched."""
    passed = [r for r in terminalreporter.getreports("passed") if r.when == "call"]
    counts: Counter[str] = Counter()
    for name, value in (given for r in passed for given in r.user_properties):
        if name == "interpreted" or name.startswith("launches of "):
            counts[name] += value
    if counts:
        launches = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if name != "interpreted")
        terminalreporter.write_line(
            f"tests marked gpu that ran as interpreted PTX: {counts['interpreted']} ({launches})"
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    needed = max((count for mark, count in NEEDED.items() if item.get_closest_marker(mark)), default=0)
    found = gpu_count() if needed else 0
    if found < needed:
        why = f"needs {needed} GPU{'s' if needed > 1 else ''}, found {found}"
        if item.config.getoption("--require-gpu") and not found:
            pytest.fail(why, pytrace=False)
        pytest.skip(why)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> object:
    """No other reason to skip: a test that skips itself fails, or a missing library would pass unseen."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and not re.search(r"needs \d+ GPU", str(report.longrepr)):
        report.outcome = "failed"
        report.longrepr = f"skipped for another reason than a missing GPU: {report.longrepr}"
    return report


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers in every run."""
    return np.random.default_rng(0)


def switch_native(monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    """What GPUOPT_NATIVE would have decided for gpuopt.torch, had it been so when the process began."""
    monkeypatch.setenv("GPUOPT_NATIVE", str(int(on)))
    objects, library = (importlib.import_module(f"gpuopt.native.{name}") for name in ("objects", "torch.library"))
    monkeypatch.setattr(objects, "unshared", objects.counted_unshared if on else objects.never_unshared)
    monkeypatch.setattr(library, "trouble", cache(library.trouble.__wrapped__))
    monkeypatch.setattr(library, "listening", library.listener())


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """gpuopt.torch uses native code in this test, whatever GPUOPT_NATIVE says."""
    switch_native(monkeypatch, True)


@pytest.fixture(params=["getters", "compiled"])
def looks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which `gpuopt.torch` looks at tensors, compiled code from the first step on and for any number of them."""
    watch = importlib.import_module("gpuopt.native.torch.watch")
    switch_native(monkeypatch, request.param == "compiled")
    monkeypatch.setattr(watch, "AFTER", 1)
    monkeypatch.setattr(watch, "FROM", 1)
    way: str = request.param
    return way
