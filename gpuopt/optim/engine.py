"""The engine under every optimizer: it watches tensors and groups, plans launches, and hands them to backends.

Used by `optim.optimizer` (arrays) and by `gpuopt.torch`. Everything is checked and allocated before the first write. Knows no
kernel and no array library.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt import arrays, backends
from gpuopt.arrays import View
from gpuopt.errors import InputError
from gpuopt.launch.launcher import Backend, Launch, StepCounter, StepRequest
from gpuopt.native import ndarrays
from gpuopt.native.objects import same
from gpuopt.optim import beside, joint
from gpuopt.optim import rows as some_rows
from gpuopt.optim.alike import Alike
from gpuopt.optim.keeping import uncoded
from gpuopt.optim.launches import check_counts, make_launches
from gpuopt.optim.parameters import (
    Change,
    Parameter,
    ParameterMemory,
    as_array,
    check_overlap,
    fitted,
    hosted,
    parameter_view,
    reshapes,
    same_order,
)
from gpuopt.optim.rows import Pick
from gpuopt.optim.settings import Settings
from gpuopt.optim.states import new_states
from gpuopt.optim.watch import Flags, Groups
from gpuopt.rules.language import Rule

UNSEEN = object()  # no gradient


class Engine:
    """Steps a rule over parameters. `groups` are the dicts of hyperparameters, read at every step."""

    def __init__(self, rule: Rule, settings: Settings, groups: list[dict[str, Any]], backend: str | None) -> None:
        self.rule, self.settings, self.groups, self.asked = rule, settings, Groups(rule, groups), backend
        self.parameters: list[Parameter] = []
        self.skipped = 0
        self._launches: list[tuple[Backend, list[Launch], list[StepCounter]]] = []
        self._key: object = None
        # States as they were before launches that have not run yet.
        self._added: list[tuple[Parameter, dict[str, Any]]] = []
        # Each parameter's gradient of the last step, where seeing it again means that nothing changed, else UNSEEN.
        self._seen: list[Any] = []
        self._alike: Alike | None = None  # where the last gradients were all new
        self._copied = False  # whether a gradient is copied at every step
        self._memory = ParameterMemory([])
        self._numpy, self._numpy_flags = ndarrays.Flags([]), b""  # of the parameters of NumPy
        self._loose = False  # whether a parameter or what lies beside it can move while it stays the same object
        self._beside: list[tuple[Parameter, str, View]] = []  # what can of the latter
        self._choices: dict[tuple[str, str | None], tuple[str, str]] = {}
        self._shared: dict[tuple[str, str], dict[str, Any]] = {}  # what a backend keeps for all launches on a device
        self.planned = 0  # grows with every new plan of launches

    def choice(self, p: Parameter) -> tuple[str, str]:
        """The backend for a parameter and the reason in words, asked once for each kind of device."""
        key = p.view.device.partition(":")[0], os.environ.get("GPUOPT_BACKEND")
        if key not in self._choices:
            self._choices[key] = backends.choose(self.asked, key[0])
        return self._choices[key]

    def counter(self, group: int, step: int) -> StepCounter:
        """A new step count for tensors of a group."""
        return StepCounter(group, step, partial(self.groups.environment, group))  # nothing that refers to this engine

    def add(self, parameters: Sequence[Parameter]) -> None:
        """Take more tensors. Raises InputError if two share memory."""
        check_overlap([*self.parameters, *parameters])
        for index, p in enumerate(parameters, len(self.parameters)):
            p.index = index
            p.number = index if p.number < 0 else p.number
        self.parameters += parameters
        self._memory = ParameterMemory(self.parameters)
        self._numpy = ndarrays.Flags([p.array for p in self.parameters if isinstance(p.array, np.ndarray)])
        self._numpy_flags = self._numpy.read()
        self._beside = beside.loose(self.parameters)
        self._loose = bool(self._beside) or not all(arrays.kind_of(p.array, p.label).fixed for p in self.parameters)
        self.forget()

    def forget(self) -> None:
        """Plan anew at the next step: states or step counts were replaced."""
        self._launches, self._key = [], None
        self._unsee()

    def _unsee(self) -> None:
        """Look at every gradient at the next step, whichever was given last time."""
        self._seen = [UNSEEN] * len(self.parameters)

    # ------------------------------------------------------------------------------------------- step

    def step(self, leaves: Sequence[Any], rows: Sequence[Any] | None = None) -> None:
        """One step with these gradients, one for each parameter or None, of these rows. Raises before anything is written."""
        self.groups.check()
        picks = None if rows is None else some_rows.picked(rows, leaves, self.parameters, self.settings)
        key = self._plan_key(picks or ())
        try:
            if picks or key != self._key or not (self._same(leaves) or self._moved(leaves)):
                self._prepare(leaves, key, picks)
            self.run()
        except BaseException:
            self._take_back()
            raise

    def _take_back(self) -> None:
        """The step that was to be the first of its launches has not begun: no states were made for it."""
        for p, states in self._added:
            p.states = states
        if self._added:
            self._launches, self._key, self._added = [], None, []

    def _same(self, leaves: Sequence[Any]) -> bool:
        """Whether all gradients are those seen last time."""
        return same(leaves, self._seen)

    def _moved(self, leaves: Sequence[Any]) -> bool:
        """Whether all are others that look like those, which the launches are then told of. Raises InputError for an overlap."""
        addresses = None if self._alike is None else self._alike.addresses(leaves)
        if self._alike is None or addresses is None:
            return False
        self.relocate(addresses)
        self._alike.leaves = list(leaves)
        for p, grad, view in zip(self.parameters, leaves, self._alike.views, strict=True):
            p.grad, p.grad_view = grad, view
        self._unsee()
        self._hand_over()
        return True

    def _prepare(self, leaves: Sequence[Any], key: tuple[Any, ...], picks: list[Pick | None] | None = None) -> None:
        """Look at the gradients that were not seen last time, and plan launches where they or the options ask for it."""
        if picks:
            self._unsee()
        of_each = picks or [None] * len(self.parameters)
        changes = self._collect(leaves, of_each)
        known = key == self._key and not any(reshapes(change) for change in changes)
        self._key, self._alike = None, None  # until everything below has succeeded
        if changes:
            self._commit(changes)
            self._memory.moving = None
        for p, pick in zip(self.parameters, of_each, strict=True):
            p.pick = pick
        if not known:
            self._rebuild()
        elif changes:
            self._refresh()
        if picks:
            some_rows.tell([launch for _, launches, _ in self._launches for launch in launches])
            self._unsee()
        elif len(changes) == len(self.parameters):
            self._alike = Alike.of(leaves, self.parameters)
        self._key = key

    def settled(self) -> bool:
        """Whether the launches fit the groups and options as they are, and no gradient has to be copied."""
        return not self._copied and self._key == self._plan_key()

    def look(self) -> None:
        """Notice parameters, masks and bounds that moved, lost their memory or became read-only since the last step."""
        flags = self._numpy.read()
        if not self._loose and flags == self._numpy_flags:
            return
        found = beside.seen_again(self._beside)
        if [view for *_, view in found] != [view for *_, view in self._beside]:
            self._beside, self._key = found, None
        self.touch()
        self._numpy_flags = flags

    def touch(self, states_moved: bool = False) -> None:
        """Look at every array anew: parameters or gradients may have moved, and, if so said, states."""
        if states_moved:
            self._key = None
        views = [parameter_view(p.array, p.label) for p in self.parameters]
        if views != [p.view for p in self.parameters]:
            check_overlap([replace(p, view=view) for p, view in zip(self.parameters, views, strict=True)])
            for p, view in zip(self.parameters, views, strict=True):
                p.view = view
            self._memory, self._key = ParameterMemory(self.parameters), None
        self._unsee()

    def let_go(self) -> None:
        """Keep no gradient alive: between steps its memory is the caller's. Copies in another memory order stay for use."""
        self._unsee()
        for p in self.parameters:
            p.grad, p.given, p.pick = p.copy, None, None
        for _, launches, _ in self._launches:
            for launch in launches:
                for arrays_of in launch.arrays:
                    arrays_of["g"] = arrays_of["@given"] = arrays_of["@rows"] = None

    def relocate(self, addresses: NDArray[np.int64]) -> None:
        """Gradients of the same dtypes and memory orders lie at other addresses, one for each parameter."""
        self._memory.check_addresses(self.parameters, addresses)
        for _, launches, _ in self._launches:
            for launch in launches:
                launch.move(1, addresses[launch.private["indices"]])

    def run(self) -> None:
        """Run the launches as they stand."""
        request = self._request()
        if request.sums and len(self._launches) > 1:
            raise InputError("max_grad_norm and skip_nonfinite need all parameters on one device")
        if request.on_device:
            self._check_rates()
        if len(self._launches) > 1:  # what one of them cannot do is not begun by another
            for backend, launches, _ in self._launches:
                backend.ready(launches, request)
        for backend, launches, counters in self._launches:
            self.skipped += not backend.step(launches, request, counters)
            self._added = []

    def _check_rates(self) -> None:
        """Raise InputError for a schedule of the step count where the host does not know the count."""
        if all(backend.device == "cpu" for backend, _, _ in self._launches):
            return
        names = self.groups.scheduled()
        if names:
            raise InputError(
                f"{names[0]} is a function of the step count, which stays on the GPU where a step may be skipped or captured: "
                f"set group[{names[0]!r}] to a number before each step instead"
            )

    def _collect(self, leaves: Sequence[Any], picks: list[Pick | None]) -> list[Change]:
        """Check every gradient that is not the one seen last time; nothing is changed yet but how `picks` find their rows."""
        if self._same(leaves):
            return []
        changes: list[Change] = []
        for p, grad, seen in zip(self.parameters, leaves, self._seen, strict=True):
            if grad is seen:
                continue
            grad, view, picks[p.index] = some_rows.gradient(as_array(grad, p), p, picks[p.index], self.settings)
            changes.append((p, grad, view))
        read = [(f"gradient of {p.label}", view) for p, _, view in changes if view is not None]
        if read:
            self._memory.check([r[0] for r in read], [r[1] for r in read])
        return changes

    def _commit(self, changes: Sequence[Change]) -> None:
        """Remember the gradients; one in another memory order is copied into its parameter's, at every step."""
        ready: list[tuple[Parameter, Any, Any, View | None, Any]] = []
        for p, grad, view in changes:
            use, given = grad, None
            seen = grad if grad is None or arrays.kind_of(grad, p.label).fixed else UNSEEN
            if view is not None and view.shape == p.view.shape and not same_order(view, p.view):
                use, seen, given = arrays.relayout(grad, p.array, p.copy, p.label), UNSEEN, grad
                view = arrays.describe(use, p.label)
            ready.append((p, use, seen, view, given))
        for p, use, seen, view, given in ready:
            p.grad, self._seen[p.index], p.grad_view = use, seen, view
            p.copy, p.given = (None if given is None else use), given
        self._copied = any(p.copy is not None for p in self.parameters)

    def _flags(self) -> Flags:
        return self.groups.flags(self.settings.max_grad_norm is not None or self.settings.grad_scale is not None)

    def _plan_key(self, picks: Sequence[Pick | None] = ()) -> tuple[Any, ...]:
        """What the launches are made for. Where step counts are kept is part of it: with new launches they change sides."""
        picked = tuple(k for k, pick in enumerate(picks) if pick is not None)
        return self._flags(), self.settings.key(), self._on_device(), self.groups.definition, picked

    def _on_device(self) -> bool:
        """Whether step counts and decisions live on the device, for the host may not wait for what they depend on."""
        s = self.settings
        asked = s.skip_nonfinite or s.capturable or s.found_inf is not None
        return asked or (s.grad_scale is not None and arrays.is_array(s.grad_scale)) or self.groups.on_gpu()

    def _request(self) -> StepRequest:
        s = self.settings
        if s.grad_scale is not None:
            s.check_scale()
        return StepRequest(
            s.max_grad_norm, s.grad_scale, s.found_inf, s.skip_nonfinite, self._on_device(), s.capturable
        )

    # ------------------------------------------------------------------------------------------- launches

    def _rebuild(self) -> None:
        """Make states, counters and launches anew. Everything is allocated before any parameter changes."""
        self.settings.check_capture()
        active = [p for p in self.parameters if p.grad_view is not None]
        names = {device: self.choice(p)[0] for device, p in {p.view.device: p for p in active}.items()}
        places = [(p.view.device, names[p.view.device]) for p in active]
        for device, name in names.items():
            backends.get(name, device).check_plan()
        self.synchronize()
        flags = [dict(f) for f in self._flags()]
        made = [(p, *self._fitted(p), self.missing_states(p, self._shaped(p, flags))) for p in active]
        self._added = [(p, p.states) for p in self.parameters]
        for p, around, states, more in made:
            p.beside, p.states = around, states | more
        joint.share(self.rule, self._added)
        running = self._regroup({device for device, name in names.items() if backends.get(name, device).counts})
        by_place: dict[tuple[str, str], list[Parameter]] = {}
        for p, where in zip(active, places, strict=True):
            by_place.setdefault(where, []).append(p)
        self._launches, self.planned = [], self.planned + 1
        for (device, name), parameters in by_place.items():
            shaped = [self._shaped(p, flags) for p in parameters]
            launches = make_launches(self.rule, parameters, shaped, self.settings.seed, self.settings.on_host)
            for part in (part for launch in launches for part in (launch, *launch.stages)):
                part.shared = self._shared.setdefault((device, name), {})
            joint.give_owners(launches)
            mine = {id(p.counter) for p in parameters}
            self._launches.append((backends.get(name, device), launches, [c for c in running if id(c) in mine]))
            running = [c for c in running if id(c) not in mine]
        programs = [launch.plan.program for _, launches, _ in self._launches for launch in launches]
        joint.check(self.rule, programs, list(names))
        if self._on_device():
            for backend, launches, _ in self._launches:
                check_counts(backend.device, launches)

    def _fitted(self, p: Parameter) -> tuple[dict[str, Any], dict[str, Any]]:
        """What lies beside it and states as they are walked with the parameter, which may have moved or come with loaded states."""
        known, states = {s.name: s for s in self.rule.states}, {}
        for name, array in p.states.items():
            if known[name].large and self.settings.on_host:
                states[name] = hosted(array, p, known[name].walked, f"{known[name].key} of {p.label}")
            elif known[name].walked:
                states[name] = fitted(array, p, f"{known[name].key} of {p.label}")
            else:  # a plane has its own dtype
                states[name] = array if known[name].plane else joint.in_compute_type(array, p)
        return beside.refitted(p), states

    def _shaped(self, p: Parameter, flags: Sequence[Mapping[str, object]]) -> dict[str, object]:
        found = self.rule.shaped(flags[p.group], p.whole, p.view.pairs, p.view.dtype)
        return found if p.blocks else uncoded(found)

    def _regroup(self, counting: Set[str]) -> list[StepCounter]:
        """Let parameters of one group with equal counts share a counter, those with a gradient apart from those without. Where
        steps may be captured, on devices that keep counts, each parameter has its own, at the same place: replays of a graph
        that knows other parameters advance it too.
        """
        counters: dict[tuple[int, int, bool, int], StepCounter] = {}
        words = Counter(p.counter.word for p in self.parameters)
        for p in self.parameters:
            word = p.counter.word if words[p.counter.word] == 1 else None
            alone = self.settings.capturable and (p.view.device in counting or word is not None)
            key = (p.group, p.counter.step, p.grad_view is not None, p.index if alone else -1)
            made = self.counter(p.group, p.counter.step)
            made.word = word if alone else None
            p.counter = counters.setdefault(key, made)
        return [counter for (_, _, on, _), counter in counters.items() if on]

    def missing_states(self, p: Parameter, flags: Mapping[str, object], group: Any = None) -> dict[str, Any]:
        """The states that a parameter needs under these flags and has not, as before its first step. group: its own by default."""
        group, settings = group or self.groups.dicts[p.group], self.settings
        return new_states(self.rule, settings.formats(self.rule), group, p, flags, settings.on_host)

    def _refresh(self) -> None:
        """Gradients moved: new addresses in the tables."""
        for _, launches, _ in self._launches:
            for launch in launches:
                known: list[Parameter] = launch.private["parameters"]
                launch.move(1, np.array([p.grad_view.address for p in known if p.grad_view], np.int64))
        self._hand_over()

    def _hand_over(self) -> None:
        """The gradients of the parameters are those of the launches."""
        for _, launches, _ in self._launches:
            for launch in launches:
                for arrays_of, p in zip(launch.arrays, launch.private["parameters"], strict=True):
                    arrays_of["g"], arrays_of["@given"] = p.grad, p.given

    def synchronize(self) -> None:
        """Bring step counts that live on a GPU back to the host, those of tensors without a gradient too, which a CUDA graph may
        step; waits for the device: for saving and rebuilding only.
        """
        counters = list({id(p.counter): p.counter for p in self.parameters}.values())
        for backend, shared in self._backends():
            self.skipped += backend.synchronize(counters, shared)

    def recount(self) -> None:
        """Step counts were set on the host: those that CUDA graphs advance are so too."""
        for backend, _ in self._backends():
            backend.recount([p.counter for p in self.parameters])

    def wait(self) -> None:
        """Wait for the devices, whose memory is read or written next on any stream."""
        for backend, _ in self._backends():
            backend.wait()

    def _backends(self) -> list[tuple[Backend, dict[str, Any]]]:
        return [(backends.get(name, device), shared) for (device, name), shared in self._shared.items()]
