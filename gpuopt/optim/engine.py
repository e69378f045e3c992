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

from gpuopt import arrays, backends, peek
from gpuopt.arrays import View
from gpuopt.compiler.lower import Signature
from gpuopt.errors import InputError
from gpuopt.formats.dtypes import STORAGES, state_dtype
from gpuopt.launch.launcher import Backend, Clock, Demand, Launch
from gpuopt.optim.alike import Alike
from gpuopt.optim.launches import make_launch, signature_of
from gpuopt.optim.settings import Settings
from gpuopt.optim.slots import Slot, Written, as_array, check_overlap, fitted, gradient_view, parameter_view, same_order
from gpuopt.optim.watch import Flags, Groups
from gpuopt.pairs import filled
from gpuopt.peek import same
from gpuopt.rules.language import Rule

Change = tuple[Slot, Any, View | None]  # a slot, its new gradient, and that gradient's View

UNSEEN = object()  # no gradient


class Engine:
    """Steps a rule over slots. `groups` are the dicts of hyperparameters, read at every step."""

    def __init__(self, rule: Rule, settings: Settings, groups: list[dict[str, Any]], backend: str | None) -> None:
        self.rule, self.settings, self.groups, self.asked = rule, settings, Groups(rule, groups), backend
        self.slots: list[Slot] = []
        self.skipped = 0
        self._launches: list[tuple[Backend, list[Launch], list[Clock]]] = []
        self._key: object = None
        self._added: list[tuple[Slot, dict[str, Any]]] = []  # states as they were before launches that have not run yet
        # Each slot's gradient of the last step, where seeing it again means that nothing changed, else UNSEEN.
        self._seen: list[Any] = []
        self._alike: Alike | None = None  # where the last gradients were all new
        self._copied = False  # whether a gradient is copied at every step
        self._written = Written([])
        self._numpy, self._numpy_flags = peek.Flags([]), b""  # of the parameters of NumPy
        self._loose = False  # whether a parameter or mask can move while it stays the same object
        self._masks: list[tuple[Slot, View]] = []  # masks that can
        self._choices: dict[tuple[str, str | None], tuple[str, str]] = {}
        self._shared: dict[tuple[str, str], dict[str, Any]] = {}  # what a backend keeps for all launches on a device
        self.planned = 0  # grows with every new plan of launches

    def choice(self, slot: Slot) -> tuple[str, str]:
        """The backend for a slot and the reason in words, asked once for each kind of device."""
        key = slot.view.device.partition(":")[0], os.environ.get("GPUOPT_BACKEND")
        if key not in self._choices:
            self._choices[key] = backends.choose(self.asked, key[0])
        return self._choices[key]

    def clock(self, group: int, step: int) -> Clock:
        """A new step count for tensors of a group."""
        return Clock(group, step, partial(self.groups.environment, group))  # nothing that refers to this engine

    def add(self, slots: Sequence[Slot]) -> None:
        """Take more tensors. Raises InputError if two share memory."""
        check_overlap([*self.slots, *slots])
        for index, slot in enumerate(slots, len(self.slots)):
            slot.index = index
            slot.number = index if slot.number < 0 else slot.number
        self.slots += slots
        self._written = Written(self.slots)
        self._numpy = peek.Flags([slot.array for slot in self.slots if isinstance(slot.array, np.ndarray)])
        self._numpy_flags = self._numpy.read()
        masked = [slot for slot in self.slots if slot.mask is not None and not arrays.kind_of(slot.mask, "mask").fixed]
        self._masks = [(slot, arrays.describe(slot.mask, f"mask of {slot.label}")) for slot in masked]
        self._loose = bool(masked) or not all(arrays.kind_of(slot.array, slot.label).fixed for slot in self.slots)
        self.forget()

    def forget(self) -> None:
        """Plan anew at the next step: states or step counts were replaced."""
        self._launches, self._key = [], None
        self._unsee()

    def _unsee(self) -> None:
        """Look at every gradient at the next step, whichever was given last time."""
        self._seen = [UNSEEN] * len(self.slots)

    # ------------------------------------------------------------------------------------------- step

    def step(self, leaves: Sequence[Any]) -> None:
        """One step with these gradients, one for each slot or None. Raises before anything is written."""
        self.groups.check()
        key = self._plan_key()
        try:
            if key != self._key or not (self._same(leaves) or self._moved(leaves)):
                self._prepare(leaves, key)
            self.run()
        except BaseException:
            self._take_back()
            raise

    def _take_back(self) -> None:
        """The step that was to be the first of its launches has not begun: no states were made for it."""
        for slot, states in self._added:
            slot.states = states
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
        for slot, grad, view in zip(self.slots, leaves, self._alike.views, strict=True):
            slot.grad, slot.grad_view = grad, view
        self._unsee()
        self._hand_over()
        return True

    def _prepare(self, leaves: Sequence[Any], key: tuple[Any, ...]) -> None:
        """Look at the gradients that were not seen last time, and plan launches where they or the options ask for it."""
        changes = self._collect(leaves)
        known = key == self._key and not any(reshapes(change) for change in changes)
        self._key, self._alike = None, None  # until everything below has succeeded
        if changes:
            self._commit(changes)
            self._written.moving = None
        if not known:
            self._rebuild()
        elif changes:
            self._refresh()
        if len(changes) == len(self.slots):
            self._alike = Alike.of(leaves, self.slots)
        self._key = key

    def settled(self) -> bool:
        """Whether the launches fit the groups and options as they are, and no gradient has to be copied."""
        return not self._copied and self._key == self._plan_key()

    def look(self) -> None:
        """Notice parameters and masks that moved, lost their memory or became read-only since the last step."""
        flags = self._numpy.read()
        if not self._loose and flags == self._numpy_flags:
            return
        masks = [(slot, arrays.describe(slot.mask, f"mask of {slot.label}")) for slot, _ in self._masks]
        if [view for _, view in masks] != [view for _, view in self._masks]:
            self._masks, self._key = masks, None
        self.touch()
        self._numpy_flags = flags

    def touch(self, states_moved: bool = False) -> None:
        """Look at every array anew: parameters or gradients may have moved, and, if so said, states."""
        if states_moved:
            self._key = None
        views = [parameter_view(slot.array, slot.label) for slot in self.slots]
        if views != [slot.view for slot in self.slots]:
            check_overlap([replace(slot, view=view) for slot, view in zip(self.slots, views, strict=True)])
            for slot, view in zip(self.slots, views, strict=True):
                slot.view = view
            self._written, self._key = Written(self.slots), None
        self._unsee()

    def let_go(self) -> None:
        """Keep no gradient alive: between steps its memory is the caller's. Copies in another memory order stay for use."""
        self._unsee()
        for slot in self.slots:
            slot.grad, slot.given = slot.copy, None
        for _, launches, _ in self._launches:
            for launch in launches:
                for arrays_of in launch.arrays:
                    arrays_of["g"] = arrays_of["@given"] = None

    def relocate(self, addresses: NDArray[np.int64]) -> None:
        """Gradients of the same dtypes and memory orders lie at other addresses, one for each slot."""
        self._written.check_addresses(self.slots, addresses)
        for _, launches, _ in self._launches:
            for launch in launches:
                launch.plan.move(1, addresses[launch.private["indices"]])

    def run(self) -> None:
        """Run the launches as they stand."""
        demand = self._demand()
        if demand.sums and len(self._launches) > 1:
            raise InputError("max_grad_norm and skip_nonfinite need all parameters on one device")
        if demand.on_device:
            self._check_rates()
        if len(self._launches) > 1:  # what one of them cannot do is not begun by another
            for backend, launches, _ in self._launches:
                backend.ready(launches, demand)
        for backend, launches, clocks in self._launches:
            self.skipped += not backend.step(launches, demand, clocks)
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

    def _collect(self, leaves: Sequence[Any]) -> list[Change]:
        """Check every gradient that is not the one seen last time; nothing is changed yet."""
        if self._same(leaves):
            return []
        changes: list[Change] = []
        for slot, grad, seen in zip(self.slots, leaves, self._seen, strict=True):
            if grad is seen:
                continue
            grad = as_array(grad, slot)
            view = None if grad is None else gradient_view(grad, slot, f"gradient of {slot.label}")
            changes.append((slot, grad, view))
        read = [(f"gradient of {slot.label}", view) for slot, _, view in changes if view is not None]
        if read:
            self._written.check([r[0] for r in read], [r[1] for r in read])
        return changes

    def _commit(self, changes: Sequence[Change]) -> None:
        """Remember the gradients; one in another memory order is copied into its parameter's, at every step."""
        ready: list[tuple[Slot, Any, Any, View | None, Any]] = []
        for slot, grad, view in changes:
            use, given = grad, None
            seen = grad if grad is None or arrays.kind_of(grad, slot.label).fixed else UNSEEN
            if view is not None and not same_order(view, slot.view):
                use, seen, given = arrays.relayout(grad, slot.array, slot.copy, slot.label), UNSEEN, grad
                view = arrays.describe(use, slot.label)
            ready.append((slot, use, seen, view, given))
        for slot, use, seen, view, given in ready:
            slot.grad, self._seen[slot.index], slot.grad_view = use, seen, view
            slot.copy, slot.given = (None if given is None else use), given
        self._copied = any(slot.copy is not None for slot in self.slots)

    def _flags(self) -> Flags:
        return self.groups.flags(self.settings.max_grad_norm is not None or self.settings.grad_scale is not None)

    def _plan_key(self) -> tuple[Any, ...]:
        """What the launches are made for. Where step counts are kept is part of it: with new launches they change sides."""
        return self._flags(), self.settings.key(), self._on_device(), self.groups.definition

    def _on_device(self) -> bool:
        """Whether step counts and decisions live on the device, for the host may not wait for what they depend on."""
        s = self.settings
        asked = s.skip_nonfinite or s.capturable or s.found_inf is not None
        return asked or (s.grad_scale is not None and arrays.is_array(s.grad_scale)) or self.groups.on_gpu()

    def _demand(self) -> Demand:
        s = self.settings
        if s.grad_scale is not None:
            s.check_scale()
        return Demand(s.max_grad_norm, s.grad_scale, s.found_inf, s.skip_nonfinite, self._on_device(), s.capturable)

    # ------------------------------------------------------------------------------------------- launches

    def _rebuild(self) -> None:
        """Make states, clocks and launches anew. Everything is allocated before any slot changes."""
        active = [slot for slot in self.slots if slot.grad_view is not None]
        names = {device: self.choice(slot)[0] for device, slot in {slot.view.device: slot for slot in active}.items()}
        places = [(slot.view.device, names[slot.view.device]) for slot in active]
        for device, name in names.items():
            backends.get(name, device).check_plan()
        self.synchronize()
        flags = [dict(f) for f in self._flags()]
        made = [(slot, *self._fitted(slot), self.missing_states(slot, flags[slot.group])) for slot in active]
        self._added = [(slot, slot.states) for slot in active]
        for slot, mask, states, more in made:
            slot.mask, slot.states = mask, states | more
        running = self._regroup({device for device, name in names.items() if backends.get(name, device).counts})
        buckets: dict[tuple[str, str], dict[Signature, list[Slot]]] = {}
        for slot, where in zip(active, places, strict=True):
            buckets.setdefault(where, {}).setdefault(signature_of(self.rule, slot, flags[slot.group]), []).append(slot)
        self._launches, self.planned = [], self.planned + 1
        for (device, name), by_signature in buckets.items():
            launches = [make_launch(signature, slots, self.settings.seed) for signature, slots in by_signature.items()]
            for launch in launches:
                launch.shared = self._shared.setdefault((device, name), {})
            mine = {id(slot.clock) for slots in by_signature.values() for slot in slots}
            self._launches.append((backends.get(name, device), launches, [c for c in running if id(c) in mine]))
            running = [c for c in running if id(c) not in mine]

    def _fitted(self, slot: Slot) -> tuple[Any, dict[str, Any]]:
        """Mask and states as they are walked with the parameter, which may have moved or come with loaded states."""
        keys = {s.name: s.key for s in self.rule.states}
        mask = None if slot.mask is None else fitted(slot.mask, slot, f"mask of {slot.label}")
        return mask, {n: fitted(a, slot, f"{keys[n]} of {slot.label}") for n, a in slot.states.items()}

    def _regroup(self, counting: Set[str]) -> list[Clock]:
        """Let slots of one group with equal counts share a clock, those with a gradient apart from those without. Where steps may
        be captured, on devices that keep counts, each slot has its own, at the same place: replays of a graph that knows other
        slots advance it too.
        """
        clocks: dict[tuple[int, int, bool, int], Clock] = {}
        words = Counter(slot.clock.word for slot in self.slots)
        for slot in self.slots:
            word = slot.clock.word if words[slot.clock.word] == 1 else None
            alone = self.settings.capturable and (slot.view.device in counting or word is not None)
            key = (slot.group, slot.clock.step, slot.grad_view is not None, slot.index if alone else -1)
            made = self.clock(slot.group, slot.clock.step)
            made.word = word if alone else None
            slot.clock = clocks.setdefault(key, made)
        return [clock for (_, _, on, _), clock in clocks.items() if on]

    def missing_states(self, slot: Slot, flags: Mapping[str, object]) -> dict[str, Any]:
        formats = self.settings.formats(self.rule)
        kind = arrays.kind_of(slot.array, slot.label)
        found = {}
        for state in self.rule.active_states(flags):
            if state.name not in slot.states:
                dtype = state_dtype(formats[state.name], STORAGES[slot.view.dtype].compute)
                array = kind.zeros(slot.array, dtype)
                init = arrays.number(self.rule.first(state, self.groups.dicts[slot.group]))
                if init:
                    kind.assign(array, filled(init, array))
                found[state.name] = array
        return found

    def _refresh(self) -> None:
        """Gradients moved: new addresses in the tables."""
        for _, launches, _ in self._launches:
            for launch in launches:
                slots: list[Slot] = launch.private["slots"]
                launch.plan.move(1, np.array([s.grad_view.address for s in slots if s.grad_view], np.int64))
        self._hand_over()

    def _hand_over(self) -> None:
        """The gradients of the slots are those of the launches."""
        for _, launches, _ in self._launches:
            for launch in launches:
                for arrays_of, slot in zip(launch.arrays, launch.private["slots"], strict=True):
                    arrays_of["g"], arrays_of["@given"] = slot.grad, slot.given

    def synchronize(self) -> None:
        """Bring step counts that live on a GPU back to the host, those of tensors without a gradient too, which a CUDA graph may
        step; waits for the device: for saving and rebuilding only.
        """
        clocks = list({id(slot.clock): slot.clock for slot in self.slots}.values())
        for backend, shared in self._backends():
            self.skipped += backend.synchronize(clocks, shared)

    def recount(self) -> None:
        """Step counts were set on the host: those that CUDA graphs advance are so too."""
        for backend, _ in self._backends():
            backend.recount([slot.clock for slot in self.slots])

    def wait(self) -> None:
        """Wait for the devices, whose memory is read or written next on any stream."""
        for backend, _ in self._backends():
            backend.wait()

    def _backends(self) -> list[tuple[Backend, dict[str, Any]]]:
        return [(backends.get(name, device), shared) for (device, name), shared in self._shared.items()]


def reshapes(change: Change) -> bool:
    """Whether a new gradient needs new launches, not only a new address."""
    slot, _, view = change
    old = slot.grad_view
    return (view is None) != (old is None) or (view is not None and old is not None and view.dtype != old.dtype)
