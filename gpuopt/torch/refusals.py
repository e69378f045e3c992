"""Which rules and options cannot step a parameter that is a part of a tensor, or has lost its shape: said in words before anything
is made of it. Called by the optimizer; knows no engine.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import torch

from gpuopt.compiler.tree import operations
from gpuopt.errors import InputError
from gpuopt.optim import geometry
from gpuopt.optim.settings import Settings
from gpuopt.rules.definition import ALONG, MATRIX
from gpuopt.rules.language import Rule
from gpuopt.torch import shards
from gpuopt.torch.parameters import shaped

OF_TENSORS = {*ALONG, "tensor_sum", "tensor_max"}  # what a tensor without its shape does not have
# What an attribute of a tensor says of who has flattened it.
FLATTENED = {"_fsdp_flattened": "FullyShardedDataParallel", "ds_id": "DeepSpeed", "ds_shape": "DeepSpeed"}


def check(rule: Rule, group: Mapping[str, Any], p: torch.Tensor, label: str, beside: bool = False) -> bool:
    """Whether a step needs a matrix whole of which this process has a part. Raises InputError where it cannot be brought to one
    process. beside: whether it has a mask, bounds or an anchor.
    """
    flattened(rule, group, p, label)
    if shards.whole(p) or len(p.shape) < 2 or p.is_complex():
        return False
    looks = rule.definition().along and shaped(rule, rule.flags(group), p).get(MATRIX, True)
    options = [f"{name} = {group[name]!r}" for name, of in geometry.on(group) if "matrix" in of.flags]
    if not looks and not options:
        return False
    what = rule.title if looks else options[0]
    if rule.joint or beside:
        found = "sums over all tensors" if rule.joint else "a mask, bounds or an anchor"
        raise InputError(
            f"{label}: shape {tuple(p.shape)} with {found}: {what} looks at rows and columns of whole matrices, of which each "
            "process has a part: expected none of these, or an optimizer of single elements and sums, such as AdamW or LAMB"
        )
    return True


def alone(opt: torch.optim.Optimizer, rule: Rule, settings: Settings) -> None:
    """Raise InputError where an optimizer steps some of a model's parameters for a ZeroRedundancyOptimizer, and a step is asked for
    what looks at all of them: it would be another on each process.
    """
    options = {name: getattr(settings, name) for name in ("max_grad_norm", "skip_nonfinite")}
    options |= {"optimizer": rule.title if rule.joint else None}
    asked = {name: value for name, value in options.items() if value is not None and value is not False}
    if not asked or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    for owner in gc.get_referrers(opt):  # an object or its dict, as Python has it
        if "_partition_parameters_cache" in (owner if isinstance(owner, dict) else getattr(owner, "__dict__", ())):
            name, value = next(iter(asked.items()))
            raise InputError(
                f"{name} = {value!r} cannot go with ZeroRedundancyOptimizer, of which each process steps others: expected "
                "torch.nn.utils.clip_grad_norm_ before the step, or fully_shard (FSDP2)"
            )


def flattened(rule: Rule, group: Mapping[str, Any], p: torch.Tensor, label: str) -> None:
    """Raise InputError where a step needs the shape of a tensor, and of this one someone has left only its elements."""
    who = next((name for attribute, name in FLATTENED.items() if hasattr(p, attribute)), None)
    if who is None:
        return
    needs = [f"{name} = {group[name]!r}" for name, _ in geometry.on(group)]
    if not operations(rule.definition().tree.body).isdisjoint(OF_TENSORS):
        needs.insert(0, rule.title)
    if needs:
        raise InputError(
            f"{label}: {who} has flattened it and kept a part: {needs[0]} needs whole tensors in their shape: expected fully_shard "
            "(FSDP2), or an optimizer of single elements, such as AdamW"
        )
