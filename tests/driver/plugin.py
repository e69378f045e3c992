"""A plugin of pytest: tests marked `gpu` on the driver without a GPU, with CuPy's own wheel and Numba CUDA.

    python -m pytest -p driver.plugin -m gpu --require-gpu tests/test_gpu.py

PTX_CAPABILITY, PTX_MULTIPROCESSORS: the device. PTX_SEED: threads go on in a random order.
`--part K/N`: every N-th test from the K-th on. A fault fails the test in which it occurs even where nobody looks.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any

import pytest

from driver import cupy_wheel, library


def compile_ptx(source: str, arch: str) -> bytes:
    """In the place of gpuopt.compiler.nvrtc.compile_cubin: the same options, PTX instead of machine code."""
    from cuda.core import Program, ProgramOptions

    from gpuopt.compiler import cache
    from gpuopt.compiler.nvrtc import OPTIONS

    name = cache.key(source, arch, repr(OPTIONS))
    code = cache.read(name, "ptx")
    if code is None:
        program = Program(source, "c++", options=ProgramOptions(arch=arch, **OPTIONS))
        code = bytes(program.compile("ptx").code) + b"\0"
        cache.write(name, code, "ptx")
    return code


def install() -> library.Driver:
    """The driver, CuPy on it, gpuopt's cupy backend on CuPy; nvJitLink hidden, which would take the PTX away."""
    sys.path.insert(0, str(cupy_wheel.folder()))
    os.environ |= {"CUPY_COMPILE_WITH_PTX": "1", "CUPY_CACHE_IN_MEMORY": "1"}
    os.environ.setdefault("GPUOPT_CACHE_DIR", tempfile.mkdtemp(prefix="gpuopt-kernels-"))
    os.environ["NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS"] = "0"
    made = library.install()
    seed = os.environ.get("PTX_SEED")
    made.seed = None if seed is None else int(seed)
    hide_nvjitlink()
    from gpuopt.compiler import nvrtc

    nvrtc.compile_cubin = compile_ptx
    return made


def hide_nvjitlink() -> None:
    """Have Numba and cuda.core link with the driver also where nvJitLink is installed (torch's CUDA build brings it)."""
    from cuda import pathfinder

    load = pathfinder.load_nvidia_dynamic_lib

    def without(name: str) -> object:
        if name == "nvJitLink":
            raise pathfinder.DynamicLibNotFoundError("hidden from this process")
        return load(name)

    pathfinder.load_nvidia_dynamic_lib = without


driver = install()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", default="1/1", help="K/N: every N-th of the chosen tests, from the K-th on")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part, parts = (int(number) for number in config.getoption("--part").split("/"))
    items[:] = items[part - 1 :: parts]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> object:
    """A fault of the driver is seen even where the test does not look."""
    driver.finish()
    result = yield
    fault = driver.finish()
    if fault is not None:
        raise AssertionError(f"{type(fault).__name__}: {fault}")
    return result


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many kernels of each backend were launched; read by tests/test_driver.py."""
    whose = [next((b for b, mark in MARKS.items() if mark in name), "") for name, _, _ in driver.launches]
    terminalreporter.write_line(f"interpreted: {', '.join(f'{whose.count(b)} launches of {b}' for b in MARKS)}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    sys.stdout.flush()
    os._exit(config.stash.get(STATUS, 3))  # without finalisers that would still call the driver


MARKS = {"cupy": "gpuopt_", "numba-cuda": "cdynamic"}  # in the names of a backend's kernels
STATUS = pytest.StashKey[int]()
