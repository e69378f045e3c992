"""What a CUDA graph uses lives as long as the graph, and its replays count the steps of the tensors that they step. Marked `gpu`.

As in torch, each tensor has one step count, whatever set of gradients, groups or loaded states came between.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import backends
from graphs import BACKENDS, NORMS, captured, device_array, new_stream, no_garbage_of_others, stepped

pytestmark = pytest.mark.gpu


def kept(backend: str) -> list[Any]:
    return backends.get(backend, "cuda:0").graphs


def free_what_is_over(backend: str) -> None:
    """What the next step would do first."""
    no_garbage_of_others()
    backends.get(backend, "cuda:0").release()


@pytest.mark.parametrize("options", ({}, NORMS), ids=("plain", "options"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_that_a_graph_uses_outlives_the_optimizer(backend: str, options: Any) -> None:
    """Parameter, gradient, states, mask, a rate on the GPU: the test itself keeps the address of the parameter only."""
    import cupy

    expected = device_array(0).get()
    usual = gpuopt.AdamW([expected], lr=0.1, backend="numpy", mask=[expected > -1], **options)
    for _ in range(4):
        usual.step([device_array(1).get()])
    stream = new_stream()
    with cupy.cuda.using_allocator(None):  # what is freed is gone
        param = device_array(0)
        opt = gpuopt.AdamW(
            [param],
            lr=cupy.full((), 0.1),
            mask=[cupy.asarray(param.get() > -1)],
            capturable=True,
            backend=backend,
            **options,
        )
        grad = device_array(1)
        stepped(stream, opt, [grad])
        graph = captured(stream, lambda step=opt.step, grads=(grad,): step(grads))
        address, gone = param.data.ptr, weakref.ref(opt)
        del opt, param, grad
        free_what_is_over(backend)
        assert gone() is None
        for _ in range(3):
            graph.launch(stream)
        stream.synchronize()
        memory = cupy.cuda.UnownedMemory(address, expected.nbytes, graph)
        there = cupy.ndarray(expected.shape, np.float32, cupy.cuda.MemoryPointer(memory, 0))
        assert there.get().tobytes() == expected.tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_kept_once_the_graph_is_gone_and_its_work_is_done(backend: str) -> None:
    import cupy

    free_what_is_over(backend)
    free_what_is_over(backend)
    before = len(kept(backend)), len(backends.get(backend, "cuda:0").buffers)
    stream = new_stream()
    param, grad = device_array(0), device_array(1)
    opt = gpuopt.AdamW([param], capturable=True, backend=backend, **NORMS)
    stepped(stream, opt, [grad])
    graphs = [captured(stream, lambda step=opt.step: step([grad])) for _ in range(3)]
    states = [weakref.ref(a) for a in opt._engine.parameters[0].states.values()]
    assert len(kept(backend)) == before[0] + 3
    del graphs[0]
    stepped(stream, opt, [grad])
    assert len(kept(backend)) == before[0] + 2
    del opt
    no_garbage_of_others()  # which waits for the device
    graphs[0].launch(stream)
    del graphs[0]
    assert not any(life.over for life, _ in kept(backend)), "its work is not done"
    stream.synchronize()
    assert [life.over for life, _ in kept(backend)[-2:]] == [True, False]
    free_what_is_over(backend)
    assert len(kept(backend)) == before[0] + 1 and all(s() is not None for s in states)
    graphs.clear()
    cupy.cuda.Device().synchronize()
    free_what_is_over(backend)
    free_what_is_over(backend)
    assert (len(kept(backend)), len(backends.get(backend, "cuda:0").buffers)) == before
    assert all(s() is None for s in states)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_capture_that_fails_keeps_nothing(backend: str) -> None:
    free_what_is_over(backend)
    before = len(kept(backend))
    stream, grad = new_stream(), device_array(1)
    opt = gpuopt.AdamW([device_array(0)], capturable=True, backend=backend)
    stepped(stream, opt, [grad])

    def step() -> None:
        opt.step([grad])
        raise KeyError("of the caller")

    with pytest.raises(KeyError):
        captured(stream, step)
    gc.collect()
    stepped(stream, opt, [grad])
    assert len(kept(backend)) == before


class Interface:
    """An array of a library of which nothing else is known."""

    def __init__(self, array: Any) -> None:
        self.array, self.__cuda_array_interface__ = array, array.__cuda_array_interface__


@pytest.mark.parametrize("wrapped", (False, True), ids=("cupy", "interface"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_copy_of_a_gradient_in_another_memory_order_is_captured_too(backend: str, wrapped: bool) -> None:
    """It waits for nothing, and what it reads lives as long as the graph."""
    import cupy

    stream, place = new_stream(), Interface if wrapped else lambda array: array
    host = device_array(0).get().reshape(50, 60)
    usual = gpuopt.AdamW([host], backend="numpy")
    with cupy.cuda.using_allocator(None):
        param, grad = cupy.asarray(host), cupy.empty((50, 60), np.float32, order="F")
        opt = gpuopt.AdamW([place(param)], backend=backend, capturable=True)
        with gpuopt.stream(stream):
            grad.fill(1)
            opt.step([place(grad)])
        stream.begin_capture()
        try:
            with gpuopt.stream(stream):
                opt.step([place(grad)])
        finally:
            graph = stream.end_capture()
        with stream:
            grad[:7] = 2
        del grad, opt
        no_garbage_of_others()
        for _ in range(2):
            graph.launch(stream)
        stream.synchronize()
    made = np.ones((50, 60), np.float32)
    usual.step([made])
    made[:7] = 2
    for _ in range(2):
        usual.step([made])
    assert param.get().tobytes() == host.tobytes()


# ---------------------------------------------------------------------------------------------------- step counts


class Twins:
    """An optimizer whose steps may be replayed, and one of equal tensors that makes the same steps one by one on the host."""

    def __init__(self, backend: str, count: int = 3) -> None:
        self.stream, self.backend = new_stream(), backend
        self.params = [device_array(k, 300 + k) for k in range(count)]
        self.host = [p.get() for p in self.params]
        self.grads = [device_array(10 + k, 300 + k) for k in range(count)]
        self.opt = gpuopt.AdamW(self.params, capturable=True, backend=backend)
        self.usual = gpuopt.AdamW(self.host, backend="numpy")

    def chosen(self, which: Any) -> tuple[list[Any], list[Any]]:
        given = [g if k in which else None for k, g in enumerate(self.grads)]
        return given, [None if g is None else g.get() for g in given]

    def eager(self, *which: int) -> None:
        given, host = self.chosen(which)
        stepped(self.stream, self.opt, given)
        self.usual.step(host)

    def graph(self, *which: int) -> Callable[[], None]:
        """Captures a step; what is returned replays it."""
        given, host = self.chosen(which)
        made = captured(self.stream, lambda: self.opt.step(given))

        def replay() -> None:
            made.launch(self.stream)
            self.usual.step(host)

        return replay

    def check(self) -> None:
        self.stream.synchronize()
        found, expected = self.opt.state_dict()["state"], self.usual.state_dict()["state"]
        assert {k: s["step"] for k, s in found.items()} == {k: s["step"] for k, s in expected.items()}
        assert [p.get().tobytes() for p in self.params] == [h.tobytes() for h in self.host]


def replayed_twins(backend: str) -> tuple[Twins, Callable[[], None]]:
    """After an eager step and a replay of the graph that steps all tensors, which comes with them."""
    twins = Twins(backend)
    twins.eager(0, 1, 2)
    every = twins.graph(0, 1, 2)
    every()
    return twins, every


@pytest.mark.parametrize("backend", BACKENDS)
def test_replays_count_the_steps_of_each_tensor_whatever_gradients_came_between(backend: str) -> None:
    twins, every = replayed_twins(backend)
    twins.eager(0, 2)  # another plan: the second tensor has no gradient
    every()
    twins.check()
    some = twins.graph(0, 2)
    for step in (every, some, some, every):
        step()
    twins.eager(0, 1, 2)
    some()
    twins.eager(0, 1, 2)  # the plan that was there before the replay
    twins.eager(1)
    every()
    twins.check()
    some()
    twins.check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_that_were_in_step_part_in_replays_and_go_on_apart_in_eager_steps(backend: str) -> None:
    """All counts are equal when the last plan is made; a graph of an earlier one then advances some of them."""
    twins = Twins(backend, 2)
    twins.eager(0)
    first = twins.graph(0)
    twins.eager(1)
    twins.eager(0, 1)
    first()
    twins.eager(0, 1)
    twins.check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_replay_alone_counts_for_tensors_that_have_no_gradient_now(backend: str) -> None:
    twins = Twins(backend)
    twins.eager(0, 1, 2)
    every = twins.graph(0, 1, 2)
    twins.eager(1)
    every()
    twins.check()  # nothing but the graph steps the other two


@pytest.mark.parametrize("options", ({"skip_nonfinite": True}, {"capturable": True}), ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_group_that_is_added_leaves_the_counts_on_the_gpu(backend: str, options: Any) -> None:
    stream, grads = new_stream(), [device_array(1)]
    opt = gpuopt.AdamW([device_array(0)], backend=backend, **options)
    for _ in range(3):
        stepped(stream, opt, grads)
    opt.add_param_group({"params": [device_array(2)]})
    assert opt.state_dict()["state"][0]["step"] == 3
    stepped(stream, opt, [grads, grads])
    assert [s["step"] for s in opt.state_dict()["state"].values()] == [4, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_group_that_is_added_leaves_the_counts_of_graphs(backend: str) -> None:
    twins, _alive = replayed_twins(backend)
    more = device_array(20)
    for opt, p in ((twins.opt, more), (twins.usual, more.get())):
        opt.add_param_group({"params": [p], "lr": 0.5})
    twins.stream.synchronize()
    given, grad = twins.chosen((0, 1, 2)), device_array(21)
    stepped(twins.stream, twins.opt, [given[0], [grad]])
    twins.usual.step([given[1], [grad.get()]])
    twins.check()


@pytest.mark.parametrize("before", (False, True), ids=("after", "before"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_replays_go_on_with_what_was_loaded(backend: str, before: bool) -> None:
    """Loaded before the first eager step behind it, or after."""
    twins = Twins(backend)
    twins.eager(0, 1, 2)
    saved = twins.opt.state_dict(), twins.usual.state_dict()
    every = twins.graph(0, 1, 2)
    for _ in range(3):
        every()
    twins.eager(0, 1, 2)
    twins.opt.load_state_dict(saved[0])
    twins.usual.load_state_dict(saved[1])
    if before:
        twins.eager(0, 2)
    every()
    every()
    twins.stream.synchronize()  # which nothing else has to wait for
    twins.eager(0, 1, 2)
    twins.check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_replays_begin_anew_where_a_fresh_state_was_loaded(backend: str) -> None:
    twins = Twins(backend)
    fresh = twins.opt.state_dict(), twins.usual.state_dict()
    twins.eager(0, 1, 2)
    every = twins.graph(0, 1, 2)
    every()
    twins.opt.load_state_dict(fresh[0])
    twins.usual.load_state_dict(fresh[1])
    every()
    every()
    twins.eager(0, 1)
    twins.check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_that_replays_skip_are_told_after_other_plans_too(backend: str) -> None:
    import cupy

    stream = new_stream()
    params, grads = [device_array(0), device_array(5)], [device_array(1), device_array(2)]
    opt = gpuopt.AdamW(params, backend=backend, capturable=True, skip_nonfinite=True)
    stepped(stream, opt, grads)
    graph = captured(stream, lambda: opt.step(grads))
    with stream:
        grads[0].fill(cupy.nan)
    graph.launch(stream)
    stepped(stream, opt, [None, grads[1]])
    graph.launch(stream)
    stream.synchronize()
    assert opt.skipped == 2
    assert [s["step"] for s in opt.state_dict()["state"].values()] == [1, 2]
