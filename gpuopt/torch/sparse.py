"""Sparse gradients of torch, in COO layout: the values of the rows that they have, and these rows; dense ones where torch's class
makes the same of them.

Called by `change_tracker` through the optimizer, where it meets one. Knows no kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gpuopt import arrays
from gpuopt.errors import LayoutError
from gpuopt.optim.parameters import Parameter
from gpuopt.optim.settings import Settings

TWINS = ("adagrad", "sgd")  # torch's classes that take sparse gradients, to the same result as dense ones
Rows = list[torch.Tensor | None]  # of each parameter, or None for all of them


def taken(
    twin: str,
    settings: Settings,
    groups: Sequence[Mapping[str, Any]],
    parameters: Sequence[Parameter],
    gradients: Sequence[torch.Tensor],
) -> tuple[list[torch.Tensor], Rows]:
    """What is stepped for these gradients. Raises LayoutError for another layout than COO, and for more sparse axes than one where
    that is no torch class that takes them; and with weight_decay where it is one.
    """
    values: list[torch.Tensor] = []
    rows: Rows = []
    for p, gradient in zip(parameters, gradients, strict=True):
        label, group, of = f"gradient of {p.label}", groups[p.counter.group], None
        if gradient.layout is not torch.sparse_coo:
            arrays.describe(gradient, label)
        elif twin in TWINS and group.get("weight_decay"):
            raise LayoutError(f"{label}: a sparse one does not go with weight_decay, which is of every element")
        elif twin in TWINS and not (gradient.sparse_dim() == 1 and leaves_others(settings, group, p)):
            gradient = gradient.to_dense()
        elif gradient.sparse_dim() != 1:
            raise LayoutError(
                f"{label}: {gradient.sparse_dim()} sparse axes: expected one, of rows, as an embedding's has; or .to_dense()"
            )
        else:
            together = gradient.coalesce()
            gradient, of = together.values(), together.indices()[0]
        values.append(gradient)
        rows.append(of)
    return values, rows


def leaves_others(settings: Settings, group: Mapping[str, Any], p: Parameter) -> bool:
    """Whether a step of torch's class with a dense gradient would leave elements as they are whose gradient is 0."""
    moved = group.get("momentum") or group.get("l1") or p.beside or settings.param_format != "native"
    return not (moved or settings.capturable or settings.state_format != "float32")
