"""One folder for all processes of a run of the tests, and files in it that only one of them makes.

Workers of xdist see all tests each, announce the same kernels to g++ and NVRTC, and would compile them all twice; so would the
processes that a test starts. Used by shim.build, shim.sass, conftest.py and the tests that start
processes. Knows nothing of what is in the files.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

FOLDER = "GPUOPT_TESTS_FOLDER"


@cache
def folder() -> Path:
    """That folder: of the process that handed it down in the environment, else made now, and taken away when this process ends."""
    if inherited := os.environ.get(FOLDER):
        return Path(inherited)
    made = Path(tempfile.mkdtemp(prefix="gpuopt-tests-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    os.environ[FOLDER] = str(made)
    return made


def kernels() -> Path:
    """Where processes on the driver of tests/driver keep compiled kernels, empty at first: their GPUOPT_CACHE_DIR."""
    return folder() / "kernels"


def once(file: Path, make: Callable[[Path], object]) -> Path:
    """The file, made by `make(place)` unless it is there; who comes meanwhile waits. Who dies leaves nothing half made."""
    if not file.exists():
        with file.with_name(f"{file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists():
                unfinished = file.with_name(f"unfinished-{file.name}")
                make(unfinished)
                unfinished.replace(file)
    return file
