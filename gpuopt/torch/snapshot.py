"""What a step looks at before it trusts the plan of the step before: where parameters and gradients lie, and how.

Called by `change_tracker` once a step for every tensor, so each line costs every user: the built-in methods are mapped over
lists, with no Python between them; `gpuopt.native.torch.watch` does the same in compiled code. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from gpuopt import arrays
from gpuopt.optim.parameters import Parameter

ADDRESS, CONTIGUOUS, NEGATED = torch.Tensor.data_ptr, torch.Tensor.is_contiguous, torch.Tensor.is_neg
COMPLEX = {torch.complex64, torch.complex128}


class Snapshot(NamedTuple):
    """What was seen of the tensors of a step.

    params: of the parameters, addresses, sizes and memory orders. layouts: of the gradients, dtypes and memory orders (torch itself
    keeps a gradient's shape its parameter's). gradients, states: addresses of their data. as_stored: whether the memory of all
    gradients holds their values as they are. The first two are compared with `==`.
    """

    params: Any
    layouts: Any
    gradients: list[int]
    states: list[int]
    as_stored: bool


def addresses(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Where their data lies."""
    return list(map(ADDRESS, tensors))


def placement(params: Sequence[torch.Tensor]) -> Any:
    """Where parameters lie, and how: `Snapshot.params`."""
    return addresses(params), [p.nbytes for p in params], memory_orders(params)


def memory_orders(tensors: Sequence[torch.Tensor]) -> tuple[list[bool], list[Any]]:
    """What tells them apart: whether each tensor is contiguous; shape and strides of those that are not."""
    flat = list(map(CONTIGUOUS, tensors))
    return flat, [] if all(flat) else [(t.shape, t.stride()) for t, f in zip(tensors, flat, strict=True) if not f]


def snapshot(
    params: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], states: Sequence[torch.Tensor]
) -> Snapshot:
    """A Snapshot of the tensors of a step. Raises RuntimeError for a gradient without an address, a sparse one."""
    placed, dtypes, found = placement(params), [g.dtype for g in gradients], addresses(gradients)
    # Torch may leave a conjugation or a negation to whoever reads the gradient: such a one is resolved at every step. A
    # negation is pending in the imaginary part of a conjugate, whose strides are even: dense only where it is one number.
    single = [g for g, size in zip(gradients, placed[1], strict=True) if size <= 8]
    as_stored = COMPLEX.isdisjoint(dtypes) and not any(map(NEGATED, single))
    return Snapshot(placed, (dtypes, memory_orders(gradients)), found, addresses(states), as_stored)


def checked_snapshot(
    params: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    states: Sequence[torch.Tensor],
    parameters: Sequence[Parameter],
) -> Snapshot:
    """The same; parameters: as the engine knows them. Raises LayoutError naming a gradient that is sparse."""
    try:
        return snapshot(params, gradients, states)
    except RuntimeError:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            arrays.describe(gradient, f"gradient of {parameter.label}")
        raise
