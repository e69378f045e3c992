"""A model of what several GPUs add to a step: data parallel, ZeRO-1 and FSDP on 8 to 16,384 of them, and how far to believe it.

    python benchmarks/distributed_cost.py            the model: results/distributed_cost.csv and .png
    python benchmarks/distributed_cost.py --measure  and the same model of two to four processes on this machine beside what they
                                                     take: results/distributed_measured.csv

An exchange of B bytes takes latency + B / bandwidth. On this machine both are fitted to a sweep of sizes, and steps are predicted
from them; on GPUs both are assumptions, below. No GPU number is measured here.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from gpuopt import drawing
from gpuopt.bench.machine import commit, device_name

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BUCKET = 32 * 2**20
GPUS = [2**k for k in range(3, 15)]
# Bytes a parameter of AdamW's two states, by format, and of gradient and parameter as they travel.
STATES = {"float32": 8.0, "bfloat16": 4.0, "int8": 2.06}
TRAVEL = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Assumptions:
    """A node of 8 GPUs and the network between nodes, about that of H100s with one 400 Gbit/s adapter each; a model of language."""

    parameters: float = 8e9
    tokens: int = 8192  # of one GPU in a step
    flops: float = 4e14  # that a GPU does of its 1e15 in bfloat16
    node: int = 8
    node_bandwidth: float = 3.6e11  # bytes a second of a GPU to the others of its node, of 450e9 on paper
    node_latency: float = 3e-6  # of one hop
    net_bandwidth: float = 4.0e10  # of a GPU to other nodes, of 50e9 on paper
    net_latency: float = 1e-5
    memory_bandwidth: float = 3.0e12
    launch: float = 1e-5  # of each collective


@dataclass
class Cost:
    """Of one step: bytes over a GPU's slowest link, seconds of exchanges, those of them that nothing hides, of the update; bytes of
    states that a GPU keeps.
    """

    run: str
    date: str
    commit: str
    engine: str
    state_format: str
    gradient: str
    gpus: int
    link_bytes: float
    exchange_s: float
    exposed_s: float
    update_s: float
    compute_s: float
    state_bytes: float


def half(total: float, gpus: int, a: Assumptions) -> tuple[float, float]:
    """Bytes over the slowest link, and seconds, of a reduce-scatter or an all-gather: inside of nodes first, then each GPU with
    those of its place in other nodes, by the quicker of a ring and a tree.
    """
    inside, nodes = min(gpus, a.node), max(1, gpus // a.node)
    near = (inside - 1) / inside * total
    far = (nodes - 1) / nodes * total / inside
    hops = min(nodes - 1, math.ceil(math.log2(nodes)) if nodes > 1 else 0)
    buckets = math.ceil(total / BUCKET)
    latency = a.launch + a.node_latency * (inside - 1) + a.net_latency * hops
    seconds = near / a.node_bandwidth + far / a.net_bandwidth + buckets * latency
    return (far if nodes > 1 else near), seconds


def cost(engine: str, state_format: str, gradient: str, gpus: int, a: Assumptions, common: Mapping[str, str]) -> Cost:
    """Parameters of 16 bits travel as such; gradients as `gradient` says."""
    grads, params = a.parameters * TRAVEL[gradient], a.parameters * 2
    part = 1 if engine == "data parallel" else gpus
    touched = (2 * STATES[state_format] + TRAVEL[gradient] + 2 * 2) * a.parameters / part
    update = touched / a.memory_bandwidth
    forward = 2 * a.parameters * a.tokens / a.flops
    link_g, time_g = half(grads, gpus, a)
    link_p, time_p = half(params, gpus, a)
    if engine == "data parallel":  # both halves of an all-reduce, behind the backward pass
        link, exchange, exposed = 2 * link_g, 2 * time_g, max(0.0, 2 * time_g - 2 * forward)
    elif engine == "ZeRO-1":  # the gather of parameters hides behind the next forward pass at best; here it does not
        link, exchange, exposed = link_g + link_p, time_g + time_p, max(0.0, time_g - 2 * forward) + time_p
    else:  # FSDP: parameters twice, for both passes, gradients once
        link, exchange = link_g + 2 * link_p, time_g + 2 * time_p
        exposed = max(0.0, time_p - forward) + max(0.0, time_p + time_g - 2 * forward)
    states = STATES[state_format] * a.parameters / part
    return Cost(
        **common, engine=engine, state_format=state_format, gradient=gradient, gpus=gpus, link_bytes=link, exchange_s=exchange,
        exposed_s=exposed, update_s=update, compute_s=3 * forward, state_bytes=states,
    )  # fmt: skip


def costs(a: Assumptions, common: Mapping[str, str]) -> list[Cost]:
    engines, each = ("data parallel", "ZeRO-1", "FSDP"), [(s, g) for s in STATES for g in TRAVEL]
    return [cost(engine, s, g, n, a, common) for engine in engines for s, g in each for n in GPUS]


def write(rows: Iterable[Any], path: Path) -> None:
    """Rows of one kind as a table, which is written anew."""
    made = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(made[0])], lineterminator="\n")
        writer.writeheader()
        for row in made:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(row).items()})


def draw(rows: list[Cost], a: Assumptions, path: Path) -> Path:
    """What a step takes beyond its forward and backward pass, and the states of a GPU, by the number of GPUs."""
    made = drawing.figure(12, 4.6)
    left, right = made.subplots(1, 2)
    engines = list(dict.fromkeys(r.engine for r in rows))
    for engine in engines:
        for gradient, line in (("float32", "--"), ("bfloat16", "-")):
            found = [r for r in rows if (r.engine, r.gradient, r.state_format) == (engine, gradient, "float32")]
            colour = f"C{engines.index(engine)}"
            seconds = [1e3 * (r.exposed_s + r.update_s) for r in found]
            left.plot(GPUS, seconds, line, color=colour, label=f"{engine}, gradients in {gradient}")
        for fmt, line in (("float32", "-"), ("int8", ":")):
            found = [r for r in rows if (r.engine, r.gradient, r.state_format) == (engine, "bfloat16", fmt)]
            right.plot(
                GPUS, [r.state_bytes / 1e9 for r in found], line, color=colour, label=f"{engine}, states in {fmt}"
            )
    left.set(xlabel="GPUs", ylabel="ms a step that nothing hides", xscale="log", yscale="log")
    right.set(xlabel="GPUs", ylabel="GB of states on a GPU", xscale="log", yscale="log")
    of = f"AdamW, {a.parameters / 1e9:.0f}e9 parameters"
    for axes, title in (
        (left, f"{of}, {a.tokens:,} tokens a GPU: a model, nothing measured"),
        (right, f"{of}: states of a GPU"),
    ):
        drawing.plain(axes, title)
        axes.legend(fontsize=7)
    return drawing.save(made, path)


# ---------------------------------------------------------------------------------------------------- this machine


@dataclass
class Measured:
    """kind: who sends; load: of the machine when it began, more than 0 where others worked too; of an operation or a step: what
    the model says and what was measured, in seconds.
    """

    run: str
    date: str
    commit: str
    device: str
    load: float
    kind: str
    processes: int
    what: str
    bytes: int
    latency_s: float
    bandwidth: float
    predicted_s: float
    measured_s: float


def fitted(seconds: Mapping[int, float]) -> tuple[float, float]:
    """Latency, and seconds a byte, that fit times by size with the least relative errors; neither is negative."""
    sizes, times = np.array(list(seconds), float), np.array(list(seconds.values()))
    columns = np.stack([1 / times, sizes / times], 1)
    latency, each = np.linalg.lstsq(columns, np.ones(len(times)), rcond=None)[0]
    return max(0.0, float(latency)), max(0.0, float(each))


def started(kind: str, size: int) -> dict[str, Any]:
    """What so many processes measured."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    env = {**os.environ, **one, "PYTHONPATH": str(HERE.parent)}
    program = [sys.executable, str(HERE / "distributed_measured.py")]
    if kind == "MPI":
        beside = Path(sys.executable).with_name("mpirun")
        mpirun = str(beside) if beside.exists() else shutil.which("mpirun") or "mpirun"
        command = [mpirun, "--oversubscribe", "--allow-run-as-root", "-n", str(size), *program]
        return parsed(subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=300).stdout)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    ranks = [env | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    running = [subprocess.Popen(program, env=each, stdout=subprocess.PIPE, text=True) for each in ranks]
    return parsed("".join(process.communicate(timeout=300)[0] for process in running))


def parsed(said: str) -> dict[str, Any]:
    return dict(json.loads(next(line for line in said.splitlines() if line.startswith("{"))))


def checked(kind: str, found: Mapping[str, Any], common: Mapping[str, str]) -> list[Measured]:
    """Each exchange beside the fit, and each step beside what follows from the fits, the update alone and a copy."""
    size, steps, fits, rows = found["size"], found["steps"], {}, []
    first = {"kind": kind, "processes": size, "device": device_name("cpu"), "load": found["load"]} | dict(common)
    for name, seconds in found["exchanges"].items():
        of_sizes = {int(k): v for k, v in seconds.items()}
        fits[name] = latency, each = fitted(of_sizes)
        for nbytes, took in of_sizes.items():
            link = {"latency_s": latency, "bandwidth": 1 / each if each else math.inf}
            rows.append(
                Measured(**first, what=name, bytes=nbytes, **link, predicted_s=latency + each * nbytes, measured_s=took)
            )
    total = 4 * 2**20

    def exchange(name: str) -> float:
        latency, each = fits[name]
        return latency * math.ceil(total / BUCKET) + each * total

    predicted = {
        "data_parallel": steps["copy"] + exchange("all_reduce") + steps["alone"],
        "zero1": 2 * steps["copy"] + exchange("reduce_scatter") + steps["alone"] / size + exchange("all_gather"),
    }
    for name, value in predicted.items():
        rows.append(
            Measured(
                **first, what=name, bytes=total, latency_s=0.0, bandwidth=0.0, predicted_s=value, measured_s=steps[name]
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="on this machine too, in a minute or two")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of tables and picture")
    given = parser.parse_args()
    now = datetime.now(UTC)
    common = {"run": now.strftime("%Y%m%dT%H%M%SZ"), "date": now.date().isoformat(), "commit": commit()}
    rows = costs(Assumptions(), common)
    write(rows, given.out / "distributed_cost.csv")
    draw(rows, Assumptions(), given.out / "distributed_cost.png")
    if given.measure:
        measured = [
            row for kind in ("MPI", "gloo") for n in (2, 3, 4) for row in checked(kind, started(kind, n), common)
        ]
        write(measured, given.out / "distributed_measured.csv")
        for row in measured:
            if row.what in ("data_parallel", "zero1"):
                ratio = row.measured_s / row.predicted_s
                print(
                    f"{row.kind} {row.processes} {row.what}: {1e3 * row.measured_s:.1f} ms, {ratio:.2f} of what was predicted"
                )


if __name__ == "__main__":
    main()
