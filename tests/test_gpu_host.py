"""What a step on a GPU costs the host, counted in calls of Python and of C functions, with a bound for each kind. Marked `gpu`.

Time itself is no test of a shared machine; the calls are the same on every one.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import backends
from gpuopt.backends import numba_cuda

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

    class Silent:
        def __init__(self, dispatcher: Any) -> None:
            self.dispatcher = dispatcher

        def __getitem__(self, configuration: Any) -> Any:
            return self.dispatcher[configuration]

    kernel, results = numba_cuda.Kernel, []
    for silent in (False, True):
        if silent:
            monkeypatch.setattr(numba_cuda, "Kernel", lambda dispatcher, *more: kernel(Silent(dispatcher), *more))
        backends.get.cache_clear()
        params, grads = arrays(2), arrays(2)
        for norm in (None, 1.0):
            opt = gpuopt.AdamW(params, backend="numba-cuda", max_grad_norm=norm)
            opt.step(grads)
            opt.step(grads)
        results.append([p.get().tobytes() for p in params])
    backends.get.cache_clear()
    assert results[0] == results[1]
