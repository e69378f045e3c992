"""A rule whose parameters or states are kept in formats: the same rule, with the planes of the formats as states beside its own, or
in their place.

Made by both optimizers where `param_format` or `state_format` asks for one, so that whoever allocates, saves, loads or moves states
does the same with planes. Knows no optimizer and no kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from gpuopt.compiler.names import CODE
from gpuopt.errors import InputError
from gpuopt.formats import formats
from gpuopt.formats.dtypes import STORAGES
from gpuopt.formats.language import VISIBLE, Format
from gpuopt.optim import companions
from gpuopt.rules.declared import PARAMETER, State
from gpuopt.rules.definition import Definition
from gpuopt.rules.language import Rule

if TYPE_CHECKING:
    from gpuopt.optim.settings import Settings

NARROW = CODE + "narrow"  # the flag of a parameter of 16 bits: the only ones that a format of parameters changes
CODED = CODE + "coded"  # the flag of a parameter whose states are kept in codes
LEAST = 4096  # elements of a tensor whose states are; of two axes or more

Codes = tuple[tuple[str, Format], ...]  # of states, by name


class Keeping(Rule):
    """What `Rule` is, by what `base` is. kept: the format of parameters, if any; codes: those of states; beside: states that
    options of groups need, see `optim.companions`.
    """

    def __init__(self, base: Rule, kept: Format | None, codes: Codes, beside: tuple[str, ...]) -> None:
        self.base, self.kept, self.codes, self.beside = base, kept, codes, beside
        self.of_options = tuple(map(companions.state, beside))
        known = {state.name: state for state in base.states}
        self.of_parameter = planes(kept) if kept else ()
        self.of_states = {name: planes(of, known[name]) for name, of in codes}
        of_states = (p for every in self.of_states.values() for p in every)
        self.states = (*base.states, *self.of_options, *self.of_parameter, *of_states)

    def __getattr__(self, name: str) -> Any:
        if name in ("base", "kept", "codes", "beside"):  # of an object that is being made
            raise AttributeError(name)
        return getattr(self.base, name)

    def __reduce__(self) -> Any:
        return keeping, (self.base, plain(self.kept) if self.kept else "native", self.codes, self.beside)

    def definition(self) -> Definition:
        """That of the rule itself."""
        return self.base.definition()

    def flags(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """The rule's, and which of the states of options there are."""
        return {**self.base.flags(hyper), **companions.flags(hyper)}

    def shaped(
        self, flags: Mapping[str, Any], shape: tuple[int, ...], pairs: bool = False, dtype: str = "float32"
    ) -> dict[str, Any]:
        """The rule's, and which of the formats the parameter and its states are kept in."""
        large = len(shape) > 1 and math.prod(shape) >= LEAST and not pairs and STORAGES[dtype].compute == "float32"
        found = self.base.shaped(flags, shape, pairs, dtype)
        return {**found, NARROW: dtype in ("float16", "bfloat16"), CODED: bool(self.codes) and large}

    def shape_of(self, state: State, parameter: tuple[int, ...], hyper: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape of a state, or of a plane of one."""
        if state.per == 1:
            return self.base.shape_of(state, parameter, hyper)
        rows, *rest = parameter or (1,)  # a number is kept in no codes, but asked about
        return rows, -(-math.prod(rest) // state.per)

    def active_states(self, flags: Mapping[str, Any]) -> tuple[State, ...]:
        """The rule's, planes in the place of those that are kept in codes, and planes of the parameter."""
        found: list[State] = []
        for state in self.base.active_states(flags):
            found += self.of_states.get(state.name, (state,)) if flags.get(CODED) else (state,)
        found += [state for state in self.of_options if flags.get(str(state.when))]
        return (*found, *(self.of_parameter if flags.get(NARROW) else ()))


def uncoded(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a parameter whose states are not kept in codes, whatever its size."""
    return {**flags, CODED: False} if CODED in flags else dict(flags)


def planes(kept: Format, of: State | None = None) -> tuple[State, ...]:
    """The states that a format needs of a parameter, beside the array that shows, or of a state."""
    name, key = ("p", "param") if of is None else (of.name, f"{of.key}_{kept.name}")
    return tuple(
        State(
            f"{CODE}{name}_{plane.name}",
            f"{key}_{plane.name}",
            None,
            PARAMETER if plane.copied else 0.0,
            readonly=of is not None and of.readonly,
            shape="parameter" if plane.per == 1 else "blocks",
            plane=plane.stored,
            per=plane.per,
        )
        for plane in kept.planes
        if plane.dtype != VISIBLE
    )


def plain(kept: Format) -> str | Format:
    """The name of a format of this library, or the format itself."""
    return kept.name if formats().get(kept.name) is kept else kept


@cache
def every_plane() -> frozenset[str]:
    """The keys in a state dict of the planes of parameters in all formats."""
    return frozenset(state.key for each in formats().values() if each.shows for state in planes(each))


@cache
def keeping(base: Rule, kept: str | Format, codes: Codes = (), beside: tuple[str, ...] = ()) -> Rule:
    """The rule with parameters in that format, states in these, and states of options beside; the rule itself for "native", no
    codes and no options.
    """
    if kept == "native" and not codes and not beside:
        return base
    found = formats()[kept] if isinstance(kept, str) and kept != "native" else kept
    return Keeping(base, found if isinstance(found, Format) else None, codes, beside)


def of_settings(base: Rule, settings: Settings, group: Mapping[str, Any]) -> Rule:
    """The rule with all that formats and the options of a group keep beside parameters."""
    return keeping(base, settings.param_format, settings.codes(base), companions.states_of(group))


def check_narrow(kept: str | Format, dtypes: Iterable[str]) -> None:
    """Raise InputError where a format is asked for and none of the parameters, of these dtypes, can have it."""
    found = sorted(set(dtypes))
    if kept != "native" and found and not set(found) & {"float16", "bfloat16"}:
        raise InputError(
            f"param_format = {kept!r} is for parameters of 16 bits, float16 or bfloat16, and these are {' and '.join(found)}: "
            "leave it at native"
        )
