"""The `start` suite: time to import, and to the first step with a cold and a warm disk cache, each in a fresh process.

Called by `gpuopt.bench`. Knows no array library: the child processes do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import gpuopt
from gpuopt.bench import machine
from gpuopt.bench.rows import Row

ROOT = Path(gpuopt.__file__).parents[1]
TIMED = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
FIRST_STEP = """
import time, {module} as xp, gpuopt
p, g = xp.ones(1000, "float32"), xp.ones(1000, "float32")
start = time.perf_counter()
opt = gpuopt.AdamW([p], lr=1e-3, backend="{backend}")
opt.step([g])
float(p[0])
print(time.perf_counter() - start)
"""


def seconds(script: str, cache: str) -> float:
    """What a fresh Python process prints last."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"GPUOPT_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=True)
    return float(done.stdout.split()[-1])


def measure(device: str, run: tuple[str, str], repeats: int, say: Callable[[str], None]) -> list[Row]:
    """Rows of the suite; a row that fails holds the reason."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o700)
        jobs = [*imports(device, folder, repeats), *first_steps(device, folder, repeats)]
        for case, provider, sample in jobs:
            row = Row(
                run[0], run[1], machine.commit(), machine.device_name(device), machine.driver(device),
                machine.cuda(device), machine.versions(), "start", case, provider, gpuopt.__version__, "adamw",
                "float32", "float32", "native", 1, 1000,
            )  # fmt: skip
            try:
                found = sample()
                row.samples, row.min_us = len(found), 1e6 * min(found)
                row.p20_us, row.p50_us, row.p80_us = (1e6 * np.percentile(found, (20, 50, 80))).tolist()
            except subprocess.SubprocessError as error:
                row.status, row.note = "failed", " ".join(str(getattr(error, "stderr", "") or error).split())[-160:]
                say(f"  {provider}: {case} failed, {row.note}")
            rows.append(row)
    return rows


Job = tuple[str, str, Callable[[], list[float]]]


def imports(device: str, folder: str, repeats: int) -> Iterator[Job]:
    """`import gpuopt` is timed on top of NumPy's own import, the two in turn."""
    if device != "cpu":
        return
    yield "import numpy", "numpy", lambda: [seconds(TIMED.format("import numpy"), folder) for _ in range(repeats)]
    added = "import numpy; " + TIMED.format("import gpuopt")
    yield "import after numpy", "gpuopt", lambda: [seconds(added, folder) for _ in range(repeats)]


def first_steps(device: str, folder: str, repeats: int) -> Iterator[Job]:
    """The first step of every usable backend: an empty disk cache once, then a filled one."""
    from gpuopt import backends

    for backend, where in backends.DEVICES.items():
        if where == device and backends.missing(backend) is None:
            module = "numpy" if device == "cpu" else "cupy"
            script = FIRST_STEP.format(module=module, backend=backend)
            empty = os.path.join(folder, backend)
            name = f"gpuopt {backend}"
            yield "first step, cold", name, lambda s=script, c=empty: [seconds(s, c)]  # type: ignore[misc]
            yield "first step, warm", name, lambda s=script, c=empty: [seconds(s, c) for _ in range(repeats)]  # type: ignore[misc]
