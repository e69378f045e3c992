"""What the suite proves of each GPU backend, without running it: `python -m pytest --proof` prints a table.

Counted from the tests that pytest collected and from the committed measurements; no number is written here. Called by conftest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from repository import ROOT

MEASUREMENTS = ROOT / "benchmarks" / "results" / "measurements.csv"
BACKENDS = ("cupy", "numba-cuda")


def parameters(item: pytest.Item) -> dict[str, Any]:
    """The arguments of a parametrized test."""
    spec = getattr(item, "callspec", None)
    return dict(spec.params) if spec else {}


def compiled(items: Iterable[pytest.Item]) -> dict[str, set[Any]]:
    """Architecture -> programs whose machine code is made by NVRTC and read back by the disassembler."""
    found: dict[str, set[Any]] = defaultdict(set)
    for item in items:
        kernel = parameters(item).get("kernel")
        if isinstance(kernel, tuple):
            found[kernel[1]].add(kernel[0])
    return found


def executed(items: Iterable[pytest.Item], backend: str, gpu: bool) -> set[Any]:
    """Programs whose kernels run, compared bit for bit with NumPy: by g++ (not marked gpu), or as PTX."""
    found = set()
    for item in items:
        given = parameters(item)
        if bool(item.get_closest_marker("gpu")) == gpu and given.get("backend", "cupy") == backend:
            found |= {
                case.program for case in (given.get("case"), given.get("device_case")) if hasattr(case, "program")
            }
    return found


def on_a_gpu(backend: str) -> str:
    """Device and date of the last committed measurement of a backend on a GPU."""
    from gpuopt.bench.rows import read

    rows = [r for r in read(MEASUREMENTS) if r.cuda and r.status == "ok" and r.provider.endswith(backend)]
    return f"{rows[-1].device}, {rows[-1].date}" if rows else "never"


def column(items: list[pytest.Item], backend: str) -> dict[str, str]:
    """What is known of one backend: question -> answer."""
    made = compiled(items) if backend == "cupy" else {}
    native = executed(items, backend, gpu=False) if backend == "cupy" else set()
    each = ", ".join(f"{arch} {len(made[arch])}" for arch in sorted(made, key=lambda arch: int(arch[3:])))
    disassembled = str(sum(map(len, made.values()))) if made else "none: ptxas is the driver's"
    return {
        "kernels compiled to machine code": each or "none: Numba leaves it to the driver",
        "of these disassembled, and their accesses and registers checked": disassembled,
        "kernels run as g++ code": str(len(native)) if native else "none: Numba emits no C",
        "kernels run as PTX, interpreted": str(len(executed(items, backend, gpu=True))),
        "measured on a GPU": on_a_gpu(backend),
    }


def lines(items: list[pytest.Item]) -> Iterator[str]:
    """The table, and how many tests are for a GPU."""
    columns = {backend: column(items, backend) for backend in BACKENDS}
    widths = {backend: max(len(backend), *map(len, columns[backend].values())) for backend in BACKENDS}
    questions = list(columns[BACKENDS[0]])
    first = max(map(len, questions))
    yield "  ".join([" " * first, *(f"{backend:<{widths[backend]}}" for backend in BACKENDS)])
    for question in questions:
        yield "  ".join([f"{question:<{first}}", *(f"{columns[b][question]:<{widths[b]}}" for b in BACKENDS)])
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    hardware = [item for item in gpu if item.get_closest_marker("hardware")]
    yield f"tests marked gpu: {len(gpu)}; run here without one, on the stand-in: {len(gpu) - len(hardware)}"
    yield f"tests that only a GPU can run: {len(hardware)}"
