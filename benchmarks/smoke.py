"""One minute on a GPU that says what is broken there: every backend, gpuopt.torch, and a captured step, each by itself.

Started by `run_gpu.sh` before everything else; runs by itself too. A line for each check; exits 1 where one fails, 0 otherwise,
also where a library is not installed, which its line says.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

import gpuopt

Place = Callable[[Any], Any]
SHAPES = ((), (3,), (257,), (70_000,))


def numbers(seed: int) -> list[Any]:
    """Tensors of every shape."""
    source = np.random.default_rng(seed)
    return [np.asarray(source.normal(size=shape), np.float32) for shape in SHAPES]


def agrees(backend: str, place: Place, host: Place, **options: Any) -> None:
    """Raise AssertionError unless three steps of AdamW on arrays of a GPU give the bits of NumPy's."""
    expected, params = numbers(0), [place(a) for a in numbers(0)]
    reference = gpuopt.AdamW(expected, lr=0.1, backend="numpy", **options)
    tested = gpuopt.AdamW(params, lr=0.1, backend=backend, **options)
    for step in range(1, 4):
        reference.step(numbers(step))
        tested.step([place(g) for g in numbers(step)])
    wrong = sum(a.tobytes() != host(b).tobytes() for a, b in zip(expected, params, strict=True))
    assert wrong == 0, f"{wrong} of {len(params)} tensors differ from NumPy's"


def with_cupy(backend: str, **options: Any) -> None:
    cupy = import_module("cupy")
    agrees(backend, cupy.asarray, lambda array: array.get(), **options)


def with_numba(**options: Any) -> None:
    cuda = import_module("numba.cuda")
    agrees("numba-cuda", cuda.to_device, lambda array: array.copy_to_host(), **options)


def torch_model() -> tuple[Any, Any, Any]:
    torch = import_module("torch")
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 8, device="cuda")
    return torch, model, torch.ones(4, 64, device="cuda")


def with_torch() -> None:
    """Five steps beside torch's own."""
    torch, ours, x = torch_model()
    theirs = torch_model()[1]
    made = import_module("gpuopt.torch").AdamW(ours.parameters(), lr=1e-2)
    usual = torch.optim.AdamW(theirs.parameters(), lr=1e-2)
    for _ in range(5):
        for model, opt in ((ours, made), (theirs, usual)):
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()
    far = max(float((a - b).abs().max()) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert far < 1e-5, f"{far} away from torch.optim.AdamW"


def with_a_graph() -> None:
    """torch's recipe: warm up, capture forward, backward and step, replay."""
    torch, model, x = torch_model()
    opt = import_module("gpuopt.torch").AdamW(model.parameters(), lr=1e-2, capturable=True)

    def step() -> Any:
        opt.zero_grad(set_to_none=True)
        loss = model(x).square().mean()
        loss.backward()
        opt.step()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    seen = []
    for _ in range(3):
        graph.replay()
        seen.append(float(loss))
    assert seen == sorted(seen, reverse=True) and seen[0] > seen[-1], f"losses {seen} do not fall"


CHECKS: tuple[tuple[str, str, Callable[[], None]], ...] = (
    ("cupy", "cupy", lambda: with_cupy("cupy")),
    ("cupy, a norm", "cupy", lambda: with_cupy("cupy", max_grad_norm=1.0, skip_nonfinite=True)),
    ("cupy, bfloat16 states", "cupy", lambda: with_cupy("cupy", state_format="bfloat16")),
    ("numba-cuda on CuPy's arrays", "cupy", lambda: with_cupy("numba-cuda")),
    ("numba-cuda", "numba_cuda", with_numba),
    ("numba-cuda, a norm", "numba_cuda", lambda: with_numba(max_grad_norm=1.0)),
    ("gpuopt.torch", "torch", with_torch),
    ("gpuopt.torch in a CUDA graph", "torch", with_a_graph),
)


def absent(package: str) -> str | None:
    """Why a library cannot be asked; None where it can. A torch that is made for GPUs and finds none is asked."""
    if find_spec(package) is None:
        return "not installed"
    if package == "torch" and import_module("torch").version.cuda is None:
        return "installed without CUDA"
    return None


def main(checks: tuple[tuple[str, str, Callable[[], None]], ...] = CHECKS) -> int:
    """Run the checks, whatever the others do."""
    failed = 0
    for name, package, check in checks:
        why = absent(package)
        if why is not None:
            print(f"{why}: {package}, for {name}")
            continue
        try:
            check()
        except Exception as error:
            failed += 1
            at = traceback.extract_tb(error.__traceback__)[-1]
            print(f"BROKEN: {name}: {type(error).__name__}: {error} ({at.filename}, line {at.lineno})", flush=True)
        else:
            print(f"works: {name}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
