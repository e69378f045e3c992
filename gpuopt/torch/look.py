"""What a step looks at before it trusts the plan of the step before: where parameters and gradients lie, and how.

Called by `follow` once a step for every tensor, so each line here costs every user: the built-in methods are mapped over lists,
with no Python between them; `native` does the same in compiled code. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gpuopt import arrays
from gpuopt.optim.slots import Slot

ADDRESS, CONTIGUOUS, NEGATED = torch.Tensor.data_ptr, torch.Tensor.is_contiguous, torch.Tensor.is_neg
COMPLEX = {torch.complex64, torch.complex128}


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of the tensors of a step.

    layout: everything that a plan of launches depends on but the addresses of gradients, to be compared with `==`: where
    parameters lie, their sizes and memory orders, dtypes and memory orders of gradients (torch itself keeps a gradient's shape
    its parameter's). addresses: of gradients, 0 where there is none. states: addresses of the state tensors, as bytes.
    as_stored: whether the memory of all gradients holds their values as they are.
    """

    layout: Any
    addresses: list[int]
    states: bytes
    as_stored: bool


def places(tensors: Sequence[torch.Tensor]) -> bytes:
    """Their addresses, to be compared."""
    return np.array(list(map(ADDRESS, tensors)), np.int64).tobytes()


def look(params: Sequence[torch.Tensor], states: Sequence[torch.Tensor]) -> Look:
    """A Look at the tensors. Raises RuntimeError for a gradient without an address, a sparse one."""
    gradients = [p.grad for p in params]
    present = [g for g in gradients if g is not None]
    found = iter(map(ADDRESS, present))
    which = () if len(present) == len(params) else tuple(g is not None for g in gradients)
    addresses = [next(found) if g is not None else 0 for g in gradients] if which else list(found)
    dtypes, sizes = [g.dtype for g in present], [p.nbytes for p in params]
    layout = (list(map(ADDRESS, params)), sizes, order(params), which, dtypes, order(present))
    # Torch may leave a conjugation or a negation to whoever reads the gradient: such a one is resolved at every step. A
    # negation is pending in the imaginary part of a conjugate, whose strides are even: dense only where it is one number.
    single = [g for g, size in zip(gradients, sizes, strict=True) if size <= 8 and g is not None]
    stored = COMPLEX.isdisjoint(dtypes) and not any(map(NEGATED, single))
    return Look(layout, addresses, places(states), stored)


def order(tensors: Sequence[torch.Tensor]) -> tuple[list[bool], list[Any]]:
    """What tells memory orders apart: whether each tensor is contiguous; shape and strides of those that are not."""
    flat = list(map(CONTIGUOUS, tensors))
    return flat, [] if all(flat) else [(t.shape, t.stride()) for t, f in zip(tensors, flat, strict=True) if not f]


def look_at(params: Sequence[torch.Tensor], states: Sequence[torch.Tensor], slots: Sequence[Slot]) -> Look:
    """A Look; the parameters are one of each slot. Raises DtypeError naming a gradient that is sparse."""
    try:
        return look(params, states)
    except RuntimeError:
        for slot in slots:
            if slot.array.grad is not None:
                arrays.describe(slot.array.grad, f"gradient of {slot.label}")
        raise
