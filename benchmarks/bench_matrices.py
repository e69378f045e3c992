"""A step of Muon on the matrices of GPT-2-small beside torch.optim.Muon, by coefficients.

    python benchmarks/bench_matrices.py                       # all 48 matrices; rows go to benchmarks/results/matrices.csv
    python benchmarks/bench_matrices.py --layers 1 --rounds 2 --out matrices.csv

All take turns in one process, and the least time of each counts. torch multiplies in bfloat16, which some processors do twice as
fast as float32 and others far slower; ours is in float32 on a CPU. Rows of the table are only ever added.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import gpuopt
import gpuopt.torch
from gpuopt.bench.machine import commit, device_name
from gpuopt.bench.rows import append

RESULTS = Path(__file__).parent / "results" / "matrices.csv"
LAYER = ((2304, 768), (768, 768), (3072, 768), (768, 3072))
SETS = ("keller", "polar_express", "cubic5")


@dataclass(frozen=True)
class Row:
    """Seconds of a step. times_faster: than torch.optim.Muon."""

    date: str
    machine: str
    torch: str
    commit: str
    matrices: int
    coefficients: str
    seconds: float
    torch_seconds: float
    times_faster: float


def parameters(layers: int, seed: int = 0) -> list[torch.nn.Parameter]:
    """Matrices with gradients."""
    made = torch.Generator().manual_seed(seed)
    found = [torch.nn.Parameter(0.02 * torch.randn(shape, generator=made)) for shape in LAYER * layers]
    for p in found:
        p.grad = 1e-3 * torch.randn(p.shape, generator=made)
    return found


def least(turns: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The least seconds of each, behind a round that compiles and allocates."""
    found = dict.fromkeys(turns, float("inf"))
    for number in range(rounds + 1):
        for name, step in turns.items():
            begin = time.perf_counter()
            step()
            if number:
                found[name] = min(found[name], time.perf_counter() - begin)
    return found


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure, print and write rows."""
    parser = argparse.ArgumentParser(description="steps of Muon")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    turns: dict[str, Callable[[], Any]] = {"torch": torch.optim.Muon(parameters(options.layers), lr=0.02).step}
    for name in SETS:
        turns[name] = gpuopt.torch.Muon(parameters(options.layers), lr=0.02, ns_coefficients=name).step
    found = least(turns, options.rounds)
    made = (
        datetime.now(UTC).strftime("%Y-%m-%d"),
        device_name("cpu"),
        torch.__version__,
        commit(),
        len(LAYER) * options.layers,
    )
    rows = [Row(*made, name, found[name], found["torch"], found["torch"] / found[name]) for name in SETS]
    append(options.out, rows)
    print(*rows, sep="\n")
    return rows


if __name__ == "__main__":
    main()
