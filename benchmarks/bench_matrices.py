"""Steps on the matrices of GPT-2-small: Muon by coefficients beside torch.optim.Muon, SOAP beside pytorch_optimizer's.

    python benchmarks/bench_matrices.py                       # all 48 matrices; rows go to benchmarks/results/matrices.csv
    python benchmarks/bench_matrices.py --layers 1 --rounds 2 --out matrices.csv
    python benchmarks/bench_matrices.py --suite soap --layers 1 --rounds 2

All take turns in one process, and the least time of each counts: of SOAP that of ten steps, since every tenth renews its bases.
torch's Muon multiplies in bfloat16, which some processors do twice as fast as float32 and others far slower; ours on a CPU in
float32. Rows of the table are only ever added.
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
    """Seconds of a step. coefficients: of Muon; times_faster: than the peer."""

    date: str
    machine: str
    torch: str
    commit: str
    matrices: int
    optimizer: str
    coefficients: str
    seconds: float
    peer: str
    peer_seconds: float
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


def muon(layers: int) -> dict[str, Callable[[], Any]]:
    """The peer, and ours by coefficients."""
    turns: dict[str, Callable[[], Any]] = {"torch.optim": torch.optim.Muon(parameters(layers), lr=0.02).step}
    for name in SETS:
        turns[name] = gpuopt.torch.Muon(parameters(layers), lr=0.02, ns_coefficients=name).step
    return turns


def soap(layers: int) -> dict[str, Callable[[], Any]]:
    """The peer and ours, both as they are by default: bases are renewed every tenth step."""
    from pytorch_optimizer import SOAP

    return {"pytorch_optimizer": SOAP(parameters(layers)).step, "": gpuopt.torch.SOAP(parameters(layers)).step}


SUITES = {"muon": ("Muon", muon, 1), "soap": ("SOAP", soap, 10)}  # title, what takes turns, steps of a turn


def several(step: Callable[[], Any], count: int) -> Callable[[], None]:
    """So many steps one after another."""

    def run() -> None:
        for _ in range(count):
            step()

    return run


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure, print and write rows."""
    parser = argparse.ArgumentParser(description="steps on matrices")
    parser.add_argument("--suite", choices=SUITES, default="muon")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    title, turns, steps = SUITES[options.suite]
    found = least({name: several(step, steps) for name, step in turns(options.layers).items()}, options.rounds)
    peer, *own = found
    today, machine = datetime.now(UTC).strftime("%Y-%m-%d"), device_name("cpu")
    rows = []
    for name in own:
        times = found[name] / steps, peer, found[peer] / steps, found[peer] / found[name]
        rows.append(Row(today, machine, torch.__version__, commit(), len(LAYER) * options.layers, title, name, *times))
    append(options.out, rows)
    print(*rows, sep="\n")
    return rows


if __name__ == "__main__":
    main()
