"""A small transformer learns to write like a Python file: torch's AdamW and ours give one loss curve, and a run that is
resumed from a checkpoint file halfway ends with the same bits as one that never stopped.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import gpuopt.torch

STEPS, HALF = 300, 150
CONTEXT, BATCH, WIDTH = 32, 8, 32
OPTIONS = dict(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
Saved = dict[str, Any]


@cache
def text() -> torch.Tensor:
    """Python's own source text, as bytes."""
    sources = "\n".join(Path(inspect.getfile(module)).read_text("utf-8") for module in (argparse, copy, textwrap))
    return torch.tensor(list(sources.encode()), dtype=torch.long)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(text()) - CONTEXT - 1, (BATCH,), generator=generator)
    rows = text()[starts[:, None] + torch.arange(CONTEXT + 1)]
    return rows[:, :-1], rows[:, 1:]


class Writer(nn.Module):
    """Bytes in, scores of the next byte out: two causal transformer layers; the output shares the input's embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(256, WIDTH)
        self.places = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden = self.layers(self.tokens(x) + self.places.weight, mask=mask, is_causal=True)
        return self.norm(hidden) @ self.tokens.weight.T


def writer() -> Writer:
    torch.manual_seed(0)
    return Writer()


def train(model: nn.Module, opt: Any, schedule: Any, steps: range) -> list[float]:
    losses = []
    for step in steps:
        x, y = batch(step)
        loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def start(cls: Any) -> tuple[nn.Module, Any, Any]:
    model = writer()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    opt = cls([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], **OPTIONS)
    return model, opt, torch.optim.lr_scheduler.CosineAnnealingLR(opt, STEPS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The model is too small to share out: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_same_loss_curve_as_torch_and_the_same_bits_when_resumed(tmp_path: Path) -> None:
    """float32: both round differently, and 300 steps amplify that to about 1e-6 of a loss near 2."""
    expected = train(*start(torch.optim.AdamW), range(STEPS))

    model, opt, schedule = start(gpuopt.torch.AdamW)
    losses = train(model, opt, schedule, range(HALF))
    whole = {"model": model.state_dict(), "opt": opt.state_dict(), "schedule": schedule.state_dict()}
    torch.save(whole, tmp_path / "half.pt")
    losses += train(model, opt, schedule, range(HALF, STEPS))

    assert losses[0] > 5.4 and sum(losses[-20:]) / 20 < 3.2, "it did not learn"
    furthest = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    assert furthest < 1e-4

    resumed, again, schedule_again = start(gpuopt.torch.AdamW)
    half: Saved = torch.load(tmp_path / "half.pt", weights_only=True)
    for target, key in ((resumed, "model"), (again, "opt"), (schedule_again, "schedule")):
        target.load_state_dict(half[key])
    assert losses[HALF:] == train(resumed, again, schedule_again, range(HALF, STEPS))
    assert_same_bits(model.state_dict(), resumed.state_dict())
    for one, other in itertools.zip_longest(opt.state.values(), again.state.values()):
        assert_same_bits(one, other)


def assert_same_bits(found: Saved, expected: Saved) -> None:
    assert list(found) == list(expected)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0, msg=key)
