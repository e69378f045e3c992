"""The CSV of measurements: one row each, only ever added to. Written by `measure`, read by `plot`, `compare` and `report`; other
tables, of the folder `benchmarks`, are written by the same function.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gpuopt.errors import GpuoptError

NAME = "measurements.csv"


@dataclass
class Row:
    """One provider on one case. Times in microseconds, rates in GB/s (1e9); None where something was not measured.

    p20, p50, p80, min: percentiles and least of the samples; on a busy machine only the least says something.
    status: "ok"; "wrong" (the result differs from float64: no time is given); "failed" (an exception, in `note`).
    error: relative error of the parameters against float64. bytes: the least that must move. share: of the bandwidth of a
    large copy (on a CPU: a pass in place) measured in turn with it. extra_bytes: memory of a step beyond its arrays. load:
    share of the machine that other processes took during the samples that count.
    """

    run: str
    date: str
    commit: str
    device: str
    driver: str
    cuda: str
    versions: str
    suite: str
    case: str
    provider: str
    version: str
    optimizer: str
    dtype: str
    state_format: str
    param_format: str
    tensors: int
    parameters: int
    status: str = "ok"
    note: str = ""
    error: float | None = None
    samples: int = 0
    min_us: float | None = None
    p20_us: float | None = None
    p50_us: float | None = None
    p80_us: float | None = None
    bytes: int | None = None
    gbps: float | None = None
    copy_gbps: float | None = None
    share: float | None = None
    launches: int | None = None
    host_us: float | None = None
    allocations: int | None = None
    extra_bytes: int | None = None
    load: float | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What must agree for two rows to be the same measurement."""
        return (
            *(self.device, self.suite, self.case, self.provider),
            *(self.optimizer, self.dtype, self.state_format, self.param_format),
        )

    @property
    def subject(self) -> tuple[str, ...]:
        """What providers that are compared with each other share."""
        return (self.run, self.device, self.suite, self.case, *self.key[4:])


HEADER = [field.name for field in fields(Row)]
_INTEGERS = {"tensors", "parameters", "samples", "bytes", "launches", "allocations", "extra_bytes"}
_FLOATS = {"error", "min_us", "p20_us", "p50_us", "p80_us", "gbps", "copy_gbps", "share", "host_us", "load"}


def text(value: Any) -> str:
    """A field: nothing for None, six digits for a float."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def append(path: Path, rows: Sequence[Any]) -> None:
    """Add rows, all of one dataclass, to the end of a CSV file, made with its fields as a header where there is none. Raises
    GpuoptError for another header.
    """
    if not rows:
        return
    header = [field.name for field in fields(rows[0])]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists() or not path.stat().st_size
    if not fresh:
        with path.open(newline="") as file:
            if next(csv.reader(file)) != header:
                raise GpuoptError(
                    f"{path}: its columns are not those of this version; write to another folder with --out"
                )
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow(header)
        for row in rows:
            writer.writerow([text(value) for value in asdict(row).values()])


def read(path: Path) -> list[Row]:
    """The rows of a CSV file, oldest first; columns it lacks are None. Raises GpuoptError where there is none."""
    if not path.exists():
        raise GpuoptError(f"{path}: no such file; measure first, or name its folder with --out")
    with path.open(newline="") as file:
        return [_row(record) for record in csv.DictReader(file)]


def _row(record: dict[str, str]) -> Row:
    values: dict[str, Any] = {}
    for name in HEADER:
        given = record.get(name) or ""
        if name in _INTEGERS:
            values[name] = int(given) if given else 0 if name in ("tensors", "parameters", "samples") else None
        elif name in _FLOATS:
            values[name] = float(given) if given else None
        else:
            values[name] = given
    return Row(**values)


def newest(rows: list[Row], device: str, suite: str) -> list[Row]:
    """The good rows of a suite on a device: of each case those of the last run that measured it, so that they compare."""
    found = [r for r in rows if r.device == device and r.suite == suite and r.status == "ok" and r.p50_us]
    last = {r.subject[1:]: r.run for r in found}
    return [r for r in found if r.run == last[r.subject[1:]]]
