"""Replays of CUDA graphs count the steps of `gpuopt.torch` too, whatever gradients come and go between them.

The step counts lie where a GPU would have them (shim.backend); a replay is what it does to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt.torch
from shim.backend import Backend, installed


@pytest.fixture(scope="module")
def shim() -> Iterator[Backend]:
    with installed() as made:
        yield made


class Graph:
    """Of a step of these parameters, captured now: the places of their counts."""

    def __init__(self, opt: Any) -> None:
        (tracker,) = opt._trackers.values()
        self.words = [parameter.counter.word for parameter in tracker.engine.parameters]

    def replay(self) -> None:
        for word in self.words:
            word.counts.buffer[word.place] += 1


def counted(opt: Any) -> list[int]:
    return [int(entry["step"]) for _, entry in sorted(opt.state_dict()["state"].items())]


def step(opt: Any, params: list[torch.Tensor], *which: int) -> None:
    for k, p in enumerate(params):
        p.grad = torch.ones_like(p) if k in which else None
    opt.step()


def test_replays_count_for_every_parameter_of_their_graph(shim: Backend) -> None:
    params = [torch.ones(n) for n in (3, 5, 7)]
    opt = gpuopt.torch.AdamW(params, capturable=True, backend="shim-device")
    step(opt, params, 0, 1, 2)
    every = Graph(opt)
    every.replay()
    step(opt, params, 0, 2)  # another engine
    some = Graph(opt)
    every.replay()
    assert counted(opt) == [4, 3, 4]
    some.replay()
    step(opt, params, 0, 1, 2)
    every.replay()
    some.replay()
    assert counted(opt) == [8, 5, 8]
    step(opt, params, 1)
    every.replay()
    step(opt, params, 1)
    assert counted(opt) == [9, 8, 9]


@pytest.mark.parametrize("options", [{"capturable": True}, {"skip_nonfinite": True}], ids=str)
def test_bits_with_counts_of_each_or_shared(shim: Backend, options: dict[str, Any]) -> None:
    """One count for each where steps may be captured, one for all elsewhere."""
    results = []
    for given in ({"backend": "shim-device", **options}, {"backend": "numpy"}):
        params = [torch.arange(n, dtype=torch.float32) for n in (3, 5, 7)]
        opt = gpuopt.torch.AdamW(params, lr=0.1, **given)
        for which in ((0, 1, 2), (0, 2), (0, 1, 2), (0, 1, 2)):
            step(opt, params, *which)
        results.append((np.concatenate([p.numpy() for p in params]).tobytes(), counted(opt)))
    assert results[0] == results[1]


def test_a_step_tensor_that_was_written_is_what_replays_go_on_from(shim: Backend) -> None:
    params = [torch.ones(3), torch.ones(5)]
    opt = gpuopt.torch.AdamW(params, capturable=True, backend="shim-device")
    step(opt, params, 0, 1)
    graph = Graph(opt)
    opt.state[params[0]]["step"].fill_(10)
    step(opt, params, 0, 1)
    graph.replay()
    assert counted(opt) == [12, 3]


def test_counts_are_told_again_after_further_replays(shim: Backend) -> None:
    params = [torch.ones(3), torch.ones(5)]
    opt = gpuopt.torch.AdamW(params, capturable=True, backend="shim-device")
    step(opt, params, 0, 1)
    graph, (tracker,) = Graph(opt), opt._trackers.values()
    for expected in (2, 3, 4):
        graph.replay()
        assert counted(opt) == [expected] * 2
    step(opt, params, 0, 1)
    assert counted(opt) == [5, 5] and [*opt._trackers.values()] == [tracker], "nothing was changed by others"
    opt.state[params[0]]["step"].fill_(20)
    for expected in (6, 7):
        graph.replay()
        assert counted(opt) == [20, expected]
    step(opt, params, 0, 1)
    assert counted(opt) == [21, 8]
