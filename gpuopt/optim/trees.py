"""Lists, tuples and nested dicts of arrays <-> flat lists with a label for each array. Used by the optimizer only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpuopt.errors import InputError


def flatten(tree: Any, label: str) -> Iterator[tuple[str, Any]]:
    """(label, array) pairs in order; labels read like `params['layer'][0]`."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from flatten(value, f"{label}[{key!r}]")
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from flatten(value, f"{label}[{index}]")
    else:
        yield label, tree


def mirror(structure: Any, tree: Any, label: str, what: str) -> Iterator[Any]:
    """The leaves of `tree` in the order of `structure`'s. Raises InputError naming the first place that differs."""
    if isinstance(structure, Mapping):
        if not isinstance(tree, Mapping) or set(tree) != set(structure):
            found = sorted(map(repr, tree)) if isinstance(tree, Mapping) else type(tree).__name__
            raise InputError(
                f"{label}: expected a dict with keys {sorted(map(repr, structure))} as in {what}, found {found}"
            )
        for key, value in structure.items():
            yield from mirror(value, tree[key], f"{label}[{key!r}]", what)
    elif isinstance(structure, (list, tuple)):
        if not isinstance(tree, (list, tuple)) or len(tree) != len(structure):
            found = f"{len(tree)}" if isinstance(tree, (list, tuple)) else type(tree).__name__
            raise InputError(f"{label}: expected {len(structure)} entries as in {what}, found {found}")
        for index, value in enumerate(structure):
            yield from mirror(value, tree[index], f"{label}[{index}]", what)
    else:
        yield tree


def is_group_list(params: Any) -> bool:
    """Whether `params` is a list of group dicts `{"params": ...}`."""
    return isinstance(params, (list, tuple)) and bool(params) and all(
        isinstance(p, Mapping) and "params" in p for p in params
    )  # fmt: skip
