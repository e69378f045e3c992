"""What a step on a GPU costs the host, counted in calls of Python and of C functions, with a bound for each kind. Marked `gpu`.

Time itself is no test of a shared machine; the calls are the same on every one.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import backends
from gpuopt.compiler import cache, numba_gpu

pytestmark = pytest.mark.gpu
STAND_IN = "/tests/driver/"  # what it does is not the step's doing


def calls(work: Callable[[], None]) -> tuple[int, int]:
    """Calls of Python functions and of C functions."""
    found: Counter[str] = Counter()
    inside = 0

    def see(frame: Any, event: str, argument: Any) -> None:
        nonlocal inside
        if STAND_IN in frame.f_code.co_filename:
            inside += (event == "call") - (event == "return")
        elif not inside:
            found[event] += 1

    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found["call"] - 1, found["c_call"] - 1  # `work` itself, and the end


def arrays(count: int) -> list[Any]:
    import cupy

    return [cupy.asarray(np.full(300, k + 1.0, np.float32)) for k in range(count)]


BACKENDS = ("cupy", "numba-cuda")
# Options, and the most calls of Python and of C, by any number of tensors. One launch, or two or three; no upload where nothing
# changes.
KINDS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "plain": ({}, (90, 80)),
    "norm": ({"max_grad_norm": 1.0}, (100, 100)),
    "skip": ({"skip_nonfinite": True}, (100, 90)),
    "capturable": ({"capturable": True}, (95, 90)),
}
NEW_RATE = (310, 320)  # what changed is checked: every hyperparameter of the group, the modes of decay among them


def stepped(kind: str, backend: str, count: int) -> tuple[Any, list[Any]]:
    """An optimizer that has made more steps than there are pinned buffers, and its gradients."""
    opt, grads = gpuopt.AdamW(arrays(count), backend=backend, **KINDS[kind][0]), arrays(count)
    for _ in range(20):
        opt.step(grads)
    return opt, grads


@pytest.mark.parametrize("count", [1, 150])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_calls_of_a_step(kind: str, backend: str, count: int) -> None:
    opt, grads = stepped(kind, backend, count)
    found, most = calls(lambda: opt.step(grads)), KINDS[kind][1]
    assert found[0] <= most[0] and found[1] <= most[1], (found, most)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_makes_at_most_one_upload(kind: str, backend: str) -> None:
    """None where nothing has changed, for step counts are advanced on the GPU; one where a rate has, for all launches together."""
    opt, grads = stepped(kind, backend, 3)
    runtime = backends.get(backend, "cuda:0").runtime
    uploads: list[Any] = []
    upload = runtime.upload
    runtime.upload = lambda *given: (uploads.append(given), upload(*given))
    try:
        for rate, expected in ((None, 0), (0.5, kind != "plain"), (0.25, kind != "plain"), (0.25, 0)):
            if rate is not None:
                opt.param_groups[0]["lr"] = rate
            uploads.clear()
            opt.step(grads)
            assert len(uploads) == expected, rate
    finally:
        del runtime.upload
    most, rates = KINDS[kind][1], iter((0.1, 0.2))

    def step() -> None:
        opt.param_groups[0]["lr"] = next(rates)
        opt.step(grads)

    step()
    found = calls(step)
    assert found[0] <= most[0] + NEW_RATE[0] and found[1] <= most[1] + NEW_RATE[1], (found, most)


def test_numba_launches_where_it_does_not_say_what_it_has_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba's own way to launch, which is slower, gives the same bits."""

    results = []
    for silent in (False, True):
        if silent:
            monkeypatch.setattr(numba_gpu, "_loaded", lambda data: None)
        backends.get.cache_clear()
        params, grads = arrays(2), arrays(2)
        for norm in (None, 1.0):
            opt = gpuopt.AdamW(params, backend="numba-cuda", max_grad_norm=norm)
            opt.step(grads)
            opt.step(grads)
        results.append([p.get().tobytes() for p in params])
    backends.get.cache_clear()
    assert results[0] == results[1]


def test_numba_takes_from_disk_what_it_has_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Update, sums and what is done once a tensor; where the driver does not take an entry, it is compiled again."""
    monkeypatch.setenv("GPUOPT_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.delenv("GPUOPT_CACHE", raising=False)
    compiled, key, results = numba_gpu._compiled, cache.key, []
    counts: list[int] = []

    def counted(*given: Any) -> Any:
        counts[-1] += 1
        return compiled(*given)

    monkeypatch.setattr(numba_gpu, "_compiled", counted)
    for _ in range(3):
        counts.append(0)
        backends.get.cache_clear()
        params, grads = arrays(2), arrays(2)
        gpuopt.LAMB(params, backend="numba-cuda").step(grads)
        results.append([p.get().tobytes() for p in params])
        if len(counts) == 2:
            monkeypatch.setattr(cache, "key", lambda *parts: key("another", *parts))
    backends.get.cache_clear()
    assert counts[0] >= 4 and counts[1] == 0 and counts[2] == counts[0]
    assert results[0] == results[1] == results[2]
