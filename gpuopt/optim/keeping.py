"""A rule whose parameters are kept in a format: the same rule, with the format's other planes as states beside its own.

Made by both optimizers where `param_format` asks for one, so that whoever allocates, saves, loads or moves states does the same
with planes. Knows no optimizer and no kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from gpuopt.compiler.names import CODE
from gpuopt.errors import InputError
from gpuopt.formats import formats
from gpuopt.formats.language import VISIBLE, Format
from gpuopt.rules.declared import PARAMETER, State
from gpuopt.rules.definition import Definition
from gpuopt.rules.language import Rule

HALVES = CODE + "half"  # the flag of a parameter of 16 bits: the only ones that a format changes


class Keeping(Rule):
    """What `Rule` is, by what `base` is."""

    def __init__(self, base: Rule, kept: Format) -> None:
        self.base, self.kept = base, kept
        self.states = (*base.states, *planes(kept))

    def __getattr__(self, name: str) -> Any:
        if name in ("base", "kept"):  # of an object that is being made
            raise AttributeError(name)
        return getattr(self.base, name)

    def __reduce__(self) -> Any:
        return keeping, (self.base, self.kept.name if formats().get(self.kept.name) is self.kept else self.kept)

    def definition(self) -> Definition:
        """That of the rule itself."""
        return self.base.definition()

    def shaped(
        self, flags: Mapping[str, Any], shape: tuple[int, ...], pairs: bool = False, dtype: str = "float32"
    ) -> dict[str, Any]:
        """The rule's, and whether the parameter has 16 bits."""
        return {**self.base.shaped(flags, shape, pairs, dtype), HALVES: dtype in ("float16", "bfloat16")}


def planes(kept: Format) -> tuple[State, ...]:
    """The states that a format needs beside the array that shows."""
    return tuple(
        State(
            f"{CODE}p_{plane.name}",
            f"param_{plane.name}",
            HALVES,
            PARAMETER if plane.copied else 0.0,
            plane=plane.dtype,
        )
        for plane in kept.planes
        if plane.dtype != VISIBLE
    )


@cache
def every_plane() -> frozenset[str]:
    """The keys in a state dict of the planes of all formats."""
    return frozenset(state.key for each in formats().values() for state in planes(each))


@cache
def keeping(base: Rule, kept: str | Format) -> Rule:
    """The rule with parameters in that format; the rule itself for "native"."""
    if kept == "native":
        return base
    return Keeping(base, formats()[kept] if isinstance(kept, str) else kept)


def check_halves(kept: str | Format, dtypes: Iterable[str]) -> None:
    """Raise InputError where a format is asked for and none of the parameters, of these dtypes, can have it."""
    found = sorted(set(dtypes))
    if kept != "native" and found and not set(found) & {"float16", "bfloat16"}:
        raise InputError(
            f"param_format = {kept!r} is for parameters of 16 bits, float16 or bfloat16, and these are {' and '.join(found)}: "
            "leave it at native"
        )
