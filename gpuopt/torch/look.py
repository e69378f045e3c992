"""What a step looks at before it trusts the plan of the step before: where parameters and gradients lie, and how.

Called once a step for every tensor, so each line here costs every user: the built-in methods are mapped over lists, with no
Python between them. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gpuopt import arrays
from gpuopt.optim.slots import Slot

ADDRESS, CONTIGUOUS, NEGATED = torch.Tensor.data_ptr, torch.Tensor.is_contiguous, torch.Tensor.is_neg
COMPLEX = {torch.complex64, torch.complex128}


class Look:
    """One look at the tensors of a step. Raises RuntimeError for a gradient without an address, a sparse one.

    layout: everything that a plan of launches depends on but the addresses of gradients; addresses: those, 0 where there is no
    gradient. A reused address shows in `layout` if the size, the dtype or the memory order is another: bytes and memory
    order of parameters (torch itself keeps a gradient's shape its parameter's), dtype and memory order of gradients.
    """

    def __init__(self, params: Sequence[torch.Tensor]) -> None:
        self.gradients = [p.grad for p in params]
        present = [g for g in self.gradients if g is not None]
        found = list(map(ADDRESS, present))
        which: tuple[bool, ...] = ()  # all of them
        if len(present) == len(params):
            self.addresses = found
        else:
            which, rest = tuple(g is not None for g in self.gradients), iter(found)
            self.addresses = [next(rest) if there else 0 for there in which]
        dtypes, sizes = [g.dtype for g in present], [p.nbytes for p in params]
        self.layout: tuple[Any, ...] = (
            list(map(ADDRESS, params)),
            sizes,
            order(params),
            which,
            dtypes,
            order(present),
        )
        # Torch may leave a conjugation or a negation to whoever reads the gradient: such a one is resolved at every step. A
        # negation is pending in the imaginary part of a conjugate, whose strides are even: dense only where it is one number.
        single = [g for g, size in zip(self.gradients, sizes, strict=True) if size <= 8 and g is not None]
        self.as_stored = COMPLEX.isdisjoint(dtypes) and not any(map(NEGATED, single))


def order(tensors: Sequence[torch.Tensor]) -> tuple[list[bool], list[Any]]:
    """What tells memory orders apart: whether each tensor is contiguous; shape and strides of those that are not."""
    flat = list(map(CONTIGUOUS, tensors))
    return flat, [] if all(flat) else [(t.shape, t.stride()) for t, f in zip(tensors, flat, strict=True) if not f]


def look_at(params: Sequence[torch.Tensor], slots: Sequence[Slot]) -> Look:
    """A Look at the parameters, one of each slot. Raises DtypeError naming a gradient that is sparse."""
    try:
        return Look(params)
    except RuntimeError:
        for slot in slots:
            if slot.array.grad is not None:
                arrays.describe(slot.array.grad, f"gradient of {slot.label}")
        raise
