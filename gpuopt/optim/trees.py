"""Lists, tuples and nested dicts of arrays <-> flat lists with a label for each array. Used by the optimizer only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from gpuopt.arrays import is_array
from gpuopt.errors import InputError, KindError
from gpuopt.messages import abbreviated


def settled(tree: Any, label: str) -> Any:
    """The tree with a list in place of every generator, view of a dict, deque and other iterable, which may not be indexed.

    Raises InputError for a set, which has no order.
    """
    if isinstance(tree, Mapping):
        return {key: settled(value, f"{label}[{key!r}]") for key, value in tree.items()}
    if isinstance(tree, (set, frozenset)):
        raise InputError(f"{label}: a set: expected an ordered collection, such as a list")
    if not isinstance(tree, (list, tuple)) and not is_iterable(tree):
        return tree
    found = [settled(value, f"{label}[{index}]") for index, value in enumerate(tree)]
    return tuple(found) if type(tree) is tuple else found


def is_iterable(value: Any) -> bool:
    """Whether it holds arrays and is none itself: a generator, a view of a dict, a deque."""
    return isinstance(value, Iterable) and not is_array(value) and not isinstance(value, (str, bytes))


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


def paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys and indices that lead to each array, in the order of `flatten`: `("layer", 0)`."""
    if isinstance(tree, (Mapping, list, tuple)):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from paths(value, (*path, key))
    else:
        yield path


def mirror(structure: Any, tree: Any, label: str, what: str) -> Iterator[Any]:
    """The leaves of `tree` in the order of `structure`'s. Raises InputError naming the first place that differs."""
    if isinstance(structure, Mapping):
        if not isinstance(tree, Mapping) or set(tree) != set(structure):
            found = listed(tree) if isinstance(tree, Mapping) else type(tree).__name__
            raise InputError(f"{label}: expected a dict with the keys {listed(structure)} as in {what}, found {found}")
        for key, value in structure.items():
            yield from mirror(value, tree[key], f"{label}[{key!r}]", what)
    elif isinstance(structure, (list, tuple)):
        tree = list(tree) if is_iterable(tree) and not isinstance(tree, (list, tuple, Mapping)) else tree
        if not isinstance(tree, (list, tuple)) or len(tree) != len(structure):
            found = f"{len(tree)}" if isinstance(tree, (list, tuple)) else type(tree).__name__
            raise InputError(f"{label}: expected {len(structure)} entries as in {what}, found {found}")
        for index, value in enumerate(structure):
            yield from mirror(value, tree[index], f"{label}[{index}]", what)
    else:
        yield tree


def rebuilt(structure: Any, leaves: Iterator[Any]) -> Any:
    """The structure with these leaves in the place of its own, in the order of `flatten`."""
    if isinstance(structure, Mapping):
        return {key: rebuilt(value, leaves) for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return type(structure)(rebuilt(value, leaves) for value in structure)
    return next(leaves)


def choices(structure: Any, chosen: Any, label: str) -> Iterator[bool]:
    """True or False for each array of `structure`, from a tree that mirrors it or a function of path and array; True for None.

    Raises InputError for a tree of another form, KindError for what is neither True nor False.
    """
    arrays = [array for _, array in flatten(structure, label)]
    if chosen is None:
        found: Iterable[Any] = [True] * len(arrays)
    elif callable(chosen):
        found = [chosen(path, array) for path, array in zip(paths(structure), arrays, strict=True)]
    else:
        found = mirror(structure, chosen, label, "params")
    for path, value in zip(paths(structure), found, strict=True):
        if not isinstance(value, (bool, np.bool_)):
            where = "".join(f"[{key!r}]" for key in path)
            raise KindError(f"{label}{where} = {abbreviated(value)}: expected True or False")
        yield bool(value)


def listed(keys: Iterable[Any]) -> str:
    """The keys of a dict in a message."""
    return ", ".join(sorted(map(repr, keys))) or "none"


def is_group_list(params: Any) -> bool:
    """Whether `params` is a list of group dicts `{"params": ...}`."""
    return isinstance(params, (list, tuple)) and bool(params) and all(
        isinstance(p, Mapping) and "params" in p for p in params
    )  # fmt: skip
