"""What is read of torch's objects and called of its C++ functions: it is checked before it is used, and where that fails, or
GPUOPT_NATIVE=0, Python's getters do the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import gpuopt.torch
from gpuopt.native import objects, switch
from gpuopt.native.torch import compiled, counters, library, watch
from repository import ROOT
from torch_samples import bits, parameters, train


@pytest.fixture(autouse=True)
def on(native: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """These tests say themselves what is on; nothing of what they break is remembered."""
    monkeypatch.setattr(switch, "decided", {})
    yield
    for remembered in (watch.answers_hold, counters.raises_them):
        remembered.cache_clear()


def trained(steps: int = 8) -> tuple[Any, Any]:
    """An optimizer of many tensors after some steps, and all bits of it."""
    params = parameters([(3, 4), (5,)] * watch.FROM)
    opt = gpuopt.torch.AdamW(params, lr=0.1)
    train(opt, params, range(steps))
    return opt, bits([params, opt.state_dict()])


def is_plain(opt: Any) -> bool:
    """Whether no compiled code has looked at its tensors or raised their version counters."""
    tracker = opt._trackers[None]
    return tracker._watch is None and tracker._versions.bump.func is torch.autograd.graph.increment_version


def test_native_code_is_used_on_this_version() -> None:
    """Or the rest of the suite would say nothing of it."""
    opt, _ = trained()
    assert library.trouble() is None and not is_plain(opt) and set(switch.decided.values()) == {None}
    assert library.listener() is not library.always


REASONS: dict[str, tuple[Any, str, Any, str]] = {
    "switched off": (os, "environ", {**os.environ, "GPUOPT_NATIVE": "0"}, "GPUOPT_NATIVE=0"),
    "a later torch": (torch, "__version__", "2.99.0+cu140", "it was not tried with torch 2.99, but with 2.13"),
    "a torch of a day": (torch, "__version__", "2.13.0.dev20260101", "it was not tried with torch 2.13.0.dev"),
    "a later Python": (sys, "version_info", (3, 99, 0, "final", 0), "it was not tried with python 3.99"),
    "a function declared otherwise": (
        library, "DECLARED", {"c10/core/TensorImpl.h": "at::Tensor grad() const;"}, "TensorImpl.h declares another function",
    ),
    "a header that is not there": (library, "DECLARED", {"no/such.h": "bool f();"}, "[Errno 2] No such file"),
    "a function that is not there": (library, "FACTS", ("get_no_such_fact",), "undefined symbol: aoti_torch_get_no_such_fact"),
}  # fmt: skip


@pytest.mark.parametrize("case", REASONS)
def test_why_no_function_of_torch_is_called(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps go on, with the same bits."""
    _, expected = trained()
    owner, name, value, reason = REASONS[case]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, value)
        library.trouble.cache_clear()
        assert reason in str(library.trouble())
    opt, found = trained()
    assert is_plain(opt) and found == expected and library.listener() is library.always
    assert reason in str(switch.decided[watch.PART])


def test_a_compiled_look_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "codes", lambda: tuple(reversed(compiled.codes())))
    watch.answers_hold.cache_clear()
    opt, _ = trained()
    assert opt._trackers[None]._watch is None and switch.decided[watch.PART] == "its own test failed"


@pytest.mark.parametrize("blind", ["gradients", "states"])
def test_a_compiled_look_that_sees_no_change_is_not_used(blind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = watch.TensorWatch.moved
    wrong = {"gradients": lambda found: found and None, "states": bool}[blind]
    monkeypatch.setattr(watch.TensorWatch, "moved", lambda self: wrong(moved(self)))
    watch.answers_hold.cache_clear()
    assert not watch.usable(watch.FROM) and switch.decided[watch.PART] == "its own test failed"


@pytest.mark.parametrize("counts", [[], [2, 2], [2, 1]], ids=["none", "all twice", "one twice"])
def test_version_counters_raised_wrongly_are_left_to_torch(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    bump = counters.compiled()
    monkeypatch.setattr(counters, "compiled", lambda: lambda objects, _, word: [bump(objects, k, word) for k in counts])
    counters.raises_them.cache_clear()
    assert not counters.usable() and switch.decided[counters.PART] == "its own test failed"
    opt, _ = trained()
    assert opt._trackers[None]._versions.bump.func is torch._C._increment_version


@pytest.mark.parametrize("how", ["set_default_device", "set_default_dtype", "inference_mode", "no_grad"])
def test_its_own_tests_do_not_depend_on_modes(how: str) -> None:
    def hold() -> bool:
        for remembered in (watch.answers_hold, counters.raises_them):
            remembered.cache_clear()
        return watch.usable(watch.FROM) and counters.usable()

    device, dtype = torch.get_default_device(), torch.get_default_dtype()
    try:
        if how.startswith("set"):
            getattr(torch, how)("meta" if how.endswith("device") else torch.float64)
            assert hold()
        else:
            with getattr(torch, how)():
                assert hold()
    finally:
        torch.set_default_device(device if str(device) != "cpu" else None)
        torch.set_default_dtype(dtype)


def test_states_are_looked_at_all_the_time_where_references_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "unshared", objects.never_unshared)
    params = parameters([(3,)] * 4)
    opt = gpuopt.torch.AdamW(params)
    train(opt, params, range(3))
    engine, entry = opt._engine, opt.state[params[0]]
    train(opt, params, range(2))
    assert opt._engine is engine and opt.state._handed_out
    entry["exp_avg"] = torch.ones_like(entry["exp_avg"])
    train(opt, params, range(1))
    assert opt._engine is not engine


class Marked(torch.nn.Parameter):
    """A subclass, of which compiled code can say nothing."""


def test_what_compiled_code_can_say_nothing_of_is_tried_ever_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """To find that out takes as long as several steps."""
    tried = []
    usual = watch.TensorWatch.__init__
    monkeypatch.setattr(watch.TensorWatch, "__init__", lambda self, *given: (tried.append(1), usual(self, *given))[1])
    assert watch.usable(watch.FROM)
    tried.clear()
    params = [Marked(torch.zeros(3)) for _ in range(watch.FROM)]
    train(gpuopt.torch.SGD(params), params, range(40))
    assert len(tried) == 3, "after 3, 6 and 12 steps, of which the next would be after 24"


# Files whose tests lean most on what native code sees; those of test_torch_state.py go both ways themselves (`looks`).
WITHOUT = ("test_torch_snapshot.py", "test_torch_contract.py", "test_alike.py")


@pytest.mark.once
@pytest.mark.slow
def test_the_suite_passes_without_native_code() -> None:
    """A part of it, whenever the suite runs; all of it is to pass."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not gpu"]
    command = [sys.executable, "-m", "pytest", *options, *(f"tests/{file}" for file in WITHOUT)]
    environment = os.environ | {"GPUOPT_NATIVE": "0"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
