"""What a step looks at before it trusts the plan of the step before: where parameters and gradients lie, and how.

Called by `follow` once a step for every tensor, so each line here costs every user: the built-in methods are mapped over lists,
with no Python between them; `native` does the same in compiled code. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from gpuopt import arrays
from gpuopt.optim.slots import Slot

ADDRESS, CONTIGUOUS, NEGATED = torch.Tensor.data_ptr, torch.Tensor.is_contiguous, torch.Tensor.is_neg
COMPLEX = {torch.complex64, torch.complex128}


class Look(NamedTuple):
    """What was seen of the tensors of a step.

    where: of the parameters, addresses, sizes and memory orders. layout: of the gradients, dtypes and memory orders (torch itself
    keeps a gradient's shape its parameter's). addresses: of the gradients. states: addresses of the state tensors.
    as_stored: whether the memory of all gradients holds their values as they are. The first two are compared with `==`.
    """

    where: Any
    layout: Any
    addresses: list[int]
    states: list[int]
    as_stored: bool


def places(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Their addresses."""
    return list(map(ADDRESS, tensors))


def where(params: Sequence[torch.Tensor]) -> Any:
    """Where parameters lie, and how."""
    return places(params), [p.nbytes for p in params], order(params)


def look(params: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], states: Sequence[torch.Tensor]) -> Look:
    """A Look at parameters, their gradients, and states. Raises RuntimeError for a gradient without an address, a sparse one."""
    here, dtypes = where(params), [g.dtype for g in gradients]
    addresses = places(gradients)
    # Torch may leave a conjugation or a negation to whoever reads the gradient: such a one is resolved at every step. A
    # negation is pending in the imaginary part of a conjugate, whose strides are even: dense only where it is one number.
    single = [g for g, size in zip(gradients, here[1], strict=True) if size <= 8]
    stored = COMPLEX.isdisjoint(dtypes) and not any(map(NEGATED, single))
    return Look(here, (dtypes, order(gradients)), addresses, places(states), stored)


def order(tensors: Sequence[torch.Tensor]) -> tuple[list[bool], list[Any]]:
    """What tells memory orders apart: whether each tensor is contiguous; shape and strides of those that are not."""
    flat = list(map(CONTIGUOUS, tensors))
    return flat, [] if all(flat) else [(t.shape, t.stride()) for t, f in zip(tensors, flat, strict=True) if not f]


def look_at(
    params: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    states: Sequence[torch.Tensor],
    slots: Sequence[Slot],
) -> Look:
    """A Look; slots: of the parameters. Raises LayoutError naming a gradient that is sparse."""
    try:
        return look(params, gradients, states)
    except RuntimeError:
        for slot, gradient in zip(slots, gradients, strict=True):
            arrays.describe(gradient, f"gradient of {slot.label}")
        raise
