"""Watches in compiled code whether the tensors of a step lie where they lay; where it cannot say, Python's getters have to look.

Made by `gpuopt.torch.change_tracker` for many tensors, once steps repeat. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from gpuopt.backends import numba as cpu
from gpuopt.native import switch
from gpuopt.native.torch import library
from gpuopt.native.torch.compiled import ABSENT, ANSWERS, ARRAYS, DTYPES, MOVED, OTHER, codes, compiled
from gpuopt.native.torch.library import PLAIN, slots, word_of_impl, word_of_storage

PART = "tensors of torch"  # what `switch` calls this
FROM = 32  # tensors; with fewer the getters take less than 20 us
AFTER = 3  # steps: to compile it takes half a second
RANGE = 128  # tensors that are worth another thread which the update needs next
SLOTS = "_spec", "_local_tensor"  # what a DTensor has: how it is cut, and its memory
ASLEEP = 2048  # that are worth waking one


def watch(
    params: Sequence[torch.Tensor], states: Sequence[Sequence[torch.Tensor]], places: NDArray[np.int64]
) -> TensorWatch | None:
    """A TensorWatch, where that is `usable`; None where it can say nothing of these tensors."""
    made = TensorWatch(params, states, places)
    return made if made.usable else None


def usable(count: int) -> bool:
    """Whether compiled code is worth it for as many tensors, may look at them, and was seen to be right."""
    return count >= FROM and switch.decide(PART, library.trouble() or cpu.missing(), answers_hold)


class TensorWatch:
    """Parameters and their states, which the caller keeps alive, as they lie when it is made; tells how they lie later. One
    parameter at least has a gradient.

    places: where the states were when the step was planned. addresses: of the gradients, 0 where there is none.
    """

    def __init__(
        self, params: Sequence[torch.Tensor], states: Sequence[Sequence[torch.Tensor]], places: NDArray[np.int64]
    ) -> None:
        every, present = list(chain.from_iterable(states)), [p for p in params if p.grad is not None]
        plain = {type(p) for p in (*(p for p in present if not hasattr(p, SLOTS[1])), *every)} <= PLAIN
        word = word_of_impl([*params, *every]) if plain else None
        axes = np.array([p.dim() for p in params], np.int64)
        self.objects = np.array(list(map(id, params)), np.int64)
        self._find_parts(params)
        self.starts = np.concatenate([[0], np.cumsum(4 + 3 * axes)]).astype(np.int64)
        self.facts = np.zeros(self.starts[-1], np.int64)
        self.facts[self.starts[:-1]] = axes
        self.addresses = np.zeros(len(params), np.int64)
        self.first = np.concatenate([[0], np.cumsum([len(s) for s in states])]).astype(np.int64)
        self.states = np.array(list(map(id, every)), np.int64)
        self.places = np.array(places, np.int64)
        known = [getattr(self, name) for name in ARRAYS]
        self._arrays = np.array([0 if array is None else array.ctypes.data for array in known], np.int64)
        needed = present[0].device.type == "cpu" and sum(p.numel() for p in present) > cpu.SERIAL
        self.bounds = cpu.even_ranges(len(params), RANGE if needed else ASLEEP)
        self._starts_of_ranges = self.bounds[:-1].tolist()
        self._report = np.zeros(len(params) + 1 + ANSWERS, np.int64)
        self._singles = [p for p in present if p.numel() == 1]
        self.usable = False
        if word is not None and self.slots is not None:
            before, after = (self._arrays.ctypes.data, self._report.ctypes.data), (word, word_of_storage(present[:8]))
            self._call = cpu.Ranges(compiled(), before, self.bounds, after, held=True)
            self._compared()  # until the first look everything is as it was
            self.usable = self._compared() != OTHER and self._right(params)

    def _find_parts(self, params: Sequence[torch.Tensor]) -> None:
        """Where DTensors have their memory, and how their gradients are cut now; see `compiled.comparison`."""
        parts = [(k, p, p.grad) for k, p in enumerate(params) if hasattr(p, SLOTS[1])]
        self.owners = self.objects.ctypes.data + 8 * np.arange(len(params), dtype=np.int64)
        self.specs, self._kept = np.zeros(len(params), np.int64), [getattr(g, SLOTS[0], None) for _, _, g in parts]
        self.slots = slots([t for _, p, g in parts for t in (p, g) if t is not None and hasattr(t, SLOTS[1])])
        if self.slots is not None:
            for (k, p, _), spec in zip(parts, self._kept, strict=True):
                self.owners[k], self.specs[k] = id(p) + 8 * self.slots[1], ABSENT if spec is None else id(spec)

    def _right(self, params: Sequence[torch.Tensor]) -> bool:
        """Whether DTensors and their gradients were found to lie where Python says."""
        for k, p in enumerate(params):
            if self.specs[k] and p.grad is not None:
                found = self.facts[self.starts[k] + 1], self.addresses[k]
                if found != tuple(getattr(t, SLOTS[1]).data_ptr() for t in (p, p.grad)):
                    return False
        return True

    def moved(self) -> bool | None:
        """Whether gradients lie elsewhere than at the last look, which `addresses` then say, and nothing else is different;
        None where anything is, or cannot be told: Python has to look, and this is of no use any more.
        """
        found = self._compared() if self.usable else OTHER
        if found == OTHER or (self._singles and any(map(negated, self._singles))):
            self.usable = False
            return None
        return found == MOVED

    def _compared(self) -> int:
        self._call()
        return max(map(self._report.item, self._starts_of_ranges))


def negated(p: torch.Tensor) -> bool:
    """Whether the memory of a gradient holds its values negated."""
    g = p.grad
    return g is not None and bool(getattr(g, SLOTS[1], g).is_neg())


@cache
def answers_hold() -> bool:
    """Whether compiled code and Python's getters say the same of tensors made for it: one of each dtype, turned and not, with and
    without a gradient, with states; and whether it notices that a gradient moved, and that a state did.
    """
    zeros = partial(torch.zeros, device="cpu")
    params = [torch.nn.Parameter(zeros(2, 3 + k, dtype=getattr(torch, name))) for k, name in enumerate(DTYPES)]
    params += [torch.nn.Parameter(zeros(4, 2, dtype=torch.float32).t()), torch.nn.Parameter(zeros(()))]
    for p in params[:-1]:
        p.grad = torch.ones_like(p)
    states = [[zeros(2), zeros(())], *([[]] * (len(params) - 1))]
    made = TensorWatch(params, states, np.array([s.data_ptr() for s in states[0]], np.int64))
    known = dict(zip((getattr(torch, name) for name in DTYPES), codes(), strict=True))
    expected: list[int] = []
    for p in params[:-1]:
        assert p.grad is not None
        expected += [
            p.dim(),
            p.data_ptr(),
            known[p.dtype],
            known[p.grad.dtype],
            *p.shape,
            *p.stride(),
            *p.grad.stride(),
        ]
    expected += [0, 0, 0, ABSENT]  # of a parameter without a gradient nothing is asked
    right = made.usable and made.facts.tolist() == expected and made.moved() is False
    params[0].grad = torch.ones_like(params[0])
    right = right and made.moved() is True and made.addresses[0] == params[0].grad.data_ptr()
    kept, states[0][1].data = states[0][1].data, zeros(())
    return right and made.moved() is None and kept.numel() == 1
