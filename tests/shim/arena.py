"""Arrays at chosen offsets inside larger poisoned memory, and whole steps on them, for comparing backends bit by bit.

Called by the tests of bits and sanitizers. Knows no backend: it takes the name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gpuopt
from gpuopt import rules
from gpuopt.compiler.lower import Program
from gpuopt.compiler.names import OPTION
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.launch.launcher import Launch
from gpuopt.optim.optimizer import Optimizer
from gpuopt.optim.slots import Slot
from gpuopt.source import program

POISON = 0xA5  # as any floating type: a small negative number, neither NaN nor infinity
GAP = 64  # bytes between arrays, and their alignment before the offset


class Arena:
    """One buffer that holds an array for each of `sizes`, `offsets[k]` elements behind a multiple of 64 bytes."""

    def __init__(self, dtype: str, sizes: Sequence[int], offsets: Sequence[int]) -> None:
        self.dtype = numpy_dtype(dtype)
        item = self.dtype.itemsize
        self.spans = []
        position = GAP
        for size, offset in zip(sizes, offsets, strict=True):
            begin = position + offset * item
            self.spans.append((begin, begin + size * item))
            position = -(-(begin + size * item + GAP) // GAP) * GAP
        self._place(np.full(position, POISON, np.uint8))

    def _place(self, content: NDArray[np.uint8]) -> None:
        raw = np.empty(content.size + GAP, np.uint8)
        skip = -raw.ctypes.data % GAP
        self.memory = raw[skip : skip + content.size]
        self.memory[...] = content
        self.arrays = [self.memory[a:b].view(self.dtype) for a, b in self.spans]

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
        joined = np.concatenate([np.empty(0, self.dtype), *self.arrays])
        if self.dtype.kind == "b":
            return joined
        bits = joined.view(f"u{self.dtype.itemsize}")
        with np.errstate(invalid="ignore"):
            bits[np.isnan(joined)] = np.iinfo(bits.dtype).max
        return bits


def values(rng: np.random.Generator, dtype: str, size: int, odd: float) -> NDArray[Any]:
    """Numbers of ordinary size, a share of them odd: zeros, denormals, infinities, NaN, extremes, any bits at all."""
    target = numpy_dtype(dtype)
    if dtype == "bool":
        return rng.random(size) < 0.7
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


def slots_of(made: Optimizer) -> list[Slot]:
    """An optimizer's tensors; the one place in these tests that knows where it keeps them."""
    return made._engine.slots


def launches_of(made: Optimizer) -> list[Launch]:
    """The launches of its last step."""
    return [launch for _, launches, _ in made._engine._launches for launch in launches]


@dataclass
class Case:
    """Steps of one optimizer on one list of arrays. offsets: role -> one for each array, 0 where a role is missing.

    odd: the share of odd values; seen: which tensors have a gradient, one tuple of indices a step, None for all.
    """

    rule: str
    hyper: Mapping[str, Any]
    param_dtype: str
    sizes: Sequence[int]
    grad_dtype: str | None = None
    state_format: str = "float32"
    mask: bool = False
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
        wide = {"grad_dtype": self.grad_dtype, "mask": self.mask, "state_format": self.state_format}
        return program(self.rule, param_dtype=self.param_dtype, **self.hyper, **self.options, **wide)

    @cached_property
    def start(self) -> dict[str, Arena]:
        """What every run begins with: role -> arrays, the mask's without the mark of an option."""
        made = {}
        for k, role in enumerate(self.program.roles):
            name = role.name.removeprefix(OPTION)
            arena = Arena(role.storage, self.sizes, self.offsets.get(name, [0] * len(self.sizes)))
            for i, array in enumerate(arena.arrays):
                rng = np.random.default_rng([self.seed, k, i])
                array[...] = values(rng, role.storage, array.size, self.odd)
                if role.storage != "bool" and k > 1:  # mostly positive: roots are taken of many a state
                    with np.errstate(all="ignore"):
                        np.negative(array, where=(array < 0) & (rng.random(array.size) < 0.9), out=array)
            made[name] = arena
        return made

    def optimizer(self, arenas: Mapping[str, Arena], backend: str) -> Optimizer:
        """The optimizer on these arrays, its states among them."""
        count = len(self.groups)
        chosen: dict[str, Any] = dict(self.options)
        if self.mask:
            chosen["mask"] = [arenas["mask"].arrays[k::count] for k in range(count)]
        groups = [{"params": arenas["p"].arrays[k::count], **g} for k, g in enumerate(self.groups)]
        made = gpuopt.create(self.rule, groups, backend=backend, state_format=self.state_format, **self.hyper, **chosen)
        order = [k for group in range(count) for k in range(group, len(self.sizes), count)]
        names = {s.name for s in rules.get(self.rule).states} & set(arenas)
        for slot, k in zip(slots_of(made), order, strict=True):
            slot.states = {name: arenas[name].arrays[k] for name in names}
        return made

    def run(self, backend: str) -> tuple[dict[str, Arena], Optimizer]:
        """All steps on that backend."""
        arenas, count = {role: arena.copy() for role, arena in self.start.items()}, len(self.groups)
        made = self.optimizer(arenas, backend)
        for step in range(self.steps):
            grads: list[Any] = [*arenas["g"].arrays]
            if self.seen is not None:
                grads = [g if k in set(self.seen[step]) else None for k, g in enumerate(grads)]
            made.step([grads[k::count] for k in range(count)])
        return arenas, made


def assert_same(one: Mapping[str, Arena], other: Mapping[str, Arena], which: str = "") -> None:
    """Every array the same bits (any NaN equals any NaN), and nothing written outside of any."""
    for role in one:
        a, b = one[role].bits(), other[role].bits()
        wrong = np.flatnonzero(a != b)
        assert not wrong.size, f"{which} {role}: {wrong.size} of {a.size} differ, first at {wrong[0]}"
        assert one[role].zones_intact() and other[role].zones_intact(), f"{which} {role}: written outside of the array"
