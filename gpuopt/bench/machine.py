"""What this machine is: device name, driver, cache, free memory, versions, commit. Called by `measure` and `gpuopt.bench`."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpuopt.bench.providers import distribution_version

LIBRARIES = ("numpy", "numba", "numba-cuda", "cupy-cuda12x", "cupy-cuda13x", "cuda-core", "torch", "triton", "jax")


def output(*command: str) -> str:
    """Standard output of a command, empty where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def commit() -> str:
    """The commit of this checkout, with `+` where what is measured differs from it; GPUOPT_COMMIT where there is no git."""
    if given := os.environ.get("GPUOPT_COMMIT"):
        return given
    found = output("git", "rev-parse", "--short=12", "HEAD")
    measured = ("..", "../../kernels", ":(exclude).")
    changed = output("git", "status", "--porcelain", "--untracked-files=no", "--", *measured)
    return found + ("+" if found and changed else "")


@cache
def nvidia_smi() -> tuple[str, str]:
    """(name of the GPU, version of its driver)."""
    line = output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0")
    name, _, driver = line.partition(",")
    return name.strip(), driver.strip()


@cache
def device_name(device: str) -> str:
    """The GPU, or the processor with the number of threads that are used."""
    if device != "cpu":
        return nvidia_smi()[0] or "GPU"
    try:
        models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    except OSError:
        models = []
    name = " ".join((models or [platform.processor() or platform.machine()])[0].split())
    return f"{name}, {threads()} threads"


def threads() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def driver(device: str) -> str:
    """The GPU driver's version."""
    return "" if device == "cpu" else nvidia_smi()[1]


@cache
def cuda(device: str) -> str:
    """The version of the CUDA runtime that CuPy uses."""
    if device == "cpu" or find_spec("cupy") is None:
        return ""
    number = int(import_module("cupy").cuda.runtime.runtimeGetVersion())
    return f"{number // 1000}.{number % 1000 // 10}"


@cache
def versions() -> str:
    """Python and the libraries that matter."""
    found = [(name, distribution_version(name)) for name in LIBRARIES]
    return " ".join([f"python {platform.python_version()}", *(f"{n} {v}" for n, v in found if v)])


@cache
def cache_bytes(device: str) -> int:
    """The last cache level: L2 of a GPU, L3 of a CPU."""
    if device != "cpu":
        return int(import_module("cupy").cuda.Device().attributes["L2CacheSize"]) if find_spec("cupy") else 60 << 20
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return int(text[:-1]) << {"K": 10, "M": 20}[text[-1]]
    except (OSError, KeyError, ValueError):
        return 32 << 20


def free_bytes(device: str) -> int:
    """Memory that a run may take: four fifths of what is free now."""
    if device != "cpu":
        module: Any = import_module("cupy") if find_spec("cupy") else None
        if module is not None:
            return int(0.8 * module.cuda.runtime.memGetInfo()[0])
        return int(0.8 * import_module("torch").cuda.mem_get_info()[0])
    try:
        found = re.search(r"^MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text(), flags=re.MULTILINE)
    except OSError:
        found = None
    return int(0.8 * 1024 * int(found[1])) if found else 4 << 30


def gpu_usable() -> bool:
    """Whether a CUDA device answers, through any library that is installed."""
    from gpuopt import backends

    if any(backends.missing(name) is None for name, where in backends.DEVICES.items() if where == "cuda"):
        return True
    return find_spec("torch") is not None and bool(import_module("torch").cuda.is_available())
