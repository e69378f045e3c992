"""What a checkpoint holds of an optimizer of gpuopt.torch, and what is made of one; the twin of `optim.contents`.

Called by `torch.between`, for `optim.checkpoint`. `whole` and `placed` are all that is said of how a tensor lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpuopt.errors import InputError
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.optim.checkpoint import Entry, Outline, Slot
from gpuopt.tensor_file import Tensor
from gpuopt.torch import shards
from gpuopt.torch.parameters import labelled
from gpuopt.torch.tensors import NAMES


def outline(optimizer: Any) -> Outline:
    """See `optim.checkpoint`."""
    groups = optimizer.param_groups
    named = [len(group.get("param_names") or ()) == len(group["params"]) for group in groups]
    slots = [
        Slot(label if named[k] else None, tuple(p.shape), str(p.dtype).removeprefix("torch."), k)
        for label, p, k, _ in labelled(groups)
    ]
    return Outline(optimizer.rule, str(optimizer._given), slots, groups)


def entries(optimizer: Any) -> list[Entry]:
    """Step count and states of each parameter, in the order of the groups; of one that has neither, nothing."""
    saved = optimizer.state_dict()
    members = list(labelled(optimizer.param_groups))
    others = [key for key in saved["state"] if not isinstance(key, int)]
    if others:
        raise InputError(
            f"state[{others[0]!r}]: no parameter of this optimizer: nothing else than states of them is saved"
        )
    made: list[Entry] = []
    for k, (_, p, *_) in enumerate(members):
        found = {key: value for key, value in saved["state"].get(k, {}).items() if value is not None}
        entry = {key: tensor(v) if isinstance(v, torch.Tensor) else v for key, v in found.items() if key != "step"}
        taken = found.get("step") if optimizer._counts_steps else optimizer._taken.get(p, 0) or (1 if entry else None)
        made.append(({} if taken is None else {"step": int(taken)}) | entry)
    return made


def tensor(given: torch.Tensor) -> Tensor:
    shape = (*given.shape, 2) if given.is_complex() else tuple(given.shape)
    return Tensor(NAMES.get(given.dtype, str(given.dtype).removeprefix("torch.")), shape, partial(whole, given))


def whole(given: torch.Tensor) -> NDArray[Any]:
    """A state as an array on the host, complex numbers as pairs: all of a DTensor, which every process has to ask for."""
    found = shards.gathered(given).detach().resolve_conj().resolve_neg().cpu()
    found = torch.view_as_real(found) if found.is_complex() else found
    if found.dtype is torch.bfloat16:
        return found.view(torch.uint16).numpy().view(numpy_dtype("bfloat16"))
    return np.asarray(found.numpy())


def placed(array: NDArray[Any], p: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A state of a parameter on this device, from an array on the host."""
    bits = array.view(np.uint16) if array.dtype == numpy_dtype("bfloat16") else array
    made = torch.from_numpy(bits.copy())
    return (made.view(torch.bfloat16) if bits is not array else made).to(device)


def take(optimizer: Any, groups: Sequence[dict[str, Any]], found: Sequence[Entry]) -> None:
    """Become what was saved. Raises InputError before anything is changed."""
    members, states, steps = list(labelled(optimizer.param_groups)), {}, {}
    large = {s.key for s in optimizer.rule.states if s.large} if optimizer._given.on_host else set[str]()
    for k, ((_, p, *_), entry) in enumerate(zip(members, found, strict=True)):
        made = {}
        for key, value in entry.items():
            whole_here = key in large or shards.is_part(p)  # of which a part goes to where the parameter is
            device = torch.device("cpu") if whole_here else p.device
            made[key] = placed(value, p, device) if isinstance(value, np.ndarray) else value
        if not optimizer._counts_steps and "step" in made:
            steps[p] = made.pop("step")
        if made:
            states[k] = made
    of_groups, begin = [], 0
    for live, saved in zip(optimizer.param_groups, groups, strict=True):
        end = begin + len(live["params"])
        values = {name: like(live[name], value) if name in live else value for name, value in saved.items()}
        of_groups.append(values | {"params": list(range(begin, end))})
        begin = end
    optimizer.load_state_dict({"state": states, "param_groups": of_groups})
    optimizer._taken |= steps


def like(live: Any, value: Any) -> Any:
    """A hyperparameter as a new tensor where it is one here, or as several where it is several."""
    if isinstance(live, (tuple, list)) and isinstance(value, tuple) and len(live) == len(value):
        return tuple(like(one, each) for one, each in zip(live, value, strict=True))
    if isinstance(live, torch.Tensor) and isinstance(value, (int, float)):
        return torch.full_like(live.detach(), value)
    return value
