"""A text that ships with Python, the source of some modules of its standard library, and a small transformer that reads it.

Called by `gpuopt/demos/text.py` and by benchmarks of formats. Knows no optimizer.
"""

from __future__ import annotations

import math
import os
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODULES = (
    "pydoc_data/topics", "_pydecimal", "turtle", "inspect", "typing", "pydoc", "email/_header_value_parser", "tarfile", "doctest",
    "unittest/mock", "urllib/request", "argparse", "_pyio", "pickletools", "subprocess", "difflib", "logging/__init__", "enum",
    "mailbox", "http/cookiejar", "ipaddress", "asyncio/base_events", "importlib/_bootstrap_external", "pickle", "pdb", "ast",
)  # fmt: skip
VOCABULARY = 96  # printable ASCII and the end of a line; tabs are blanks, what else there is a question mark
CONTEXT, BATCH, HEADS = 64, 16, 4
VALIDATIONS = 100  # batches


def text() -> tuple[Tensor, Tensor]:
    """Codes of the characters to train on, then of those held out."""
    folder = Path(os.__file__).parent
    whole = "\n".join((folder / f"{name}.py").read_text("utf-8") for name in MODULES)
    plain = whole.expandtabs(1).encode("ascii", "replace")
    codes = torch.frombuffer(bytearray(plain), dtype=torch.uint8).long()
    codes = torch.where(codes == ord("\n"), 0, codes - 31)
    codes = torch.where((codes < 0) | (codes >= VOCABULARY), ord("?") - 31, codes)
    kept = len(codes) - len(codes) // 10
    return codes[:kept], codes[kept:]


def batch(codes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows at random places, and what follows each character of them: [BATCH, CONTEXT] both."""
    starts = torch.randint(len(codes) - CONTEXT, (BATCH, 1), generator=generator)
    windows = codes[starts + torch.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, 1:]


class Block(nn.Module):
    """Attention to what came before, then two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        inner: Tensor = self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return x + inner


class Transformer(nn.Module):
    """Characters to logits of the next ones; the first layer's table is the last one's."""

    def __init__(self, width: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.dim() > 1:  # what ends a branch is smaller
                    ends = name.endswith(("out.weight", "down.weight"))
                    p.normal_(0, 0.02 / math.sqrt(2 * layers) if ends else 0.02, generator=generator)
                elif name.endswith("bias"):
                    p.zero_()

    def forward(self, codes: Tensor) -> Tensor:
        x = self.table(codes) + self.place.weight
        return F.linear(self.norm(self.blocks(x)), self.table.weight)


def loss_of(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    """The mean over all characters of a batch."""
    return F.cross_entropy(model(pair[0]).flatten(0, 1), pair[1].flatten())


def validation_loss(model: nn.Module, codes: Tensor) -> float:
    """The mean over batches that are the same for all seeds."""
    generator = torch.Generator().manual_seed(12345)
    with torch.no_grad():
        return statistics.fmean(loss_of(model, batch(codes, generator)).item() for _ in range(VALIDATIONS))
