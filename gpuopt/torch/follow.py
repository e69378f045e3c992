"""Follows the parameters of an engine from step to step: sees what moved since the last one, and takes the shortest way.

One for each engine: of a whole optimizer, or of parameters that are stepped apart. The engine has a slot for each parameter that
has a gradient; the others are not looked at. Python's getters look first (`look`); where there are many tensors and steps repeat,
compiled code does (`native`). Knows no rule and no state dict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any
from weakref import WeakMethod

import numpy as np
import torch

from gpuopt.errors import LayoutError
from gpuopt.optim.engine import Engine
from gpuopt.peek import contents
from gpuopt.torch import native
from gpuopt.torch.look import Look, look_at, places, where
from gpuopt.torch.shown import Counts
from gpuopt.torch.tensors import assign, resolved

WORD = np.dtype(np.int64)


class Follower:
    """groups: of the optimizer; every: the parameters that are stepped here when they have a gradient. params: of each slot of the
    engine the parameter, which all have one, in the same order. publish: shows states that the engine has made,
    and returns the step tensors, one for each slot, or none. dense: makes dense gradients of sparse ones, or raises.
    """

    def __init__(
        self,
        engine: Engine,
        groups: Sequence[Mapping[str, Any]],
        every: Sequence[torch.Tensor],
        params: Sequence[torch.Tensor],
        publish: Callable[[Follower], Sequence[torch.Tensor]],
        dense: Callable[[Engine, Sequence[torch.Tensor]], list[torch.Tensor]],
    ) -> None:
        self.engine, self.params = engine, list(params)
        # The optimizer refers to this: with a reference back its memory would be there until garbage is collected.
        self._publish: Callable[[], Any] = WeakMethod(publish)
        self._dense: Callable[[], Any] = WeakMethod(dense)
        self._every = list(every)
        self._lists = [contents(group["params"]) for group in groups]
        self._present = [k for k, p in enumerate(self._every) if p.grad is not None]
        # Parameters that are stepped in a dense copy.
        self._copies = [(p, s.array) for p, s in zip(params, engine.slots, strict=True) if p is not s.array]
        self._where = where(params)
        self.patience = native.AFTER  # looks that find the same before compiled code is made
        self._planned = engine.planned
        self._flags: Any = None  # options of the groups that the launches were made for
        self.counts = Counts([], [])
        self._watch()

    def _watch(self) -> None:
        """The engine has made states, or was given others; step tensors lie where they lie now."""
        slots, counts = self.engine.slots, self.counts.tensors
        steps = [[step] for step in counts] if counts else [[]] * len(slots)
        self._states = [[*slot.states.values(), *step] for slot, step in zip(slots, steps, strict=True)]
        self._flat = list(chain.from_iterable(self._states))
        self._places = places(self._flat)
        copied = {id(p) for p, _ in self._copies}  # to be told by what writes them
        self._versions = native.Versions([*(p for p in self.params if id(p) not in copied), *self._flat])
        self._seen: Look | None = None
        self._dump: native.Dump | None = None
        self._looks = 0

    def same_parameters(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the groups hold the tensors that they held, in the same order."""
        return [contents(group["params"]) for group in groups] == self._lists

    def step(self) -> bool:
        """One step of the engine; raises before anything is written. False where another engine has to make it: other parameters
        have gradients, or parameters, states or step counts are elsewhere or were changed.
        """
        dump, self._dump = self._dump, None
        if dump is not None:
            self._seen = None  # it is out of date, and what follows may fail
            moved = dump.look() if self.engine.settled() else None
            if moved is not None:
                if self.counts.changed():
                    return False
                if moved:
                    self.engine.relocate(dump.addresses[self._present])
                self._run()
                self._dump = dump
                return True
            # What it saw is no longer so: the getters have to agree with the next step again before it is made anew, and longer
            # each time, because making it takes as long as several of their looks.
            self._looks, self.patience = 0, 2 * self.patience
        return self._look_and_step()

    def _look_and_step(self) -> bool:
        engine, gradients = self.engine, [p.grad for p in self._every]
        present = [g for g in gradients if g is not None]
        if not present:
            return True
        if len(present) != len(gradients) and [k for k, g in enumerate(gradients) if g is not None] != self._present:
            return False
        if len(present) != len(self._present):
            return False
        seen, self._seen = self._seen, None
        try:
            look = look_at(self.params, present, self._flat, engine.slots)
        except LayoutError:
            present = self._dense()(engine, present)
            look = look_at(self.params, present, self._flat, engine.slots)._replace(as_stored=False)
        self._looks += 1
        if look.where != self._where or look.states != self._places or self.counts.changed():
            return False
        if seen is not None and look.as_stored and look.layout == seen.layout and engine.settled():
            if look.addresses != seen.addresses:
                engine.relocate(np.array(look.addresses, np.int64))
            made = self._made_dump()
            self._run()
            self._dump = made
        elif self._flags is not None and self._flags != engine.groups.flags(False):
            return False  # other options: there may be states to begin with
        else:
            self._step_anew(present)
        if look.as_stored:
            self._seen = look
        return True

    @torch.no_grad()
    def _step_anew(self, gradients: Sequence[torch.Tensor]) -> None:
        self.engine.touch()
        with_copies = self._copied_in()
        self.engine.step([resolved(g) for g in gradients])
        self._written(with_copies)
        self.engine.let_go()

    def _run(self) -> None:
        skipped = self._copied_in()
        self.engine.run()
        self._written(skipped)

    def _copied_in(self) -> int:
        """Bring parameters into their copies; the steps skipped so far."""
        if self._copies:
            with torch.no_grad():
                for p, work in self._copies:
                    assign(work, p)
        return self.engine.skipped

    def _written(self, skipped: int) -> None:
        """Show what a step has done, unless it was skipped."""
        if self.engine.planned != self._planned:
            self._planned, self._flags = self.engine.planned, self.engine.groups.flags(False)
            steps = self._publish()(self)
            self.counts = Counts([slot.clock for slot in self.engine.slots] if steps else [], steps)
            self._watch()
        if self.engine.skipped != skipped:
            return
        if self._copies:
            with torch.no_grad():
                for p, work in self._copies:
                    assign(p, work)
        self._versions.call()
        self.counts.show()

    def _made_dump(self) -> native.Dump | None:
        """Compiled code for many tensors, once steps go on; after every time that it saw something else, later."""
        if self._looks < self.patience or len(self._every) < native.FROM:
            return None
        states: list[Sequence[torch.Tensor]] = [()] * len(self._every)
        for k, of in zip(self._present, self._states, strict=True):
            states[k] = of
        made = native.Dump(self._every, states, np.array(self._places, WORD))
        if made.usable:
            self._versions.compile()
        return made if made.usable else None
