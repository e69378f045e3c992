"""Arrays at chosen offsets inside larger poisoned memory, and whole steps on them, for comparing backends bit by bit.

Called by the tests of bits and sanitizers. Knows no backend: it takes the name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gpuopt
from gpuopt import rules
from gpuopt.compiler.names import OPTION
from gpuopt.compiler.program import Program
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.formats.language import Format
from gpuopt.launch.launcher import Launch
from gpuopt.optim.coded import codes
from gpuopt.optim.optimizer import Optimizer
from gpuopt.optim.parameters import Parameter
from gpuopt.rules.language import Rule
from gpuopt.rules.options import BESIDE
from gpuopt.source import program

POISON = 0xA5  # as any floating type: a small negative number, neither NaN nor infinity
GAP = 64  # bytes between arrays, and their alignment before the offset


class Arena:
    """One buffer that holds an array of each of `shapes`, `offsets[k]` elements behind a multiple of 64 bytes."""

    def __init__(self, dtype: str, shapes: Sequence[tuple[int, ...]], offsets: Sequence[int]) -> None:
        self.dtype, self.shapes = numpy_dtype(dtype), shapes
        item = self.dtype.itemsize
        self.spans = []
        position = GAP
        for shape, offset in zip(shapes, offsets, strict=True):
            begin = position + offset * item
            end = begin + math.prod(shape) * item
            self.spans.append((begin, end))
            position = -(-(end + GAP) // GAP) * GAP
        self._place(np.full(position, POISON, np.uint8))

    def views(self, memory: Any) -> list[Any]:
        """The arrays in that memory, of NumPy or CuPy."""
        return [memory[a:b].view(self.dtype).reshape(s) for (a, b), s in zip(self.spans, self.shapes, strict=True)]

    def _place(self, content: NDArray[np.uint8]) -> None:
        raw = np.empty(content.size + GAP, np.uint8)
        skip = -raw.ctypes.data % GAP
        self.memory = raw[skip : skip + content.size]
        self.memory[...] = content
        self.arrays = self.views(self.memory)

    def copy(self) -> Arena:
        """The same bytes in memory of its own."""
        made = copy(self)
        made._place(self.memory)
        return made

    def zones_intact(self) -> bool:
        """Whether every byte outside the arrays still is what it was."""
        outside = np.ones(self.memory.size, bool)
        for begin, end in self.spans:
            outside[begin:end] = False
        return bool((self.memory[outside] == POISON).all())

    def bits(self) -> NDArray[Any]:
        """All elements as integers, every NaN the same one."""
        joined = np.concatenate([np.empty(0, self.dtype), *(a.ravel() for a in self.arrays)])
        if self.dtype.kind == "b":
            return joined
        bits = joined.view(f"u{self.dtype.itemsize}")
        if self.dtype.kind in "iu":
            return bits
        with np.errstate(invalid="ignore"):
            bits[np.isnan(joined)] = np.iinfo(bits.dtype).max
        return bits


def values(rng: np.random.Generator, dtype: str, size: int, odd: float) -> NDArray[Any]:
    """Numbers of ordinary size, a share of them odd: zeros, denormals, infinities, NaN, extremes, any bits at all."""
    target = numpy_dtype(dtype)
    if dtype == "bool":
        return rng.random(size) < 0.7
    if target.kind in "iu":
        return np.frombuffer(rng.bytes(size * target.itemsize), target)
    with np.errstate(all="ignore"):
        result = (rng.standard_normal(size) * 10.0 ** rng.integers(-3, 2, size)).astype(target)
        which = np.flatnonzero(rng.random(size) < odd)
        least = 2.0 ** {"float64": -1074, "float32": -149, "float16": -24, "bfloat16": -133}[target.name]
        known = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, least, -37 * least, 3e38, -65504.0, 1e-8, 1.0, 0.0])
        known = known.astype(target)
        known.view(f"u{target.itemsize}")[-1] = 2 ** (8 * target.itemsize - 1) - 1  # NaN, all its bits set
        result[which] = rng.choice(known, which.size)
        which = which[::3]
        result[which] = np.frombuffer(rng.bytes(which.size * target.itemsize), target)
    return result


def parameters_of(made: Optimizer) -> list[Parameter]:
    """An optimizer's tensors; the one place in these tests that knows where it keeps them."""
    return made._engine.parameters


def launches_of(made: Optimizer) -> list[Launch]:
    """The launches of its last step."""
    return [launch for _, launches, _ in made._engine._launches for launch in launches]


def as_matrix(size: int) -> tuple[int, int]:
    """A shape of so many elements, as near to a square as it goes."""
    rows = next((r for r in range(math.isqrt(size), 0, -1) if size % r == 0), 3)
    return rows, size // rows


@dataclass
class Case:
    """Steps of one optimizer on one list of arrays. offsets: role -> one for each array, 0 where a role is missing.
    sizes: elements of each, which are matrices if the rule sums along rows or columns; or shapes.

    rule: a name or a rule of a user's own, whose states of one number or of one a row or column come back beside the arrays.
    odd: the share of odd values; seen: which tensors have a gradient, one tuple of indices a step, None for all.
    """

    rule: str | Rule
    hyper: Mapping[str, Any]
    param_dtype: str
    sizes: Sequence[int | tuple[int, ...]]
    grad_dtype: str | None = None
    state_format: str | Format = "float32"
    mask: bool = False
    bounds: bool = False  # any numbers at all, set behind the checks of an optimizer
    offsets: Mapping[str, Sequence[int]] = field(default_factory=dict)
    odd: float = 0.05
    steps: int = 2
    seen: Sequence[Sequence[int]] | None = None
    groups: Sequence[Mapping[str, Any]] = ({},)  # tensor k belongs to group k % len(groups)
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def program(self) -> Program:
        """What its one kernel computes."""
        wide = {name: getattr(self, name) for name in ("grad_dtype", "mask", "bounds", "state_format")}
        given = {**self.options, **self.hyper}  # a rule may have an option of its own under the same name
        return program(self.rule, param_dtype=self.param_dtype, **given, **wide)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the arrays."""
        along = (rules.get(self.rule) if isinstance(self.rule, str) else self.rule).definition().along
        return [n if isinstance(n, tuple) else as_matrix(n) if along else (n,) for n in self.sizes]

    @cached_property
    def start(self) -> dict[str, Arena]:
        """What every run begins with: role -> arrays, mask and bounds without the mark of an option."""
        made = {}
        for k, role in enumerate(self.program.roles):
            bare = role.name.removeprefix(OPTION)
            name = bare if bare in BESIDE else role.name
            dtype = role.storage.removeprefix("code-")
            arena = Arena(dtype, self.shapes, self.offsets.get(name, [0] * len(self.sizes)))
            for i, array in enumerate(a.reshape(-1) for a in arena.arrays):
                rng = np.random.default_rng([self.seed, k, i])
                array[...] = values(rng, dtype, array.size, self.odd)
                if array.dtype.kind not in "biu" and k > 1:  # mostly positive: roots are taken of many a state
                    with np.errstate(all="ignore"):
                        wrong = array > 0 if name == "lower" else array < 0
                        np.negative(array, where=wrong & (rng.random(array.size) < 0.9), out=array)
            made[name] = arena
        return made | self._in_codes()

    def _in_codes(self) -> dict[str, Arena]:
        """The planes of states that are kept in formats of their own: codes of numbers, since no others can be there."""
        signature, made = self.program.signature, {}
        of = {r.name: r for r in (*signature.roles, *signature.blocked)}
        for k, coded in enumerate(c for c in signature.coded if not c.format.shows):
            for name in coded.planes:
                role = of[name]
                shapes = [s if role.per == 1 else (s[0], -(-math.prod(s[1:]) // role.per)) for s in self.shapes]
                made[name] = Arena(role.storage, shapes, self.offsets.get(name, [0] * len(shapes)))
            for i, shape in enumerate(self.shapes):
                rng = np.random.default_rng([self.seed, 100 + k, i])
                given = values(
                    rng, "float32", math.prod(shape), self.odd / 100
                )  # one that is not finite spoils a block
                if coded.format.name not in ("signed8", "signed4", "float8"):
                    given = np.abs(given)
                for name, plane in zip(coded.planes, codes(coded.format, given.reshape(shape), (0, i, 0)), strict=True):
                    made[name].arrays[i][...] = plane.reshape(made[name].arrays[i].shape)
        return made

    def optimizer(self, arenas: Mapping[str, Arena], backend: str) -> Optimizer:
        """The optimizer on these arrays, its states among them."""
        count = len(self.groups)
        chosen: dict[str, Any] = dict(self.options)
        if self.mask:
            chosen["mask"] = [arenas["mask"].arrays[k::count] for k in range(count)]
        groups = [{"params": arenas["p"].arrays[k::count], **g} for k, g in enumerate(self.groups)]
        chosen |= {"backend": backend, "state_format": self.state_format, **self.hyper}
        make = gpuopt.create if isinstance(self.rule, str) else gpuopt.optimizer
        made = make(self.rule, groups, **chosen)  # type: ignore[arg-type]
        names = {s.name for s in made.rule.states} & set(arenas)
        for parameter, k in zip(parameters_of(made), self.order, strict=True):
            parameter.states = {name: arenas[name].arrays[k] for name in names}
            parameter.beside |= {name: arenas[name].arrays[k] for name in ("lower", "upper") if self.bounds}
        return made

    @property
    def order(self) -> list[int]:
        """The arrays as the optimizer has them, group behind group."""
        count = len(self.groups)
        return [k for group in range(count) for k in range(group, len(self.sizes), count)]

    def beside(self, made: Optimizer) -> dict[str, Arena]:
        """The states that are no arrays like the parameter: of one number, or of one a row or column. A tensor without steps has
        none.
        """
        found = {}
        for role in (*self.program.signature.cells, *self.program.signature.vectors):
            of = [parameter.states[role.name] for parameter in parameters_of(made) if role.name in parameter.states]
            of = [np.asarray(value.get() if hasattr(value, "get") else value) for value in of]  # CuPy's or the host's
            found[role.name] = Arena(role.storage, [value.shape for value in of], [0] * len(of))
            for array, value in zip(found[role.name].arrays, of, strict=True):
                array[...] = value
        return found

    def run(self, backend: str) -> tuple[dict[str, Arena], Optimizer]:
        """All steps on that backend."""
        arenas, count = {role: arena.copy() for role, arena in self.start.items()}, len(self.groups)
        made = self.optimizer(arenas, backend)
        for step in range(self.steps):
            grads: list[Any] = [*arenas["g"].arrays]
            if self.seen is not None:
                grads = [g if k in set(self.seen[step]) else None for k, g in enumerate(grads)]
            made.step([grads[k::count] for k in range(count)])
        return arenas | self.beside(made), made


def same(a: Any, b: Any) -> bool:
    """Bit for bit, any NaN equal to any NaN."""
    a, b = np.asarray(a), np.asarray(b)
    both = np.isnan(a) & np.isnan(b)
    bits = [x.view(f"u{x.itemsize}") for x in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and bool((both | (bits[0] == bits[1])).all())


def assert_same(one: Mapping[str, Arena], other: Mapping[str, Arena], which: str = "") -> None:
    """Every array the same bits (any NaN equals any NaN), and nothing written outside of any."""
    for role in one:
        a, b = one[role].bits(), other[role].bits()
        wrong = np.flatnonzero(a != b)
        assert not wrong.size, f"{which} {role}: {wrong.size} of {a.size} differ, first at {wrong[0]}"
        assert one[role].zones_intact() and other[role].zones_intact(), f"{which} {role}: written outside of the array"
