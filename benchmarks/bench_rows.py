"""A step of some rows of a table beside a step of all of them, and beside torch.optim.SparseAdam.

    python benchmarks/bench_rows.py  # 3 % of 1e6 x 16 float32, Adam; a row goes to benchmarks/results/rows.csv
    python benchmarks/bench_rows.py --rows 10000000 --width 3 --share 0.05 --out rows.csv

Steps take other rows each time, in ascending order, so that these are seldom in a cache; gradients are of these rows only. The
three take turns in one process, and the least time of each counts, for other processes only ever make one longer. Rows of the table
are only ever added.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gpuopt
from gpuopt.bench.machine import commit, device_name
from gpuopt.bench.rows import append

RESULTS = Path(__file__).parent / "results" / "rows.csv"
SETS = 16  # of rows, in turns


@dataclass(frozen=True)
class Row:
    """Milliseconds of a step. of_share: of some rows over their share of those of all; times_faster: SparseAdam's over ours."""

    date: str
    machine: str
    commit: str
    table: str
    share: float
    full_ms: float
    rows_ms: float
    sparse_adam_ms: float
    of_share: float
    times_faster: float


def steps(rows: int, width: int, share: float) -> list[tuple[Callable[[], Any], int]]:
    """All rows, some, and some by SparseAdam, each with how often it is taken in a round."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal((rows, width), np.float32)
    every = rng.standard_normal((rows, width), np.float32)
    sets = [np.sort(rng.choice(rows, int(rows * share), replace=False)) for _ in range(SETS)]
    given = [(numbers, np.ascontiguousarray(every[numbers])) for numbers in sets]
    full, some = gpuopt.Adam(start.copy()), gpuopt.Adam(start.copy())
    weight = torch.nn.Parameter(torch.from_numpy(start))
    theirs = torch.optim.SparseAdam([weight])
    gradients = [
        torch.sparse_coo_tensor(torch.from_numpy(n)[None], torch.from_numpy(g), start.shape).coalesce()
        for n, g in given
    ]
    ours, others = cycle(given), cycle(gradients)

    def some_rows() -> None:
        numbers, gradient = next(ours)
        some.step(gradient, rows=numbers)

    def sparse_adam() -> None:
        weight.grad = next(others)
        theirs.step()

    return [(lambda: full.step(every), 1), (some_rows, 4), (sparse_adam, 1)]


def least(turns: list[tuple[Callable[[], Any], int]], rounds: int) -> list[float]:
    """The least milliseconds of each, behind a round that compiles and allocates."""
    found = [float("inf")] * len(turns)
    for number in range(rounds + 1):
        for k, (step, often) in enumerate(turns):
            for _ in range(often):
                begin = time.perf_counter()
                step()
                if number:
                    found[k] = min(found[k], 1e3 * (time.perf_counter() - begin))
    return found


def main(arguments: list[str] | None = None) -> Row:
    """Measure, print and write a row."""
    parser = argparse.ArgumentParser(description="steps of some rows")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.03)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", "Sparse invariant checks")
    full, some, sparse = least(steps(options.rows, options.width, options.share), options.rounds)
    table = f"{options.rows} x {options.width} float32"
    made = datetime.now(UTC).strftime("%Y-%m-%d"), device_name("cpu"), commit(), table, options.share
    row = Row(*made, full, some, sparse, some / (options.share * full), sparse / some)
    append(options.out, [row])
    print(row)
    return row


if __name__ == "__main__":
    main()
