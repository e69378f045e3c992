"""Products of matrices between two stages of a step: what stands in the operands' memory is replaced by the results.

Made by `optim.launches`, run by backends. Equal matrices of all tensors of a launch are one batch. Knows no rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from gpuopt import arrays, bases, linalg, projections, selections, whitening
from gpuopt.compiler.parts import Product
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.launch import padding
from gpuopt.native.memory import memory

Given = Callable[[Sequence[str]], list[Any]]
# By their names in the rule language.
RUNS: Mapping[str, Callable[..., Any]] = {
    "orthogonalize": linalg.orthogonalize,
    "learn_bases": bases.learn_bases,
    "learn_roots": bases.learn_roots,
    "turn_bases": bases.turn_bases,
    "learn_sides": bases.learn_sides,
    "to_bases": bases.to_bases,
    "from_bases": bases.from_bases,
    "orthogonalize_largest": selections.orthogonalize_largest,
    "scale_by_projection": projections.scale_by_projection,
    "whiten": whitening.whiten,
}
PADDED = {"orthogonalize"}  # what zeros beside a matrix do not change


class Batch(NamedTuple):
    """Matrices that are multiplied together, [matrices, rows, columns], and of each tensor among them its part of this memory, and
    what finds the values of names.
    """

    matrices: Any
    parts: Sequence[Any]
    given: Sequence[Given]


class Products:
    """One product of every tensor of a launch: a batch of each shape, or of each tensor where whole matrices go with it; `padded`
    are the batches of several shapes in one.
    """

    def __init__(self, product: Product, batches: Sequence[Batch]) -> None:
        self.product, self.batches = product, batches
        self.padded: list[padding.Padded] = []
        if product.kind in PADDED and batches:
            every = [batch.matrices for batch in batches]
            groups = padding.together(every, product.words)
            self.padded = [padding.Padded([every[k] for k in group]) for group in groups if len(group) > 1]
            self.batches = [batches[group[0]] for group in groups if len(group) == 1]

    def run(self, stream: int = 0) -> None:
        """Multiply. stream: the handle of the CUDA stream on which this is enqueued."""
        multiply = RUNS[self.product.kind]
        for padded in self.padded:
            with linalg.on_stream(padded.matrices, stream):
                padded.run(lambda matrices: multiply(matrices, *self.product.words))
        for batch in self.batches:
            with linalg.on_stream(batch.matrices, stream):
                if not self.product.names:
                    multiply(batch.matrices, *self.product.words)
                    continue
                found = [of(self.product.names) for of in batch.given]
                for matrices, values in together(batch, found):
                    multiply(matrices, *self.product.words, *values)


def together(batch: Batch, found: Sequence[Sequence[Any]]) -> Iterator[tuple[Any, Sequence[Any]]]:
    """What is multiplied at once, and the values of names that go with it: all of a batch where its tensors have the same scalars,
    with their states one behind the other, which are written back when the caller is done. found: the values of each tensor.
    """
    scalars = [[value for value in each if not hasattr(value, "__len__")] for each in found]
    if len(found) == 1 or any(each != scalars[0] for each in scalars):
        yield from zip(batch.parts, found, strict=True)
        return
    columns = [list(column) for column in zip(*found, strict=True)]
    states = {k: joined(column) for k, column in enumerate(columns) if hasattr(column[0], "__len__")}
    yield batch.matrices, [states.get(k, column[0]) for k, column in enumerate(columns)]
    for k, whole in states.items():
        first = 0
        for state in columns[k]:
            state[...] = whole[first : first + len(state)]
            first += len(state)


def joined(states: Sequence[Any]) -> Any:
    """Arrays of one library, one behind the other."""
    return import_module(linalg.library(states[0])).concatenate(states)


def matrices_of(array: Any, label: str, shape: tuple[int, int]) -> Any:
    """A state as products take it, the same memory as matrices of this shape: on the host of NumPy, whoever it is of."""
    view = arrays.describe(array, label)
    whole = view.numel // max(1, math.prod(shape)), *shape
    if view.device == "cpu":
        return memory(view.address, numpy_dtype(view.dtype), view.numel).reshape(whole)
    return linalg.multipliable(array).reshape(whole)
