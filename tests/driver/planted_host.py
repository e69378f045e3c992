"""Faults planted in how states travel between host memory and a GPU: as planted.py, of waits between streams that are left out.

python -m pytest -p driver.plugin --require-gpu tests/driver/planted_host.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import gpuopt
import test_state_host
from driver.answers import ALLOCATES, WAITS, real_name
from driver.planted import check_found, failure
from driver.plugin import driver
from gpuopt import backends
from gpuopt.backends.cupy import CupyRuntime
from gpuopt.launch import ferry
from graphs import captured, new_stream

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ferry, "PORTION", test_state_host.SMALL)


def states_on_host() -> None:
    """States travel on two streams while kernels run on a third, which was made behind them."""
    test_state_host.two_runs("adamw", "cupy")


def without_wait(name: str) -> Callable[[Patch], None]:
    """Nothing waits for this event of the buffers, or of both of them."""

    def plant(patch: Patch) -> None:
        right = CupyRuntime.wait_event

        def wait_event(self: Any, stream: Any, event: Any) -> None:
            harbour = backends.get("cupy", "cuda:0").harbour()  # type: ignore[attr-defined]
            if event not in [getattr(each, name, None) for each in (harbour, *harbour.berths)]:
                right(self, stream, event)

        patch.setattr(CupyRuntime, "wait_event", wait_event)

    return plant


FAULTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "states used before they are there": (without_wait("full"), states_on_host),
    "states taken before they are used": (without_wait("used"), states_on_host),
    "buffers filled before they are free": (without_wait("free"), states_on_host),
    "states brought before they are taken": (without_wait("taken"), test_state_host.states_change_buffers),
}


@pytest.mark.parametrize("scenario", [states_on_host, test_state_host.states_change_buffers])
def test_nothing_is_found_where_nothing_is_planted(scenario: Callable[[], None]) -> None:
    assert failure(scenario) == ""


def test_the_host_waits_for_nothing_where_states_travel() -> None:
    there = test_state_host.on_gpu(test_state_host.some(0))
    opt = gpuopt.AdamW(there, backend="cupy", state_device="host")
    grads = test_state_host.on_gpu(test_state_host.some(1))
    opt.step(grads)
    begin = len(driver.calls)
    for _ in range(3):
        opt.step(grads)
    called = {real_name(name) for name in driver.calls[begin:]}
    assert "cudaMemcpyAsync" in called and not called & (WAITS | ALLOCATES)


def test_states_that_are_collected_in_a_capture_are_freed_behind_it() -> None:
    there, grads = (test_state_host.on_gpu(test_state_host.some(k)) for k in range(2))
    opt = gpuopt.AdamW(there, backend="cupy", state_device="host")
    opt.step(grads)
    loose, places = [opt], len(driver.pinned)
    del opt
    captured(new_stream(), loose.clear)
    assert len(driver.pinned) == places, "nothing is freed while a stream is captured"
    gpuopt.AdamW(there, backend="cupy").step(grads)
    assert len(driver.pinned) < places


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, monkeypatch: Patch) -> None:
    plant, scenario = FAULTS[name]
    check_found(plant, scenario, monkeypatch)
