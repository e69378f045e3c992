"""The NVIDIA driver, asked through its C library: whether there is one, its version, whether it sees a GPU.

Called by the CUDA backends, which say with it why they cannot run, and by `gpuopt info`. Imports no array library, so that a
machine without any package for GPUs gets the right answer too.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import Any

from gpuopt.messages import install

LIBRARY = "libcuda.so.1"
MEMORY_TYPE, DEVICE_ORDINAL = 2, 9  # CUpointer_attribute, cuda.h
RELEASE_FILE = Path("/proc/driver/nvidia/version")
RELEASES = {12: "525", 13: "580"}  # major version of CUDA -> the oldest release of the driver that runs it
OLDEST, NEWEST = min(RELEASES), max(RELEASES)
NO_DEVICE = 100  # CUresult, cuda.h
REMEDIES = {
    34: "this libcuda.so.1 is the stub that comes with the CUDA toolkit: take its folder out of LD_LIBRARY_PATH",
    803: "the kernel module is of another release than the library: restart the machine after an update of the driver",
    804: "the CUDA compatibility package does not go with this GPU: take it out of LD_LIBRARY_PATH",
    999: "the kernel module may not be loaded: `nvidia-smi` says more",
}


def library() -> Any:
    """The driver's C library, or None where it does not load."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        return None


def device_of(address: int) -> int:
    """The number of the GPU in whose memory this address is; 0 where nobody knows."""
    loaded, index = library(), ctypes.c_int(0)
    if loaded is not None and address:
        loaded.cuPointerGetAttribute(ctypes.byref(index), DEVICE_ORDINAL, ctypes.c_uint64(address))
    return index.value


def pinned(address: int) -> bool:
    """Whether this is memory of the host that the driver knows, from which GPUs copy while the host goes on."""
    loaded, found = library(), ctypes.c_int(0)
    if loaded is None or not address:
        return not address
    return not loaded.cuPointerGetAttribute(ctypes.byref(found), MEMORY_TYPE, ctypes.c_uint64(address))


def cuda_version(driver: Any) -> tuple[int, int]:
    """(major, minor) of the newest CUDA that the driver supports; needs no GPU."""
    number = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    return number.value // 1000, number.value % 1000 // 10


def release() -> str:
    """The release of the kernel module, such as 535.54.03, or nothing where it is not told."""
    try:
        found = re.search(r"\b\d{3,}(\.\d+)+\b", RELEASE_FILE.read_text())
    except OSError:
        found = None
    return found[0] if found else ""


def described(driver: Any) -> str:
    """The driver in words, with its versions."""
    major, minor = cuda_version(driver)
    return " ".join(["the NVIDIA driver", *filter(None, [release()]), f"(it supports CUDA up to {major}.{minor})"])


def newer(cuda: int) -> str:
    """The remedy for a driver older than this major version of CUDA."""
    return f"install release {RELEASES[cuda]} or newer of it"


def trouble() -> str | None:
    """What keeps any CUDA program from running here, with its remedy; None where it is not the driver."""
    driver = library()
    if driver is None:
        return f"no NVIDIA driver is installed ({LIBRARY} does not load): install the driver of your GPU"
    return complaint(driver)


def complaint(driver: Any) -> str | None:
    """What is wrong with a driver that is there: too old, no GPU, not able to start; None where it works."""
    if cuda_version(driver)[0] < OLDEST:
        return f"{described(driver)} is too old, CUDA {OLDEST}.0 is needed: {newer(OLDEST)}"
    error = driver.cuInit(0)
    if error == NO_DEVICE:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return f"{described(driver)} finds no GPU" + ("" if hidden is None else f"; CUDA_VISIBLE_DEVICES is {hidden!r}")
    if error:
        remedy = REMEDIES.get(error, "`nvidia-smi` says more")
        return f"{described(driver)} does not start, cuInit answers error {error}: {remedy}"
    return None


def too_old_for(cuda: int, what: str, conflicting: str = "") -> str | None:
    """None unless the driver is older than this major version of CUDA, for which `what` was built.

    conflicting: a package that must go before that of an older CUDA comes.
    """
    driver = library()
    if driver is None or cuda <= cuda_version(driver)[0]:
        return None
    first = f"python -m pip uninstall {conflicting}, then " if conflicting else ""
    older = f"; or {first}{install(extra())}" if cuda_version(driver)[0] >= OLDEST else ""
    return f"{what} needs CUDA {cuda}.0, and {described(driver)} is too old: {newer(min(cuda, NEWEST))}{older}"


def extra() -> str:
    """The extra of this package that goes with the driver: the newest, where nothing is known."""
    driver = library()
    major = NEWEST if driver is None else min(max(cuda_version(driver)[0], OLDEST), NEWEST)
    return f"cuda{major}"


def why_not(what: str, error: str) -> str:
    """Why a CUDA backend cannot run: the driver where that is the reason, else `error` and the line that installs it."""
    return f"{what} cannot run: {trouble() or f'{error}; {install(extra())}'}"
