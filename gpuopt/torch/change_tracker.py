"""Follows the parameters of an engine from step to step: sees what changed since the last one, and takes the shortest way.

One for each engine: of a whole optimizer, or of parameters that are stepped apart. The engine knows those parameters that
have a gradient; the others are not looked at. Python's getters look first (`snapshot`); where there are many tensors and steps
repeat, compiled code does (`gpuopt.native.torch.watch`), if it can be used. Knows no rule and no state dict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any
from weakref import WeakMethod

import numpy as np
import torch

from gpuopt.errors import LayoutError
from gpuopt.native.memory import WORD
from gpuopt.native.objects import contents
from gpuopt.native.torch import watch
from gpuopt.native.torch.counters import VersionCounters
from gpuopt.optim.engine import Engine
from gpuopt.torch.owners import Gathering
from gpuopt.torch.shards import Parts
from gpuopt.torch.snapshot import Snapshot, addresses, checked_snapshot, placement
from gpuopt.torch.sparse import Rows
from gpuopt.torch.step_tensors import StepTensors
from gpuopt.torch.tensors import assign, resolved


class ChangeTracker:
    """params: the parameters of the engine, which all have a gradient, in the same order. every: those that are stepped here when
    they have one. groups: of the optimizer. publish: shows states that the engine has made, and returns the step tensors, one for
    each of params, or none. unsparse: what is stepped for sparse gradients, and the rows of these; or raises. gathering:
    the parameters that one process steps for all.
    """

    def __init__(
        self,
        engine: Engine,
        groups: Sequence[Mapping[str, Any]],
        every: Sequence[torch.Tensor],
        params: Sequence[torch.Tensor],
        publish: Callable[[ChangeTracker], Sequence[torch.Tensor]],
        unsparse: Callable[[Engine, Sequence[torch.Tensor]], tuple[list[torch.Tensor], Rows]],
        gathering: Gathering,
    ) -> None:
        self.engine, self.params = engine, list(params)
        self._parts, self.gathering = Parts(self.params), gathering
        # The optimizer refers to this: with a reference back its memory would be there until garbage is collected.
        self._publish: Callable[[], Any] = WeakMethod(publish)
        self._unsparse: Callable[[], Any] = WeakMethod(unsparse)
        self._every = list(every)
        self._groups = [contents(group["params"]) for group in groups]
        self._present = [k for k, p in enumerate(self._every) if p.grad is not None]
        # Parameters that are stepped in a dense copy.
        local = self._parts.tensors()
        self._copies = [
            (p, known.array)
            for p, known, of in zip(local, engine.parameters, self.params, strict=True)
            if p is not known.array and of not in gathering
        ]
        self._placement = placement(local)
        self.patience = watch.AFTER  # snapshots that agree before compiled code is made
        self._planned = engine.planned
        self._flags: Any = None  # options of the groups that the launches were made for
        self.step_tensors = StepTensors([], [])
        self._locate()

    def _locate(self) -> None:
        """The engine has made states, or was given others; step tensors lie where they lie now."""
        parameters, steps = self.engine.parameters, self.step_tensors.tensors
        of_each = [[step] for step in steps] if steps else [[]] * len(parameters)
        self._states = [[*known.states.values(), *step] for known, step in zip(parameters, of_each, strict=True)]
        self._all_states = list(chain.from_iterable(self._states))
        self._addresses = addresses(self._all_states)
        copied = {id(p) for p, _ in self._copies}  # torch sees what writes them
        written = [*self._parts.wrappers(), *(p for p in self._parts.tensors() if id(p) not in copied)]
        self._versions = VersionCounters([*written, *self._all_states])
        self._last: Snapshot | None = None
        self._watch: watch.TensorWatch | None = None
        self._snapshots = 0

    def same_parameters(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the groups hold the tensors that they held, in the same order."""
        return [contents(group["params"]) for group in groups] == self._groups

    def step(self) -> bool:
        """One step of the engine; raises before anything is written. False where another engine has to make it: other parameters
        have gradients, or parameters, states or step counts are elsewhere or were changed.
        """
        watching, self._watch = self._watch, None
        if watching is not None:
            self._last = None  # it is out of date, and what follows may fail
            moved = watching.moved() if self.engine.settled() else None
            if moved is not None:
                if self.step_tensors.changed():
                    return False
                if moved:
                    self.engine.relocate(watching.addresses[self._present])
                self._run()
                self._watch = watching
                return True
            self._be_patient()
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
        last, self._last = self._last, None
        rows: Rows | None = None
        params, (present, alike) = self._parts.tensors(), self._parts.gradients(present, engine.parameters)
        present, alike = self.gathering.gradients(self.params, present), alike and not self.gathering.of
        try:
            now = checked_snapshot(params, present, self._all_states, engine.parameters)
        except LayoutError:
            present, rows = self._unsparse()(engine, present)
            now, alike = checked_snapshot(params, present, self._all_states, engine.parameters), False
        if not alike:
            now = now._replace(as_stored=False)
        self._snapshots += 1
        if now.params != self._placement or now.states != self._addresses or self.step_tensors.changed():
            return False
        if last is not None and now.as_stored and now.layouts == last.layouts and engine.settled():
            if now.gradients != last.gradients:
                engine.relocate(np.array(now.gradients, WORD))
            made = self._made_watch()
            self._run()
            self._watch = made
        elif self._flags is not None and self._flags != engine.groups.flags(False):
            return False  # other options: there may be states to begin with
        else:
            self._step_anew(present, rows)
        if now.as_stored:
            self._last = now
        return True

    @torch.no_grad()
    def _step_anew(self, gradients: Sequence[torch.Tensor], rows: Rows | None) -> None:
        self.engine.touch()
        skipped = self._copied_in()
        self.engine.step([resolved(g) for g in gradients], rows)
        self._written(skipped)
        self.engine.let_go()

    def _run(self) -> None:
        skipped = self._copied_in()
        self.engine.run()
        self._written(skipped)

    def _copied_in(self) -> int:
        """Bring parameters into their copies, and matrices to their owners; the steps skipped so far."""
        self.gathering.send()
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
            self.step_tensors = StepTensors([known.counter for known in self.engine.parameters] if steps else [], steps)
            self._locate()
        if self.engine.skipped != skipped:
            return
        self.gathering.bring()
        if self._copies:
            with torch.no_grad():
                for p, work in self._copies:
                    assign(p, work)
        self._versions.bump()
        self.step_tensors.write()

    def _made_watch(self) -> watch.TensorWatch | None:
        """Compiled code for many tensors, once steps go on; after every time that it saw something else, later."""
        if self._snapshots < self.patience or not watch.usable(len(self._every)):
            return None
        states: list[Sequence[torch.Tensor]] = [()] * len(self._every)
        for k, of in zip(self._present, self._states, strict=True):
            states[k] = of
        made = watch.watch(self._every, states, np.array(self._addresses, WORD))
        if made is None:
            self._be_patient()
        else:
            self._versions.hasten()
        return made

    def _be_patient(self) -> None:
        """What compiled code saw is no longer so, or it can say nothing of these tensors: snapshots have to agree again before it
        is made anew, and longer each time, because making it takes as long as several of them.
        """
        self._snapshots, self.patience = 0, 2 * self.patience
