"""AdamW with states in 8 bits beside bitsandbytes' on a CPU: how far parameters are from those of float32, how long steps take.

    python -m pip install --no-deps bitsandbytes==0.50.0
    python benchmarks/bench_eight_bits.py --out benchmarks/results/eight_bits.csv

Run by hand; bitsandbytes is left out where it is missing. The distance is the mean of the absolute difference to torch's AdamW in
float32 over all steps, on two problems, whose noise and batches are the same for all. `--only cache` measures steps of few
parameters by one thread, the least of many: what arithmetic takes, whatever else the machine does. Rows are only ever added.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numba
import torch
from torch import Tensor

import gpuopt.torch
from gpuopt.bench.machine import commit, device_name
from gpuopt.demos.text_model import Transformer, batch, loss_of, text

LR, DECAY = 1e-3, 0.01
COLUMNS = ("date", "machine", "commit", "what", "optimizer", "threads", "parameters", "steps", "value", "unit")
MAKERS: dict[str, Callable[[list[Tensor]], Any]] = {
    "torch float32": lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=DECAY),
    "gpuopt float32": lambda p: gpuopt.torch.AdamW(p, lr=LR, weight_decay=DECAY),
    "gpuopt int8": lambda p: gpuopt.torch.AdamW(p, lr=LR, weight_decay=DECAY, state_format="int8"),
    "gpuopt int4": lambda p: gpuopt.torch.AdamW(p, lr=LR, weight_decay=DECAY, state_format="int4"),
}
if find_spec("bitsandbytes"):
    import bitsandbytes

    MAKERS[f"bitsandbytes {bitsandbytes.__version__} 8bit"] = lambda p: bitsandbytes.optim.AdamW8bit(
        p, lr=LR, weight_decay=DECAY
    )
SPLIT: dict[str, Callable[[list[Tensor]], Any]] = {
    f"gpuopt {kind} split8": lambda p, kind=kind: gpuopt.torch.AdamW(
        p, lr=LR, weight_decay=DECAY, state_format=kind, param_format="split8"
    )
    for kind in ("float32", "int8", "int4")
}
IN_CACHE = 16 * 16384  # parameters


Gradient = Callable[[list[Tensor]], Any]  # puts the gradient of one step at these weights into their `.grad`


def quadratic() -> tuple[list[Tensor], Iterator[Gradient]]:
    """A quadratic function whose curvatures differ a thousandfold within every block, with noise."""
    made = torch.Generator().manual_seed(0)
    start, goal = (torch.randn(512, 512, generator=made) for _ in range(2))
    curvature = 10 ** (3 * torch.rand(512, 512, generator=made) - 3)

    def steps() -> Iterator[Gradient]:
        while True:
            noise = 0.05 * torch.randn(512, 512, generator=made) * curvature

            def gradient(weights: list[Tensor], noise: Tensor = noise) -> None:
                weights[0].grad = curvature * (weights[0].detach() - goal) + noise

            yield gradient

    return [start], steps()


def transformer() -> tuple[list[Tensor], Iterator[Gradient]]:
    """The model and text of `bench_formats.py`."""
    made, (train, _) = torch.Generator().manual_seed(0), text()
    model = Transformer(112, 4, made)
    own = list(model.parameters())

    def steps() -> Iterator[Gradient]:
        while True:
            chosen = batch(train, made)

            def gradient(weights: list[Tensor], chosen: Any = chosen) -> None:
                with torch.no_grad():
                    for p, w in zip(own, weights, strict=True):
                        p.copy_(w)
                for w, g in zip(weights, torch.autograd.grad(loss_of(model, chosen), own), strict=True):
                    w.grad = g

            yield gradient

    return [p.detach().clone() for p in own], steps()


def distances(
    problem: Callable[[], tuple[list[Tensor], Iterator[Gradient]]], steps: int
) -> tuple[dict[str, float], int]:
    """Of every maker but the first from the first, over all steps and all matrices; and how many parameters these have."""
    start, gradients = problem()
    params = {name: [torch.nn.Parameter(p.clone()) for p in start] for name in MAKERS}
    optimizers = {name: MAKERS[name](p) for name, p in params.items()}
    first, total = next(iter(MAKERS)), dict.fromkeys(MAKERS, 0.0)
    count = sum(p.numel() for p in start if p.ndim > 1)
    for _, gradient in zip(range(steps), gradients, strict=False):
        for name, p in params.items():
            gradient(p)
            optimizers[name].step()
        for name, p in params.items():
            pairs = zip(p, params[first], strict=True)
            total[name] += sum((a - b).abs().sum().item() for a, b in pairs if a.ndim > 1) / count / steps
    return {name: value for name, value in total.items() if name != first}, count


def seconds(name: str, count: int, dtype: torch.dtype, repeats: int = 9) -> list[float]:
    """Of steps of `count` parameters, but for the first two, in order."""
    params = [torch.nn.Parameter(torch.randn(count // 16384, 4096).mul_(0.02).to(dtype)) for _ in range(4)]
    for p in params:
        p.grad = torch.randn(p.shape).mul_(0.01).to(dtype)
    optimizer = (MAKERS | SPLIT)[name](params)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    return sorted(times[2:])


def in_cache() -> Iterator[tuple[str, str, float]]:
    """Format of the parameters, optimizer, and nanoseconds a parameter of the fastest of 1,000 steps by one thread."""
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    for name in (*MAKERS, *SPLIT):
        for dtype in (torch.float32, torch.bfloat16):
            if "gpuopt" in name and (name in MAKERS or dtype is torch.bfloat16):
                kind = str(dtype).removeprefix("torch.")
                yield kind, name, seconds(name, IN_CACHE, dtype, 1000)[0] / IN_CACHE * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "eight_bits.csv")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=64_000_000)
    parser.add_argument("--only", choices=("distance", "step", "cache"))
    options = parser.parse_args()
    head = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), device_name("cpu"), commit()
    rows = []
    for problem in (quadratic, transformer) if options.only in (None, "distance") else ():
        found, count = distances(problem, options.steps)
        for name, value in found.items():
            of = f"distance, {problem.__name__}", name, torch.get_num_threads(), count, options.steps
            rows.append((*head, *of, f"{value:.4g}", "absolute"))
    for name in MAKERS if options.only in (None, "step") else ():
        for dtype in (torch.float32, torch.bfloat16):
            if "bitsandbytes" in name and dtype is torch.bfloat16:
                continue  # its CPU path is for float32 parameters here
            took = seconds(name, options.parameters, dtype)[3] / options.parameters * 1e9
            what = f"step, {str(dtype).removeprefix('torch.')}"
            rows.append(
                (*head, what, name, torch.get_num_threads(), options.parameters, 1, f"{took:.4g}", "ns a parameter")
            )
            print(*rows[-1], sep=", ", flush=True)
    for kind, name, took in in_cache() if options.only in (None, "cache") else ():
        rows.append((*head, f"step in cache, {kind}", name, 1, IN_CACHE, 1, f"{took:.4g}", "ns a parameter"))
    fresh = not options.out.exists()
    with options.out.open("a", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([COLUMNS, *rows] if fresh else rows)
    for row in rows:
        print(*row[3:], sep=", ")


if __name__ == "__main__":
    main()
