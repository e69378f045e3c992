"""States that are kept in codes, as arrays of NumPy: their values, and codes of values. Knows no optimizer and no kernel.

Called where states begin as another number than 0, are loaded from another format, or are looked at between two steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.formats import formats, philox
from gpuopt.formats.language import VISIBLE, Format
from gpuopt.launch.shards import Shard
from gpuopt.optim.keeping import planes
from gpuopt.rules.declared import State
from gpuopt.rules.language import Rule

BETWEEN = 255  # the stream of random words that no step takes


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and elements of a row, in which blocks begin anew, of an array of two or more axes."""
    return shape[0], math.prod(shape[1:])


def codes_of(rule: Rule) -> dict[str, Format]:
    """The formats of states that are kept in codes, by name."""
    return dict(getattr(rule, "codes", ()))


def values(of: Format, given: list[NDArray[Any]], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The values of planes, in the order of the format."""
    flat = [np.ascontiguousarray(array).reshape(-1) for array in given]
    found: NDArray[np.float32] = of.decoded(flat, False, matrix(shape))[0].reshape(shape)
    return found


def codes(
    of: Format, array: NDArray[Any], place: tuple[int, int, int], half: bool = False, shard: Shard | None = None
) -> list[NDArray[Any]]:
    """The planes of values, each flat, what shows of a parameter as uint16. place: seed, number of the tensor, step count, on which
    random bits depend; half: of a float16 parameter; shard: which part of the tensor they are.
    """
    flat = np.ascontiguousarray(array, np.float32).reshape(-1)
    which = np.arange(flat.size, dtype=np.int64)
    which = which if shard is None else shard.elements(which)
    random = philox.words_of(*place, BETWEEN, which) if of.random else None
    made = of.encoded(flat, half, random, matrix(array.shape) if of.in_rows else None)
    kinds = ["uint16" if plane.dtype == VISIBLE else plane.stored if plane.whole else "float32" for plane in of.planes]
    return [np.asarray(found).astype(kind) for kind, found in zip(kinds, made, strict=True)]


def encoded(
    rule: Rule, name: str, array: NDArray[Any], place: tuple[int, int, int], shard: Shard | None = None
) -> dict[str, NDArray[Any]]:
    """The planes of a state that becomes these values, by their names in the rule, in their shapes."""
    of, own = codes_of(rule)[name], rule.of_states[name]  # type: ignore[attr-defined]
    made = zip(own, codes(of, array, place, shard=shard), strict=True)
    return {state.name: found.reshape(rule.shape_of(state, array.shape, {})) for state, found in made}


def decoded(
    rule: Rule, name: str, states: Mapping[str, Any], shape: tuple[int, ...], on_host: Callable[[Any], Any]
) -> Any:
    """The values of a state whose planes are among these, by their names in the rule."""
    own = rule.of_states[name]  # type: ignore[attr-defined]
    return values(codes_of(rule)[name], [on_host(states[s.name]) for s in own], shape)


def plain(
    rule: Rule, entry: Mapping[str, Any], shape: tuple[int, ...], on_host: Callable[[Any], Any]
) -> dict[str, Any]:
    """Saved states, by key, with those that another format than the rule's keeps in codes as values."""
    found = dict(entry)
    mine = {s.key for s in rule.states}
    base: tuple[State, ...] = getattr(rule, "base", rule).states
    known = {**formats(), **{of.name: of for of in codes_of(rule).values()}}
    for state in base:
        for of in (of for of in known.values() if not of.shows and state.key not in found):
            keys = [s.key for s in planes(of, state)]
            if all(key in found for key in keys) and not set(keys) <= mine:
                given = [np.asarray(on_host(found.pop(key))) for key in keys]
                found[state.key] = values(of, given, shape)
    return found


def converted(
    rule: Rule,
    entry: Mapping[str, Any],
    active: Collection[State],
    shape: tuple[int, ...],
    on_host: Callable[[Any], Any],
    place: tuple[int, int, int],
    shard: Shard | None = None,
) -> dict[str, Any]:
    """Saved states, by key, as the rule keeps them where these states are active: in codes or not, through values where they were
    saved otherwise. shard: which part of the tensor they are, where they are one.
    """
    found = plain(rule, entry, shape, on_host)
    there = {s.key: s.name for s in active}
    for state in getattr(rule, "base", rule).states:
        own = getattr(rule, "of_states", {}).get(state.name, ())
        saved = bool(own) and all(s.key in found for s in own)
        if own and own[0].key in there and state.key in found and np.shape(found[state.key]) == shape:
            array = np.asarray(on_host(found.pop(state.key))).astype(np.float32)
            made = encoded(rule, state.name, array, place, shard)
            found |= {s.key: made[s.name] for s in own}
        elif state.key in there and saved:
            by_name = {s.name: found.pop(s.key) for s in own}
            found[state.key] = decoded(rule, state.name, by_name, shape, on_host)
    return found


def missing(rule: Rule, active: Collection[State], found: Collection[str]) -> str | None:
    """The key of an active state that was not saved, if any; planes of a parameter's format begin anew."""
    own = {s.name for s in getattr(rule, "of_parameter", ())}
    return next((s.key for s in active if s.key not in found and s.name not in own), None)
