"""CUDA graphs and streams on a GPU, on streams that are known by address only, as gpuopt.torch has them. Marked `gpu`.

A graph owns what it reads: eager steps, moves, other optimizers and other graphs change nothing of its replays.
"""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import backends
from gpuopt.errors import DtypeError, GpuoptError
from graphs import BACKENDS, NORMS, captured, device_array, new_stream, no_garbage_of_others, pair, stepped

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("options", ({}, NORMS), ids=("plain", "options"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_get_their_addresses_in_the_capture_and_eager_steps_go_on(backend: str, options: Any) -> None:
    stream = new_stream()
    graphed, eager, one, usual = pair(backend, **options)
    grads = [device_array(k) for k in range(1, 5)]
    stepped(stream, one, [grads[0]])
    stepped(stream, usual, [grads[0]])
    graphs = [captured(stream, lambda g=g: one.step([g])) for g in grads]  # each of them moved
    for number in (1, 3, 2, 2, 0, 3, 1):
        graphs[number].launch(stream)
        stepped(stream, usual, [grads[number]])
        eagerly = device_array(10 + number)
        stepped(stream, one, [eagerly])
        stepped(stream, usual, [eagerly])
    stream.synchronize()
    assert graphed.get().tobytes() == eager.get().tobytes()
    assert one.state_dict()["state"][0]["step"] == usual.state_dict()["state"][0]["step"] == 15


@pytest.mark.parametrize("backend", BACKENDS)
def test_live_rate_betas_and_weight_decay_are_read_at_every_replay(backend: str) -> None:
    import cupy

    graphed, eager, one, usual = pair(backend)
    grad = device_array(1)
    live = {"lr": cupy.full((), 0.01), "weight_decay": cupy.full((), 0.1), "betas": cupy.full((), 0.9)}
    stream = new_stream()
    one.param_groups[0] |= {"lr": live["lr"], "weight_decay": live["weight_decay"], "betas": (live["betas"], 0.999)}
    usual.param_groups[0] |= {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.999)}
    stepped(stream, one, [grad])
    stepped(stream, usual, [grad])
    graph = captured(stream, lambda: one.step([grad]))
    one.param_groups[0] |= {"lr": 0.5, "weight_decay": 0.5, "betas": (0.5, 0.5)}  # the graph keeps what it reads
    for number in range(1, 5):
        new = {"lr": 0.01 / number, "weight_decay": 0.1 * number, "betas": 0.9 / number}
        with stream:
            for name, value in new.items():
                live[name].fill(value)
        usual.param_groups[0] |= new | {"betas": (new["betas"], 0.999)}
        graph.launch(stream)
        stepped(stream, usual, [grad])
    stream.synchronize()
    assert graphed.get().tobytes() == eager.get().tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rates_that_are_set_between_steps_behind_a_capture_are_each_read_once(backend: str) -> None:
    """The steps are queued behind each other; the host must not write over a rate that has still to be read."""
    stream = new_stream()
    graphed, eager, one, usual = pair(backend)
    grad = device_array(1)
    stepped(stream, one, [grad])
    stepped(stream, usual, [grad])
    captured(stream, lambda: one.step([grad]))
    for rate in (0.1, 0.2, 0.3):
        for opt in (one, usual):
            opt.param_groups[0]["lr"] = rate
            stepped(stream, opt, [grad])
    stream.synchronize()
    assert graphed.get().tobytes() == eager.get().tobytes()


@pytest.mark.parametrize("options", ({}, NORMS), ids=("plain", "options"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_is_not_capturable_is_refused_in_a_capture(backend: str, options: Any) -> None:
    stream, options = new_stream(), {k: v for k, v in options.items() if k != "skip_nonfinite"}
    param, grad = device_array(0), device_array(1)
    opt = gpuopt.SGD([param], momentum=0.9, lr=0.1, backend=backend, **options)
    stepped(stream, opt, [grad])
    with pytest.raises(GpuoptError, match="capturable=True"):
        captured(stream, lambda: opt.step([grad]))
    stepped(stream, opt, [grad])
    assert opt.state_dict()["state"][0]["step"] == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_step_of_a_plan_is_refused_in_a_capture_and_nothing_is_lost(backend: str) -> None:
    """The very first step, and the first one without the gradient of a parameter."""
    stream = new_stream()
    params, grads = [device_array(0), device_array(5)], [device_array(1), device_array(2)]
    opt = gpuopt.AdamW(params, backend=backend, capturable=True)
    with pytest.raises(GpuoptError, match="run one step before"):
        captured(stream, lambda: opt.step(grads))
    stepped(stream, opt, grads)
    with pytest.raises(GpuoptError, match="run one step before"):
        captured(stream, lambda: opt.step([grads[0], None]))
    stepped(stream, opt, [grads[0], None])
    graph = captured(stream, lambda: opt.step([grads[0], None]))
    graph.launch(stream)
    stream.synchronize()
    assert [s["step"] for s in opt.state_dict()["state"].values()] == [3, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_graph_reads_and_writes_outlives_plans_and_the_sums_of_others(backend: str) -> None:
    stream = new_stream()
    params, grads = [device_array(0), device_array(5)], [device_array(1), device_array(2)]
    opt = gpuopt.AdamW(params, backend=backend, capturable=True, **NORMS)
    stepped(stream, opt, grads)
    graph = captured(stream, lambda: opt.step(grads))
    resident = weakref.ref(opt._engine._launches[0][1][0].private["device_launch"])
    stepped(stream, opt, [grads[0], None])  # another plan
    large = gpuopt.SGD([device_array(7, 50_000)], lr=0.1, backend=backend, max_grad_norm=1.0)
    stepped(stream, large, [device_array(8, 50_000)])
    gc.collect()
    assert resident() is None, "only what the graph reads is kept"
    before = [p.get() for p in params]
    graph.launch(stream)  # the driver of the tests faults at memory that was freed
    stream.synchronize()
    assert all((p.get() != b).any() and np.isfinite(p.get()).all() for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_optimizers_on_two_streams_have_their_own_sums(backend: str) -> None:
    """Their work is queued crosswise: a buffer that both use would give one of them the norm of the other."""
    import cupy

    streams = [new_stream(), new_stream()]
    scales = (1.0, 1000.0)
    found = [device_array(0), device_array(0)]
    grads = [device_array(1) * scale for scale in scales]
    cupy.cuda.Device().synchronize()
    opts = [gpuopt.SGD([p], lr=1.0, backend=backend, max_grad_norm=1.0) for p in found]
    host = []
    for g in grads:
        expected = device_array(0).get()
        usual = gpuopt.SGD([expected], lr=1.0, backend="numpy", max_grad_norm=1.0)
        for _ in range(3):
            usual.step([g.get()])
        host.append(expected)
    for _ in range(3):
        for stream, opt, grad in zip(streams, opts, grads, strict=True):
            stepped(stream, opt, [grad])
    assert len({backends.get(backend, "cuda:0").runtime.address(b) for opt in opts for b in sums_of(opt)}) == 6
    for stream in streams:
        stream.synchronize()
    assert all(p.get().tobytes() == e.tobytes() for p, e in zip(found, host, strict=True))


def sums_of(opt: Any) -> list[Any]:
    """Where an optimizer has the sums of its gradients: of chunks, of tensors and over all."""
    gradients = opt._engine._launches[0][1][0].private["decision"].gradients
    return [gradients.passes[0].partials, gradients.passes[0].totals, gradients.joins[0].result]


@pytest.mark.parametrize("backend", BACKENDS)
def test_tables_of_a_dropped_optimizer_are_not_given_to_another_stream(backend: str) -> None:
    """Its second step, which uploads nothing, is still queued when the next optimizer uploads tables on another stream."""
    import cupy

    streams = [new_stream(), new_stream()]
    params = [device_array(k) for k in range(2)]
    grads = [device_array(3) * 0 + 1, device_array(3) * 0 + 2]
    cupy.cuda.Device().synchronize()
    one, two = np.float32(1), np.float32(2)
    expected = [params[0].get() - one - one, params[1].get() - two]
    opt = gpuopt.SGD([params[0]], lr=1.0, backend=backend)
    stepped(streams[0], opt, [grads[0]], False)
    streams[0].synchronize()
    stepped(streams[0], opt, [grads[0]], False)
    del opt
    gc.collect()
    stepped(streams[1], gpuopt.SGD([params[1]], lr=1.0, backend=backend), [grads[1]], False)
    for stream in reversed(streams):
        stream.synchronize()
    assert all(p.get().tobytes() == e.tobytes() for p, e in zip(params, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_optimizer_that_is_collected_in_a_capture_does_not_break_it(backend: str) -> None:
    """Python's collector comes when it likes; memory may not be freed while a stream is captured."""
    stream = new_stream()
    graphed, eager, one, usual = pair(backend)
    grad = device_array(1)
    gone = [gpuopt.AdamW([device_array(k)], backend=backend, **NORMS) for k in range(2, 6)]
    for opt in (one, usual, *gone):
        stepped(stream, opt, [grad])
    stream.synchronize()
    no_garbage_of_others()

    def step() -> None:
        gone.clear()
        gc.collect()
        one.step([grad])

    del opt
    graph = captured(stream, step)
    graph.launch(stream)
    stepped(stream, usual, [grad])
    stream.synchronize()
    assert graphed.get().tobytes() == eager.get().tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_norms_and_plain_steps_in_turn_count_alike(backend: str) -> None:
    """Steps with rows by value leave the device's own counts behind."""
    stream = new_stream()
    param, host, grad = device_array(0), device_array(0).get(), device_array(1)
    opts = [gpuopt.AdamW([p], backend=name) for p, name in ((param, backend), (host, "numpy"))]
    for norm in (None, 1.0, 1.0, None, None, 1.0, 1.0):
        for opt, g in zip(opts, (grad, grad.get()), strict=True):
            opt.settings.max_grad_norm = norm
            stepped(stream, opt, [g])
    stream.synchronize()
    assert param.get().tobytes() == host.tobytes()


def test_staging_gives_a_slot_to_one_thread_at_a_time() -> None:
    """Waiting for a parameter lets other threads run; none of them may get the same one."""
    from gpuopt.backends.runtime import Staging
    from simulator_runtime import SimulatorRuntime

    runtime, inside, twice = SimulatorRuntime(), threading.Event(), []
    staging = Staging(runtime)

    class Slow:
        busy = False

        def record(self, stream: Any) -> None:
            self.busy = False

        def synchronize(self) -> None:
            twice.append(self.busy)
            self.busy = True
            inside.wait(0.05)

    runtime.event = Slow  # type: ignore[method-assign]
    buffers = [runtime.allocate(8) for _ in range(2)]
    for _ in range(Staging.SLOTS):
        staging.upload(buffers[0], np.zeros(1), 0)

    def uploads(buffer: Any) -> None:
        for _ in range(4):
            staging.upload(buffer, np.zeros(1), 0)

    threads = [threading.Thread(target=uploads, args=(b,)) for b in buffers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(twice) == 8 and not any(twice)


def test_scalars_on_another_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuopt import arrays
    from gpuopt.backends.device_launch import scalar_or_address

    monkeypatch.setattr(arrays, "describe", lambda value, label: arrays.View(8, (), (), "float32", "cuda:1"))
    assert scalar_or_address(np.zeros((1,)), "found_inf", 0.0, "cuda:1") == (0.0, 8)
    with pytest.raises(DtypeError, match="cuda:1: expected one float32 on cuda:0"):
        scalar_or_address(np.zeros((1,)), "found_inf", 0.0, "cuda:0")
    assert scalar_or_address(np.float32(1024), "grad_scale", 1.0, "cuda:0") == (1024.0, 0)
