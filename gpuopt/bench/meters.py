"""Counts beside the clock: copy bandwidth, extra memory of a step, allocations, kernel launches, host time.

Called by `measure`. What cannot be counted on a machine is None, never a guess.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gpuopt.bench import data, machine

COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}  # far beyond any cache


class Copy:
    """The ceiling: bytes read plus bytes written by the simplest large pass; sampled all through a run.

    On a GPU a copy. On a CPU a pass in place (negation), as an optimizer's are: a copy also reads the cache lines it is
    about to overwrite, which no one counts, and so looks half as fast.
    """

    def __init__(self, device: str, nbytes: int | None = None) -> None:
        self.device = device
        self.nbytes = nbytes or min(COPY_BYTES[device], machine.free_bytes(device) // 8)
        size = self.nbytes // 4
        if device == "cpu":
            self.target: Any = data.values(data.PARAMETERS, 0, 0, size)
            self.pool = ThreadPoolExecutor(machine.threads())
        else:
            torch_only = find_spec("cupy") is None
            self.source = self._device_array(torch_only, size)
            self.target = self.source.clone() if torch_only else self.source.copy()
        self.run()

    def _device_array(self, torch_only: bool, size: int) -> Any:
        host = data.values(data.PARAMETERS, 0, 0, min(size, data.POOL))
        if torch_only:
            torch = import_module("torch")
            return torch.from_numpy(host).cuda().repeat(-(-size // host.size))[:size].contiguous()
        return import_module("cupy").resize(import_module("cupy").asarray(host), size)

    def run(self) -> float:
        """Bytes per second of one pass."""
        start = time.perf_counter()
        if self.device == "cpu":
            cuts = np.linspace(0, self.target.size, machine.threads() + 1).astype(int)
            jobs = [self.pool.submit(np.negative, self.target[a:b], self.target[a:b]) for a, b in pairwise(cuts)]
            for job in jobs:
                job.result()
        elif hasattr(self.target, "copy_"):
            self.target.copy_(self.source)
            import_module("torch").cuda.synchronize()
        else:
            self.target[...] = self.source
            import_module("cupy").cuda.Device().synchronize()
        return 2 * self.nbytes / (time.perf_counter() - start)


def extra_memory(device: str, step: Callable[[], None]) -> tuple[int | None, int | None]:
    """(most bytes that one step held beyond what was held before, allocations it made)."""
    return _extra_host(step) if device == "cpu" else _extra_device(step)


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(field)


def _extra_host(step: Callable[[], None]) -> tuple[int | None, int | None]:
    """The rise of the peak of resident memory; Linux can reset that peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        step()
        return max(0, _resident("VmHWM") - before), None
    except OSError:
        step()
        return None, None


def _torch() -> Any:
    """torch, where it can use the GPU; a build for CPUs beside CuPy counts nothing there."""
    torch = import_module("torch") if find_spec("torch") else None
    return torch if torch is not None and torch.cuda.is_available() else None


def _extra_device(step: Callable[[], None]) -> tuple[int | None, int | None]:
    """What torch's and CuPy's allocators handed out during the step. JAX keeps no such count: a zero there means nothing."""
    torch = _torch()
    if torch is not None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        count = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
    taken: list[int] = []
    if find_spec("cupy"):
        cupy = import_module("cupy")

        class Hook(cupy.cuda.MemoryHook):  # type: ignore[misc,name-defined]
            name = "gpuopt-bench"

            def malloc_postprocess(self, **known: Any) -> None:
                taken.append(int(known["mem_size"]))

        with Hook():
            step()
        cupy.cuda.Device().synchronize()
    else:
        step()
    extra, allocations = sum(taken), len(taken)
    if torch is not None:
        torch.cuda.synchronize()
        extra += torch.cuda.max_memory_allocated() - held
        allocations += torch.cuda.memory_stats().get("allocation.all.allocated", 0) - count
    return extra, allocations


def launches(device: str, step: Callable[[], None]) -> int | None:
    """Kernels that one step starts, counted by torch's profiler, which sees those of every library in the process."""
    torch = None if device == "cpu" else _torch()
    if torch is None:
        return None
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    kernels = [e for e in profile.events() if str(e.device_type).endswith("CUDA")]
    return sum("memcpy" not in e.name.lower() and "memset" not in e.name.lower() for e in kernels) or None


def host_seconds(step: Callable[[], None], wait: Callable[[], None], repeats: int = 15) -> float:
    """The median time until `step()` returns, with nothing queued before it."""
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    wait()
    return float(np.median(times))


class Others:
    """How much of the machine other processes used since the last question: 0 none of it, 1 all cores."""

    def __init__(self) -> None:
        self.last = self._now()

    def _now(self) -> tuple[float, float, float]:
        own = os.times()
        try:
            fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except OSError:
            fields = [0] * 8
        busy = sum(fields) - fields[3] - fields[4]  # without idle and waiting for disks
        return time.perf_counter(), busy / os.sysconf("SC_CLK_TCK"), own.user + own.system

    def share(self) -> float:
        """The share since the last call; clock ticks make it uncertain by a tenth over a tenth of a second."""
        before, self.last = self.last, self._now()
        wall, busy, own = (b - a for a, b in zip(before, self.last, strict=True))
        return max(0.0, busy - own) / max(wall, 1e-9) / (os.cpu_count() or 1)
