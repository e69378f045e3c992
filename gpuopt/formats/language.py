"""What a storage format is: two functions in the rule language, `decode` from codes to numbers and `encode` back.

Written for the authors of formats. On NumPy both run as Python on arrays; every other backend gets them through
`gpuopt.compiler`, which puts them before and behind the rule. This file must not know any backend, compiler or optimizer.

Besides what a rule has, a format has whole numbers of 32 bits, which wrap around: `bits(x)` of a float32, `from_bits(n)` back, and
`+ - & | ^ << >>`, comparisons and `where` among them. A code is such a number, zero above its own bits; what is stored of a result
are its low bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.errors import RuleSyntaxError, caller, entry
from gpuopt.formats.dtypes import SAME

if TYPE_CHECKING:
    from gpuopt.compiler.tree import FunctionTree

VISIBLE = "parameter"  # the array that the caller sees
DTYPES = ("int8", "int16", "uint8", "uint16", "float32")  # of planes; SAME: of the parameter, rounded to nearest
WORD = 32  # random bits that an element can have


@dataclass(frozen=True)
class Plane:
    """One array of codes or numbers. dtype: one of DTYPES, SAME or VISIBLE; copied: it begins as the parameter, not as 0."""

    name: str
    dtype: str
    copied: bool = False

    @property
    def whole(self) -> bool:
        """Whether its elements are codes."""
        return self.dtype not in (SAME, "float32")


class Format:
    """How values are kept: `planes` of one element each, the functions between them and a value, and the random bits that a
    value takes. Made by `@format`, with an `encode` beside it.
    """

    def __init__(self, function: Callable[..., Any], planes: tuple[Plane, ...]) -> None:
        self.function, self.planes = function, planes
        self.name = function.__name__
        self.encoder: Callable[..., Any] | None = None
        self.random = 0
        self.__doc__ = function.__doc__
        _ = self.decoding  # now, so that a mistake is reported where the format is written

    def __repr__(self) -> str:
        return f"<gpuopt format {self.name}>"

    def __deepcopy__(self, _: Any) -> Format:
        return self

    def __reduce__(self) -> Any:
        return found, (self.function.__module__, self.function.__qualname__)

    @cached_property
    def decoding(self) -> FunctionTree:
        """The tree of `decode`."""
        from gpuopt.compiler.parse import parse_format
        from gpuopt.compiler.whole import check

        tree = parse_format(self.function, tuple(p.name for p in self.planes), 1, ())
        check(tree, [p.name for p in self.planes if p.whole], [False])
        return tree

    @cached_property
    def encoding(self) -> FunctionTree:
        """The tree of `encode`."""
        from gpuopt.compiler.origin import place
        from gpuopt.compiler.parse import parse_format
        from gpuopt.compiler.whole import check

        if self.encoder is None:
            message = f"format {self.name} has no encode: expected one, under `@{self.name}.encode`"
            raise RuleSyntaxError(message, *place(self.function))
        tree = parse_format(self.encoder, ("x",), len(self.planes), ("random",) if self.random else ())
        check(tree, [], [p.whole for p in self.planes])
        return tree

    @entry
    def encode(self, function: Callable[..., Any] | None = None, *, random: int = 0) -> Any:
        """Decorator: `function(x)` gives the code of a value for each plane, in their order. random: how many random bits it
        takes, as `*, random`, a whole number of which these lowest ones are random.
        """
        if isinstance(random, bool) or not isinstance(random, int) or not 0 <= random <= WORD:
            raise RuleSyntaxError(f"random = {random!r}: expected a number of bits, 0 to {WORD}", *caller())

        def keep(found: Callable[..., Any]) -> Callable[..., Any]:
            self.encoder, self.random = found, random
            self.__dict__.pop("encoding", None)
            _ = self.encoding
            return found

        return keep if function is None else keep(function)

    # ------------------------------------------------------------------------------------------- on arrays

    def decoded(self, codes: list[NDArray[Any]], half: bool) -> NDArray[Any]:
        """The values of codes, whole numbers as uint32 and numbers as float32."""
        with np.errstate(all="ignore"):
            found: NDArray[Any] = self.function(*codes, **_flags(self.decoding, half))
        return found

    def encoded(self, x: NDArray[Any], half: bool, random: NDArray[np.uint32] | None) -> tuple[Any, ...]:
        """The codes of float32 values, one array for each plane."""
        given = {} if random is None else {"random": random}
        flags = _flags(self.encoding, half)  # first: it says so where there is no encode
        assert self.encoder is not None
        with np.errstate(all="ignore"):
            found = self.encoder(x, **given, **flags)
        return found if isinstance(found, tuple) else (found,)


def found(module: str, name: str) -> Any:
    """A pickled format: the one of that name in its module."""
    from importlib import import_module

    return attrgetter(name)(import_module(module))


def _flags(tree: FunctionTree, half: bool) -> dict[str, bool]:
    return dict.fromkeys(tree.flags, half)


@entry
def format(*, planes: Mapping[str, str | Plane]) -> Callable[[Callable[..., Any]], Format]:
    """Make a storage format out of a function that gives values of codes, `decode(*planes)`; its `encode` goes the other way.

    planes: the arrays, by the names of the function's arguments: "parameter" is the one that the caller sees, 16 bits of it;
    "int8", "int16", "uint8" and "uint16" are whole numbers, zero before the first step; "float32" and "same" (as the parameter) are
    numbers. With a flag `half: bool` a function knows float16 from bfloat16. Raises RuleSyntaxError for what is none of these.
    """
    if not isinstance(planes, Mapping) or not planes:
        raise RuleSyntaxError(f"planes = {planes!r}: expected names, such as planes={{'code': 'int8'}}", *caller())
    made = []
    for name, dtype in planes.items():
        plane = dtype if isinstance(dtype, Plane) else Plane(name, dtype)
        if plane.name != name or plane.dtype not in (VISIBLE, SAME, *DTYPES):
            known = ", ".join((VISIBLE, SAME, *DTYPES))
            raise RuleSyntaxError(f"plane {name!r}: {dtype!r}: expected one of {known}", *caller())
        made.append(plane)
    if [plane.dtype == VISIBLE for plane in made] != [True, *[False] * (len(made) - 1)]:
        raise RuleSyntaxError(
            f"planes {list(planes)}: expected the first one, and no other, to be {VISIBLE!r}", *caller()
        )

    @entry
    def decorate(function: Callable[..., Any]) -> Format:
        return Format(function, tuple(made))

    return decorate
