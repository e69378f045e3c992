"""What a checkpoint holds of an optimizer over arrays, and what is made of one. Called by `optim.between`, for `optim.checkpoint`;
knows no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt import arrays
from gpuopt.optim import state_dict, trees
from gpuopt.optim.checkpoint import LABELS, Entry, Outline, Slot
from gpuopt.optim.hyper import GROUP_KEYS, defaults_of, on_gpu
from gpuopt.optim.parameters import Parameter
from gpuopt.pairs import COMPLEX, as_pairs, is_complex
from gpuopt.tensor_file import Tensor


def order(optimizer: Any) -> list[int]:
    """Places in the optimizer in the order of the groups, each of which may have parameters from anywhere."""
    every = optimizer._engine.parameters
    return sorted(range(len(every)), key=lambda k: every[k].group)


def outline(optimizer: Any) -> Outline:
    """See `optim.checkpoint`."""
    names = [name for structure in optimizer._structures for name in map(named, trees.paths(structure))]
    slots = [slot(optimizer._engine.parameters[k], names[k]) for k in order(optimizer)]
    return Outline(optimizer.rule, str(optimizer.settings), slots, optimizer.param_groups)


def named(path: tuple[Any, ...]) -> str | None:
    """What the keys that lead to an array say, as torch names parameters; nothing where they are places in lists."""
    return ".".join(map(str, path)) if any(isinstance(key, str) for key in path) else None


def slot(p: Parameter, name: str | None) -> Slot:
    shape, dtype = (p.whole[:-1], COMPLEX[p.view.dtype]) if p.view.pairs else (p.whole, p.view.dtype)
    return Slot(name, shape, dtype, p.group)


def entries(optimizer: Any) -> list[Entry]:
    """Step count and states of each parameter, in the order of the groups; of one that has neither, nothing."""
    engine = optimizer._engine
    engine.synchronize()
    engine.wait()
    keys = {s.name: s.key for s in optimizer.rule.states}
    made: list[Entry] = []
    for p in (engine.parameters[k] for k in order(optimizer)):
        step = {"step": p.counter.step} if p.states or p.counter.step else {}
        made.append({**step, **{keys[name]: tensor(array, name) for name, array in p.states.items()}})
    return made


def tensor(array: Any, name: str) -> Tensor:
    view = arrays.describe(array, name)
    return Tensor(view.dtype, view.shape, partial(whole, array))


def whole(array: Any) -> NDArray[Any]:
    """A state as an array on the host, complex numbers as pairs."""
    found = arrays.on_host(array)
    return np.asarray(as_pairs(found) if is_complex(found) else found)


def take(optimizer: Any, groups: Sequence[dict[str, Any]], found: Sequence[Entry]) -> None:
    """Become what was saved. Raises InputError before anything is changed. Hyperparameters on a GPU are set where they are."""
    places, known = order(optimizer), {*defaults_of(optimizer.rule), *GROUP_KEYS} - {*LABELS}
    of_groups, later = [], []
    for number, (live, saved) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        there = {name: live[name] for name in saved.keys() & live.keys() if name in known and on_gpu(live[name])}
        later += [(array, saved[name]) for name, array in there.items() if saved[name] is not array]
        members = [k for k in places if optimizer._engine.parameters[k].group == number]
        of_groups.append({k: v for k, v in saved.items() if k in known} | there | {"params": members})
    states = {place: entry for place, entry in zip(places, found, strict=True) if entry}
    version = {"rule": optimizer.rule.name, "version": state_dict.VERSION}
    optimizer.load_state_dict({"state": states, "param_groups": of_groups, **version})
    for array, value in later:
        set_number(array, value)


def set_number(array: Any, value: Any) -> None:
    """Bring a number into an array on a GPU, or numbers into those of several that are."""
    if isinstance(array, (tuple, list)):
        for one, each in zip(array, value, strict=True):
            set_number(one, each)
    elif on_gpu(array):
        arrays.kind_of(array, "hyperparameter").assign(array, value)
