"""What a storage format is: two functions in the rule language, `decode` from codes to numbers and `encode` back.

Written for the authors of formats. On NumPy both run as Python on arrays; every other backend gets them through
`gpuopt.compiler`, which puts them before and behind the rule. This file must not know any backend, compiler or optimizer.

Besides what a rule has, a format has whole numbers of 32 bits, which wrap around: `bits(x)` of a float32, `from_bits(n)` back, and
`+ - * & | ^ << >>`, comparisons and `where` among them. A code is such a number, zero above its own bits; what is stored of a
result are its low bits. A format of blocks has besides the largest and the smallest value of a block, `block_max(x)` and
`block_min(x)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.errors import RuleSyntaxError, caller, entry
from gpuopt.formats.dtypes import SAME
from gpuopt.rules.primitives import reductions

if TYPE_CHECKING:
    from gpuopt.compiler.tree import FunctionTree

VISIBLE = "parameter"  # the array that the caller sees
PACKED = "uint4"  # two a byte
DTYPES = (
    "int8",
    "int16",
    PACKED,
    "uint8",
    "uint16",
    "float32",
)  # of planes; SAME: of the parameter, rounded to nearest
WORD = 32  # random bits that an element can have
SIZES = (32, 64, 128, 256)  # of blocks: 4 to 32 lanes of a GPU, 8 elements each


@dataclass(frozen=True)
class Plane:
    """One array of codes or numbers. dtype: one of DTYPES, SAME or VISIBLE; copied: it begins as the parameter, not as 0; block:
    elements that have one number of it together.
    """

    name: str
    dtype: str
    copied: bool = False
    block: int = 1

    @property
    def whole(self) -> bool:
        """Whether its elements are codes."""
        return self.dtype not in (SAME, "float32")

    @property
    def stored(self) -> str:
        """The dtype of its array."""
        return "uint8" if self.dtype == PACKED else self.dtype

    @property
    def per(self) -> int:
        """Elements of a row that one number of its array is for."""
        return 2 if self.dtype == PACKED else self.block


class Format:
    """How values are kept: `planes` of one element each, or of one block, the functions between them and a value, and the random
    bits that a value takes. Made by `@format`, with an `encode` beside it.
    """

    def __init__(self, function: Callable[..., Any], planes: tuple[Plane, ...], block: int = 0) -> None:
        self.function, self.planes, self.block = function, planes, block
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

        results = (1,) if self.shows else (1, 2)
        tree = parse_format(self.function, tuple(p.name for p in self.planes), results, ())
        check(tree, [p.name for p in self.planes if p.whole], [False] * len(tree.results))
        return tree

    @property
    def shows(self) -> bool:
        """Whether its first plane is an array that the caller sees: a format of parameters."""
        return self.planes[0].dtype == VISIBLE

    @property
    def in_rows(self) -> bool:
        """Whether elements of a row are encoded together: they have numbers of a block in common, or two of them a byte."""
        return any(plane.per > 1 for plane in self.planes)

    @property
    def corrects(self) -> bool:
        """Whether `decode` gives, behind a value, what the rule is to multiply it with wherever it is not the value's own next one
        that is computed.
        """
        return len(self.decoding.results) > 1

    @cached_property
    def encoding(self) -> FunctionTree:
        """The tree of `encode`."""
        from gpuopt.compiler.extremes import check_blocks
        from gpuopt.compiler.origin import place
        from gpuopt.compiler.parse import parse_format
        from gpuopt.compiler.whole import check

        if self.encoder is None:
            message = f"format {self.name} has no encode: expected one, under `@{self.name}.encode`"
            raise RuleSyntaxError(message, *place(self.function))
        tree = parse_format(self.encoder, ("x",), (len(self.planes),), ("random",) if self.random else ())
        check(tree, [], [p.whole for p in self.planes])
        check_blocks(tree, self)
        return tree

    @entry
    def encode(self, function: Callable[..., Any] | None = None, *, random: int = 0) -> Any:
        """Decorator: `function(x)` gives the code of a value for each plane, in their order. random: how many random bits it
        takes, as `*, random`, a whole number of which these lowest ones are random; the lowest of all decide least, for a parameter
        may have them too.
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

    def decoded(
        self, planes: Sequence[NDArray[Any]], half: bool, shape: tuple[int, int] | None = None
    ) -> tuple[NDArray[Any], ...]:
        """The values of planes as they are stored, whole numbers of any type and numbers as float32, and their correction where
        there is one: flat. shape: rows, and elements of each; by default one row.
        """
        blocks = Blocks(*(shape or (1, planes[0].size)), self.block)
        given = [blocks.spread(array, plane) for array, plane in zip(planes, self.planes, strict=True)]
        with np.errstate(all="ignore"):
            found = self.function(*given, **_flags(self.decoding, half))
        every = found if isinstance(found, tuple) else (found,)
        whole = [np.asarray(x, np.float32) for x in every]
        return tuple(x if x.shape == given[0].shape else np.full(given[0].shape, x) for x in whole)

    def encoded(
        self, x: NDArray[Any], half: bool, random: NDArray[np.uint32] | None, shape: tuple[int, int] | None = None
    ) -> list[NDArray[Any]]:
        """The planes, as they are stored, of flat float32 values."""
        given = {} if random is None else {"random": random}
        flags = _flags(self.encoding, half)  # first: it says so where there is no encode
        blocks = Blocks(*(shape or (1, x.size)), self.block)
        assert self.encoder is not None
        with np.errstate(all="ignore"), reductions(blocks):
            found = self.encoder(x, **given, **flags)
        every = found if isinstance(found, tuple) else (found,)
        made = [each if np.shape(each) == x.shape else np.full(x.shape, each) for each in every]
        return [blocks.gathered(array, plane) for array, plane in zip(made, self.planes, strict=True)]


class Blocks:
    """The blocks of a matrix: as many consecutive elements of a row, fewer at its end. What formats ask of them, on flat arrays."""

    def __init__(self, rows: int, width: int, block: int) -> None:
        self.rows, self.width, self.block = rows, width, block or max(1, width)
        of_row = np.arange(0, width, self.block)
        self.starts = np.add.outer(np.arange(rows) * width, of_row).reshape(-1)
        self.counts = np.tile(np.minimum(self.block, width - of_row), rows)

    def reduce(self, kind: str, x: Any) -> Any:
        """The largest or smallest value of its block, for each element."""
        ufunc = {"block_max": np.maximum, "block_min": np.minimum}[kind]
        found = ufunc.reduceat(x, self.starts) + np.float32(0)  # which zero is the larger one is left open
        found.view(np.uint32)[found != found] = NAN
        return np.repeat(found, self.counts)

    def spread(self, array: NDArray[Any], plane: Plane) -> NDArray[Any]:
        """A stored plane, one number for each element."""
        if plane.dtype == PACKED:
            both = array.reshape(self.rows, -(-self.width // 2), 1) >> np.array([0, 4], np.uint8) & np.uint8(15)
            found = both.reshape(self.rows, 2 * both.shape[1])[:, : self.width].reshape(-1)
        else:
            found = np.repeat(array.reshape(-1), self.counts) if plane.block > 1 else array.reshape(-1)
        return found.view(f"u{found.itemsize}").astype(np.uint32) if plane.whole else found.astype(np.float32)

    def gathered(self, found: NDArray[Any], plane: Plane) -> NDArray[Any]:
        """The plane as it is stored."""
        if plane.block > 1:
            found = found[self.starts]
        if plane.dtype != PACKED:
            return found
        padded = np.zeros((self.rows, self.width + self.width % 2), np.uint8)
        padded[:, : self.width] = found.reshape(self.rows, self.width) & np.uint32(15)
        packed: NDArray[Any] = (padded[:, ::2] | padded[:, 1::2] << np.uint8(4)).reshape(-1)
        return packed


NAN = 0x7FC00000  # what block_max and block_min are where a value is NaN


def found(module: str, name: str) -> Any:
    """A pickled format: the one of that name in its module."""
    from importlib import import_module

    return attrgetter(name)(import_module(module))


def _flags(tree: FunctionTree, half: bool) -> dict[str, bool]:
    return dict.fromkeys(tree.flags, half)


@entry
def format(
    *, planes: Mapping[str, str | Plane], per_block: Mapping[str, str | Plane] = {}, block: int = 0
) -> Callable[[Callable[..., Any]], Format]:
    """Make a storage format out of a function that gives values of codes, `decode(*planes, *per_block)`; its `encode` goes the
    other way.

    planes: the arrays, by the names of the function's arguments. Of a format of parameters the first is "parameter", the one that
    the caller sees, 16 bits of it. "int8", "int16", "uint8", "uint16" and "uint4", two of which are a byte, are whole numbers, zero
    before the first step; "float32" and "same" (as the parameter) are numbers. With a flag `half: bool` a format of parameters
    knows float16 from bfloat16.
    per_block: arrays of one such number for each block of `block` elements of a row, 32, 64, 128 or 256. Formats with these, and
    all without "parameter", are of states, which `decode` may give with a second number: what the rule is to multiply the state
    with wherever it does not compute the next one.
    Raises RuleSyntaxError for what is none of these.
    """
    if not isinstance(planes, Mapping) or not planes:
        raise RuleSyntaxError(f"planes = {planes!r}: expected names, such as planes={{'code': 'int8'}}", *caller())
    if bool(per_block) != bool(block) or (block and block not in SIZES):
        sizes = ", ".join(map(str, SIZES))
        raise RuleSyntaxError(f"block = {block!r}: expected one of {sizes} with planes per_block, else 0", *caller())
    made = [_plane(name, dtype, 1) for name, dtype in planes.items()]
    made += [_plane(name, dtype, block) for name, dtype in per_block.items()]
    first = [plane.dtype == VISIBLE for plane in made]
    if any(first[1:]) or (first[0] and block):
        raise RuleSyntaxError(
            f"planes {list(planes)}: expected the first one, and no other, to be {VISIBLE!r}, and no blocks then",
            *caller(),
        )

    @entry
    def decorate(function: Callable[..., Any]) -> Format:
        return Format(function, tuple(made), block)

    return decorate


def _plane(name: str, dtype: str | Plane, block: int) -> Plane:
    plane = dtype if isinstance(dtype, Plane) else Plane(name, dtype, block=block)
    allowed = (VISIBLE, SAME, *DTYPES) if block == 1 else tuple(d for d in DTYPES if d != PACKED)
    if plane.name != name or plane.dtype not in allowed:
        raise RuleSyntaxError(f"plane {name!r}: {dtype!r}: expected one of {', '.join(allowed)}", *caller())
    return plane
