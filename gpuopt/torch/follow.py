"""Follows the parameters of an engine from step to step: sees what moved since the last one, and takes the shortest way.

One for each engine of a whole optimizer. Python's getters look first (`look`); where there are many tensors and steps repeat,
compiled code does (`native`). Knows no rule and no state dict.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from gpuopt.optim.engine import Engine
from gpuopt.torch import native
from gpuopt.torch.look import Look, look_at, places
from gpuopt.torch.tensors import resolved

WORD = np.dtype(np.int64)
# Where a list object keeps the address of its items: in front of its last word, which counts those it has room for.
ITEMS = list.__basicsize__ - 2 * WORD.itemsize


class Follower:
    """params: the parameters, one for each slot of the engine."""

    def __init__(self, engine: Engine, groups: Sequence[Mapping[str, Any]]) -> None:
        self.engine = engine
        self.params: list[torch.Tensor] = [slot.array for slot in engine.slots]
        self._lists = [contents(group["params"]) for group in groups]
        self._patience = native.AFTER
        self.watch_states()

    def watch_states(self) -> None:
        """The engine has made states, or was given others."""
        self._states = [list(slot.states.values()) for slot in self.engine.slots]
        self._places = places(list(chain.from_iterable(self._states)))
        self._seen: Look | None = None
        self._dump: native.Dump | None = None
        self._looks = 0

    def same_parameters(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the groups hold the tensors that the engine works on, in the same order."""
        return [contents(group["params"]) for group in groups] == self._lists

    def step(self) -> None:
        """One step of the engine. Does nothing where there is no gradient; raises before anything is written."""
        dump, self._dump = self._dump, None
        if dump is not None:
            self._seen = None  # it is out of date, and what follows may fail
            moved = dump.look() if self.engine.settled() else None
            if moved is not None:
                if moved:
                    self.engine.relocate(dump.addresses)
                self.engine.run()
                self._dump = dump
                return
            # What it saw is no longer so: the getters have to agree with the next step again before it is made anew, and longer
            # each time, because making it takes as long as several of their looks.
            self._looks, self._patience = 0, 2 * self._patience
        self._look_and_step()

    def _look_and_step(self) -> None:
        engine = self.engine
        if all(p.grad is None for p in self.params):
            return
        states = list(chain.from_iterable(self._states))
        look, seen = look_at(self.params, states, engine.slots), self._seen
        self._seen, self._looks = None, self._looks + 1
        moved = look.states != self._places  # someone gave a state tensor other memory
        if seen is not None and not moved and look.as_stored and look.layout == seen.layout and engine.settled():
            if look.addresses != seen.addresses:
                engine.relocate(np.array(look.addresses, np.int64))
            made = self._made_dump()
            engine.run()
            self._dump = made
        else:
            self._step_anew(moved)
        if look.as_stored:
            self._seen = look

    @torch.no_grad()
    def _step_anew(self, states_moved: bool) -> None:
        self.engine.touch(states_moved)
        self.engine.step([None if p.grad is None else resolved(p.grad) for p in self.params])
        self.engine.let_go()

    def _made_dump(self) -> native.Dump | None:
        """Compiled code for many tensors, once steps go on; after every time that it saw something else, later."""
        if self._looks < self._patience or len(self.params) < native.FROM:
            return None
        made = native.Dump(self.params, self._states, np.frombuffer(self._places, WORD))
        return made if made.usable else None


def contents(params: Any) -> bytes | list[int]:
    """What tells a list of objects from any other, as long as those objects live: their addresses, read from the list itself,
    which takes a microsecond for a thousand where asking each would take thirty.
    """
    if type(params) is not list or not params:
        return list(map(id, params))
    items = ctypes.c_size_t.from_address(id(params) + ITEMS).value
    return ctypes.string_at(items, WORD.itemsize * len(params))
