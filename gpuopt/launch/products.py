"""Products of matrices between two stages of a step: what stands in the operands' memory is replaced by the results.

Made by `optim.launches`, run by backends. Equal matrices of all tensors of a launch are one batch. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpuopt import arrays, bases, linalg
from gpuopt.compiler.parts import Product
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.native.memory import memory

Given = Callable[[Sequence[str]], list[Any]]
# By their names in the rule language.
RUNS: Mapping[str, Callable[..., Any]] = {
    "orthogonalize": linalg.orthogonalize,
    "learn_bases": bases.learn_bases,
    "learn_roots": bases.learn_roots,
    "to_bases": bases.to_bases,
    "from_bases": bases.from_bases,
}


class Products:
    """One product of every tensor of a launch. batches: arrays [matrices, rows, columns], one of each shape; of a product that
    takes names one of each tensor, and for each of these `given`, which finds what they stand for in the step that is made.
    """

    def __init__(self, product: Product, batches: Sequence[Any], given: Sequence[Given] = ()) -> None:
        self.product, self.batches, self.given = product, batches, given

    def run(self, stream: int = 0) -> None:
        """Multiply. stream: the handle of the CUDA stream on which this is enqueued."""
        for k, batch in enumerate(self.batches):
            with linalg.on_stream(batch, stream):
                found = self.given[k](self.product.names) if self.product.names else ()
                RUNS[self.product.kind](batch, *self.product.words, *found)


def square(array: Any, label: str) -> Any:
    """A square state as products take it, the same memory [matrices, n, n]: on the host of NumPy, whoever it is of."""
    view = arrays.describe(array, label)
    shape = -1, *view.shape[-2:]
    if view.device == "cpu":
        return memory(view.address, numpy_dtype(view.dtype), view.numel).reshape(shape)
    return linalg.multipliable(array).reshape(shape)
