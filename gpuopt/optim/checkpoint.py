"""`gpuopt.save` and `gpuopt.load`: an optimizer in a file, the same whatever framework, backend or memory it was in.

Called by users. The file is in the safetensors format: `state.3.exp_avg` is a state of the fourth parameter, counted in the order
of the groups, complex ones as pairs of real numbers; what is no array is JSON in the metadata. Both kinds of optimizers say what
they have (`_checkpoint`, `_entries`) and take what was read (`_take`). Knows no array library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from numpy.typing import NDArray

from gpuopt import arrays, tensor_file
from gpuopt.errors import FileError, InputError, entry
from gpuopt.messages import abbreviated
from gpuopt.optim.hyper import OPTIONAL, changes, defaults_of, own_defaults
from gpuopt.optim.state_dict import plain
from gpuopt.rules.language import Rule
from gpuopt.tensor_file import Read, Tensor

VERSION = "1"
LABELS = ("params", "param_names")  # keys of a group that are said of each parameter
# Keys of torch's groups that say how steps are made, and not which: an optimizer keeps its own.
HOW = ("foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay")
WRAPPED = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)  # in names, by what torch puts around modules
COPIED = "module"  # in front of names, by DistributedDataParallel

Entry = dict[str, Any]  # of a parameter: its step count, and its states by their keys


@dataclass(frozen=True)
class Slot:
    """A parameter in a checkpoint: its name, if it has one, its shape and dtype, complex ones too, and its group."""

    name: str | None
    shape: tuple[int, ...]
    dtype: str
    group: int

    def __str__(self) -> str:
        return f" ({self.name})" if self.name else ""


@dataclass(frozen=True)
class Outline:
    """What an optimizer is, before anything is said of its states. options: those of all groups, in words; slots: in the order of
    the groups.
    """

    rule: Rule
    options: str
    slots: Sequence[Slot]
    groups: Sequence[dict[str, Any]]

    def sizes(self) -> list[int]:
        """The number of parameters in each group."""
        return sizes([slot.group for slot in self.slots], len(self.groups))


def sizes(groups: Sequence[int], count: int) -> list[int]:
    return [groups.count(k) for k in range(count)]


def asked(optimizer: Any, call: str) -> Outline:
    """The outline of an optimizer. Raises InputError for what is none of gpuopt."""
    made = getattr(optimizer, "_checkpoint", None)
    if made is None:
        raise InputError(f"{call}: found {type(optimizer).__name__}: expected an optimizer of gpuopt")
    outline: Outline = made()
    return outline


def unwrapped(name: str) -> str:
    """A parameter's name without what torch's wrappers put into it."""
    parts = [part for part in name.split(".") if part not in WRAPPED]
    return ".".join(parts[1:] if parts[:1] == [COPIED] and len(parts) > 1 else parts)


# ----------------------------------------------------------------------------------------------------------- save


@entry
def save(optimizer: Any, path: Any) -> None:
    """Write states, step counts and hyperparameters of an optimizer of gpuopt, or of a SAM around one, into a file; parameters are
    the model's, but what a `param_format` keeps beside them is among the states. Of a `data_parallel` optimizer, or of DTensors, on
    every process: the first writes, and all wait until it has.

    What was there stays until all of the new file is on the disk, then has its name taken: whatever happens, the old file is there
    or the new one. States come to the host one by one. A hyperparameter that is a function of the step is saved as None.
    Raises OSError as `open` does, CommunicationError where another process could not write, InputError for what is no such
    optimizer, or holds what cannot be written as text.
    """
    outline = asked(optimizer, "save")
    groups = [of_group(outline.rule, group, f"param_groups[{k}]") for k, group in enumerate(outline.groups)]
    tensors: dict[str, Tensor] = {}
    parameters = []
    for k, (slot, state) in enumerate(zip(outline.slots, optimizer._entries(), strict=True)):
        found = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        tensors |= {f"state.{k}.{key}": found[key] for key in sorted(found)}
        rest = {key: text(value, f"state[{k}][{key!r}]") for key, value in state.items() if key not in found}
        parameters.append(asdict(slot) | {"state": rest})
    saved = {"version": VERSION, "rule": outline.rule.name, "options": outline.options}
    of_all = {"parameters": parameters, "groups": groups}
    failed, unread = True, [tensors[name] for name in tensor_file.in_order(tensors)]
    try:
        if getattr(optimizer, "_writes", True):
            text_of_all = {name: json.dumps(value) for name, value in of_all.items()}
            tensor_file.write(path, noted(tensors, unread), saved | text_of_all)
        failed = False
    finally:
        getattr(optimizer, "_agree", lambda *_: None)(failed, unread)


def noted(tensors: Mapping[str, Tensor], unread: list[Tensor]) -> dict[str, Tensor]:
    """The same tensors; each leaves the list when it is read."""

    def read(tensor: Tensor) -> NDArray[Any]:
        unread.remove(tensor)
        return tensor.read()

    return {name: replace(tensor, read=partial(read, tensor)) for name, tensor in tensors.items()}


def of_group(rule: Rule, group: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The hyperparameters of a group without the options that are as they are by default, and whatever else is in it."""
    own, known = own_defaults(rule), defaults_of(rule)
    made = {}
    for name in sorted(group.keys() - {*LABELS, *HOW}):
        value = None if changes(group[name]) else text(group[name], f"{label}[{name!r}]")
        if name in own or name not in known or value != known[name]:
            made[name] = value
    return made


def text(value: Any, label: str) -> Any:
    """A value as JSON has it. Raises InputError for what has no place there."""
    value = plain(value)
    if isinstance(value, (tuple, list)):
        return [text(each, f"{label}[{k}]") for k, each in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: text(each, f"{label}[{key!r}]") for key, each in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    try:
        return arrays.number(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"{label} = {abbreviated(value)}: expected numbers, text, None, and lists and dicts of them: nothing else is saved"
        ) from None


# ----------------------------------------------------------------------------------------------------------- load


@entry
def load(optimizer: Any, path: Any) -> None:
    """Take states, step counts and hyperparameters from a file that `save` wrote of the same optimizer: over arrays or of
    gpuopt.torch, on any backend and in any format of states, by way of their values.

    Everything is looked at before anything is changed. Raises FileError for a file that is damaged, cut off, no such file or of
    another version; InputError for one that does not fit: of another optimizer, or other parameters; OSError as `open` does.
    """
    outline = asked(optimizer, "load")
    file = tensor_file.read(path)
    groups, entries = unpacked(file, outline)
    file.check()
    for name, array in file.arrays.items():
        number, key = name.removeprefix("state.").split(".", 1)
        entries[int(number)][key] = array
    made = [restored(outline.rule, live, found) for live, found in zip(outline.groups, groups, strict=True)]
    try:
        optimizer._take(made, entries)
    except InputError as error:
        raise type(error)(f"{file.path}: {error}") from None


def unpacked(file: Read, outline: Outline) -> tuple[list[dict[str, Any]], list[Entry]]:
    """Groups and what is no array of each parameter. Raises FileError or InputError unless it is a checkpoint of this optimizer."""
    path, found = file.path, file.metadata
    if found.get("version") != VERSION:
        raise FileError(f"{path}: version {found.get('version')!r}: expected {VERSION!r}, that of this gpuopt")
    if found.get("rule") != outline.rule.name:
        raise InputError(f"{path}: a checkpoint of {found.get('rule')!r}: expected {outline.rule.name!r}")
    try:
        groups, parameters = json.loads(found["groups"]), json.loads(found["parameters"])
        slots = [Slot(p["name"], tuple(p["shape"]), p["dtype"], p["group"]) for p in parameters]
        entries = [dict(p["state"]) for p in parameters]
        lengths = sizes([slot.group for slot in slots], len(groups))
        groups = [{name: tuples(value) for name, value in group.items()} for group in groups]
        known = {f"state.{k}" for k in range(len(slots))}
        others = [name for name in file.arrays if ".".join(name.split(".", 2)[:2]) not in known]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FileError(f"{path}: the metadata are of another kind than gpuopt.save writes: {error!r}") from None
    if others:
        raise FileError(f"{path}: {others[0]}: expected states of {len(slots)} parameters")
    check_slots(path, lengths, slots, outline)
    return groups, entries


def check_slots(path: str, lengths: list[int], slots: Sequence[Slot], outline: Outline) -> None:
    """Raise InputError unless a file is of these parameters, as far as it and the optimizer know them."""
    expected = outline.sizes()
    if sum(lengths) != sum(expected):
        raise InputError(f"{path}: {sum(lengths)} parameters: expected {sum(expected)}")
    if lengths != expected:
        raise InputError(f"{path}: groups of {lengths} parameters: expected {expected}")
    for k, (found, own) in enumerate(zip(slots, outline.slots, strict=True)):
        if found.name and own.name and unwrapped(found.name) != unwrapped(own.name):
            raise InputError(f"{path}: parameter {k} is {found.name}: expected {own.name}, in the same order")
    for k, (found, own) in enumerate(zip(slots, outline.slots, strict=True)):
        if found.shape != own.shape:
            raise InputError(f"{path}: parameter {k}{found}: shape {found.shape}: expected {own.shape}")
        if found.dtype.startswith("complex") != own.dtype.startswith("complex"):
            raise InputError(f"{path}: parameter {k}{found}: {found.dtype}: expected {own.dtype}")


def tuples(value: Any) -> Any:
    """A value of JSON with tuples in the place of lists, as hyperparameters are."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def restored(rule: Rule, live: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A group as it was saved; what is here only, as labels and functions of the step, stays."""
    own, known = own_defaults(rule), defaults_of(rule)
    options = {name: value for name, value in known.items() if name in live and name not in own}
    made = dict(live)
    for name, value in (options | dict(saved)).items():
        stays = value is None and name in live and (name not in OPTIONAL or changes(live[name]))
        made[name] = live[name] if stays else value
    return made
