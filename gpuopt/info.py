"""What `gpuopt info` prints: versions, backends and why each is unusable, CUDA devices.

Called by `gpuopt/cli.py`. Asks the CUDA driver directly, so that a GPU is listed even where every package that could
use it is missing. Must import no array library: versions come from package metadata.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gpuopt
from gpuopt import driver
from gpuopt.native import switch

PACKAGES = (
    *("numpy", "numba", "cupy-cuda12x", "cupy-cuda13x", "numba-cuda", "cuda-core"),
    *("ml_dtypes", "torch", "scipy", "scikit-learn", "threadpoolctl", "matplotlib", "tqdm"),
)
# CUdevice_attribute, cuda.h
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76


def lines() -> Iterator[str]:
    """The report, line by line."""
    yield f"gpuopt {gpuopt.__version__}"
    yield f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    yield "packages: " + ", ".join(f"{name} {package_version(name)}" for name in PACKAGES)
    installed = [name for name in switch.TRIED if name == "python" or package_version(name) != "-"]
    against = switch.objection(*installed)
    yield f"native code: {'in use' if against is None else f'not in use: {against}'}"
    yield "backends:"
    for name, why_not in gpuopt.backends().items():
        yield f"  {name:<12}{'usable' if why_not is None else 'not usable: ' + ' '.join(why_not.split())}"
    yield "CUDA devices:"
    found = driver.library()
    if found is None:
        yield f"  none: {driver.trouble()}"
    else:
        yield from device_lines(found)


def package_version(name: str) -> str:
    """The installed version of a distribution, or a dash."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


def device_lines(library: Any) -> Iterator[str]:
    """One line for each device that the CUDA driver library `library` sees, or the driver's reason for seeing none."""
    if why := driver.complaint(library):
        yield f"  none usable: {why}"
        return
    count = ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    major, minor = driver.cuda_version(library)
    yield f"  {count.value} found; the driver supports CUDA {major}.{minor}"
    for index in range(count.value):
        device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
        library.cuDeviceGet(ctypes.byref(device), index)
        library.cuDeviceGetName(name, len(name), device)
        library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        capability = []
        for attribute in (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR):
            value = ctypes.c_int()
            library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            capability.append(str(value.value))
        yield f"  {index}: {name.value.decode()}, sm_{''.join(capability)}, {memory.value / 2**30:.1f} GiB"
