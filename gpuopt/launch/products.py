"""Products of matrices between two stages of a step: what stands in the operands' memory is replaced by the results.

Made by `optim.launches`, run by backends. Equal matrices of all tensors of a launch are one batch. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuopt import linalg
from gpuopt.compiler.parts import Product


class Products:
    """One product of every tensor of a launch. batches: arrays [matrices, rows, columns], one of each shape."""

    def __init__(self, product: Product, batches: Sequence[Any]) -> None:
        self.product, self.batches = product, batches

    def run(self, stream: int = 0) -> None:
        """Multiply. stream: the handle of the CUDA stream on which this is enqueued."""
        for batch in self.batches:
            with linalg.on_stream(batch, stream):
                linalg.RUNS[self.product.kind](batch, *self.product.words)
