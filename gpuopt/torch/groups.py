"""The usual parameter groups of a model: no weight decay on biases, norms and whatever else has one axis.

Called by the user, for any optimizer of torch, not only ours. Knows no rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch

from gpuopt.errors import InputError, KindError, entry
from gpuopt.optim.hyper import check_number

# Norms of torch and of others, by the names of their classes or of those that these derive from: LlamaRMSNorm, LayerNorm2d.
NORM = re.compile(r"Norm(\dd)?$")
BIAS = re.compile(r"(^|_)bias(_|$)")  # also of recurrent and attention layers: bias_hh_l0, in_proj_bias
EMBEDDINGS = (torch.nn.Embedding, torch.nn.EmbeddingBag)


@entry
def decay_groups(
    model: torch.nn.Module,
    weight_decay: float = 0.1,
    *,
    embeddings: bool = True,
    no_decay: Iterable[str] = (),
    named: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Two groups for an optimizer: the parameters that decay, and, with weight_decay = 0, biases, parameters of norms and all that
    have at most one axis. `AdamW(gpuopt.torch.decay_groups(model, 0.1), lr=1e-3)`.

    A parameter that several modules share comes once, and does not decay if it should not in any of them; what does not require a
    gradient is left out. embeddings: whether tables of embeddings decay. no_decay: names, or patterns such as "*.pos_embed", of
    more that do not, beside those of the model's own `no_weight_decay()`, if it has one (as models of timm do). named: give
    (name, parameter) pairs, as `named_parameters()` does. options: of both groups. A group without parameters is left out.

    Raises KindError for what is no module, InputError for a model with nothing to train or with lazy layers that never ran, and
    for a name that no parameter has.
    """
    if not isinstance(model, torch.nn.Module):
        raise KindError(f"decay_groups: found {type(model).__name__}: expected a torch.nn.Module")
    check_number("weight_decay", weight_decay, "decay_groups")
    patterns = [no_decay] if isinstance(no_decay, str) else list(no_decay)
    of_model = getattr(model, "no_weight_decay", tuple)
    every: dict[torch.nn.Parameter, str] = {}
    spared: set[torch.nn.Parameter] = set()
    met: set[str] = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        for last, p in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{last}" if prefix else last
            if isinstance(p, torch.nn.parameter.UninitializedParameter):
                raise InputError(f"decay_groups: {name} has no shape yet: run the model once before")
            every.setdefault(p, name)
            fits = [pattern for pattern in patterns if fnmatchcase(name, pattern)]
            met.update(fits)
            if fits or name in of_model() or spares(module, last, p, embeddings):
                spared.add(p)
    missed = [pattern for pattern in patterns if pattern not in met]
    if missed:
        raise InputError(f"decay_groups: no_decay = {missed[0]!r}: no parameter of the model has such a name")
    groups = []
    for decay, chosen in ((weight_decay, every.keys() - spared), (0.0, spared)):
        members = [(name, p) if named else p for p, name in every.items() if p in chosen and p.requires_grad]
        if members:
            groups.append({**options, "params": members, "weight_decay": decay})
    if not groups:
        raise InputError("decay_groups: no parameter of the model requires a gradient")
    return groups


def spares(module: torch.nn.Module, name: str, p: torch.nn.Parameter, embeddings: bool) -> bool:
    """Whether a parameter of this module, under this name there, usually does not decay."""
    norm = any(NORM.search(kind.__name__) for kind in type(module).__mro__)
    return p.ndim <= 1 or norm or bool(BIAS.search(name)) or (isinstance(module, EMBEDDINGS) and not embeddings)
