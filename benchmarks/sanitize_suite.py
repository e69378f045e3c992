"""A few steps of every optimizer on small, odd tensors, for compute-sanitizer: every kernel once, each array an allocation.

Started by `run_gpu.sh` under memcheck and racecheck; runs by itself too, on fewer sizes or optimizers where it is told so.
Compares with the NumPy backend, bit for bit, so that a sanitizer that changes nothing but timing also finds wrong results. Exits
0 without a GPU, saying so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

import gpuopt
from gpuopt.bench.suites import hyper
from gpuopt.formats.dtypes import numpy_dtype

SIZES = (1, 3, 255, 4097, 20_011)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"max_grad_norm": 1.0, "skip_nonfinite": True, "l1": 1e-3, "clip_value": 0.5},
)


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser(description="Small steps for compute-sanitizer.")
    top.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="elements of the tensors")
    top.add_argument("--only", nargs="+", default=gpuopt.optimizers(), metavar="NAME", help="these optimizers")
    return top


def arrays(seed: int, dtype: str, sizes: Sequence[int]) -> list[Any]:
    """Tensors of every size."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(n).astype(numpy_dtype(dtype)) for n in sizes]


def difference(name: str, backend: str, dtype: str, options: dict[str, Any], sizes: Sequence[int], cupy: Any) -> int:
    """How many bytes differ from the NumPy backend after two steps."""
    host, grads = arrays(0, dtype, sizes), arrays(1, dtype, sizes)
    device, device_grads = [cupy.asarray(a) for a in host], [cupy.asarray(a) for a in grads]
    reference = gpuopt.create(name, host, backend="numpy", **hyper(name), **options)
    tested = gpuopt.create(name, device, backend=backend, **hyper(name), **options)
    for _ in range(2):
        reference.step(grads)
        tested.step(device_grads)
    cupy.cuda.Device().synchronize()
    return sum(int((d.get().view(np.uint8) != h.view(np.uint8)).sum()) for d, h in zip(device, host, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Every optimizer, dtype and option on every usable GPU backend; 1 where a result differs."""
    chosen = parser().parse_args(argv)
    usable = [name for name in ("cupy", "numba-cuda") if gpuopt.backends()[name] is None]
    try:
        import cupy
    except ImportError:
        usable = []
    if not usable:
        print("skipped: no GPU backend can be used here")
        return 0
    cupy.cuda.set_allocator(None)  # no memory pool: a neighbour's memory would hide an access out of bounds
    wrong = runs = 0
    for backend in usable:
        for name in chosen.only:
            for dtype in ("float32", "bfloat16") if backend == "cupy" else ("float32",):
                for options in OPTIONS:
                    count = difference(name, backend, dtype, options, chosen.sizes, cupy)
                    runs, wrong = runs + 1, wrong + bool(count)
                    if count:
                        print(f"differs from numpy: {name} on {backend}, {dtype}, {options}: {count} bytes")
    print(f"{runs} runs on {', '.join(usable)}, {wrong} differ")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
