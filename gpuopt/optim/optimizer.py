"""The optimizer over arrays: groups, states, step. It checks everything, then hands launches to a backend.

Made by `gpuopt.AdamW(...)` and its kin (optim.factory), subclassed by nothing. Knows no kernel and no array library.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpuopt import arrays, backends
from gpuopt.compiler.lower import Role, Signature, program_for
from gpuopt.errors import InputError
from gpuopt.formats.dtypes import STORAGES, state_storage
from gpuopt.launch.launcher import Backend, Clock, Demand, Launch
from gpuopt.launch.plan import Plan
from gpuopt.optim import state_dict, trees
from gpuopt.optim.hyper import check_group, defaults_of, environment
from gpuopt.optim.settings import Settings
from gpuopt.optim.slots import Slot, Written, check_overlap, gradient_view, parameter_view
from gpuopt.rules.language import Rule


class Optimizer:
    """Runs a rule on arrays, in place, all tensors of equal dtypes in one launch.

    rule: the update rule. params: an array, a (nested) list or dict of arrays, or a list of group dicts
    `{"params": ..., "lr": ...}`. Arrays are float64, float32, float16 or bfloat16, dense, on the host or a GPU.
    backend: "auto" (None), "numpy", "numba", "cuda", "cupy" or "numba-cuda".
    state_format: "float32" or "bfloat16", or a dict per state; states of float64 parameters are float64.
    max_grad_norm: clip all gradients by their global 2-norm. grad_scale: divide gradients by this number or one-element
    array. skip_nonfinite: skip the whole step, step counts included, where a gradient holds NaN or infinity.
    mask: mirrors params, boolean arrays or None; parameters are kept at zero where it is false.
    capturable: step counts live on the GPU, so that a step can be captured into a CUDA graph.
    hyper: the rule's hyperparameters and `maximize`, `l1` (proximal soft threshold), `clip_value` (gradient bound).

    Raises InputError, DtypeError or BackendUnavailable before anything is written.
    """

    def __init__(
        self,
        rule: Rule,
        params: Any,
        *,
        backend: str | None = None,
        state_format: str | Mapping[str, str] = "float32",
        param_format: str = "native",
        max_grad_norm: float | None = None,
        grad_scale: Any = None,
        skip_nonfinite: bool = False,
        mask: Any = None,
        capturable: bool = False,
        **hyper: Any,
    ) -> None:
        self.rule = rule
        self.settings = Settings(
            state_format, param_format, max_grad_norm, grad_scale, None, bool(skip_nonfinite), bool(capturable)
        )
        self.settings.check(rule)
        self.defaults = defaults_of(rule) | hyper
        check_group({k: v for k, v in self.defaults.items() if v is not inspect.Parameter.empty}, rule, rule.title)
        self.param_groups: list[dict[str, Any]] = []
        self._skipped = 0
        self._asked = backend
        self._slots: list[Slot] = []
        self._structures: list[Any] = []
        self._launches: list[tuple[Backend, list[Launch], list[Clock]]] = []
        self._key: object = None
        self._grouped = trees.is_group_list(params)
        groups = params if self._grouped else [{"params": params}]
        masks = list(mask) if self._grouped and mask is not None else [mask] * len(groups)
        for group, group_mask in zip(groups, masks, strict=True):
            self.add_param_group(group, mask=group_mask)
        if not self._slots:
            raise InputError("params: expected at least one array, found none")

    def __repr__(self) -> str:
        groups = "\n".join(
            f"  group {k}: {len(g['params'])} tensors, " + ", ".join(f"{n}={v}" for n, v in g.items() if n != "params")
            for k, g in enumerate(self.param_groups)
        )
        return f"{self.rule.title} on {self.backend} (\n{groups}\n)"

    @property
    def backend(self) -> str:
        """The name of the backend that runs the (first) parameters."""
        return self._choice(self._slots[0])[0]

    @property
    def backend_reason(self) -> str:
        """Why that backend."""
        return self._choice(self._slots[0])[1]

    def _choice(self, slot: Slot) -> tuple[str, str]:
        return backends.choose(self._asked, slot.view.device.partition(":")[0])

    # ------------------------------------------------------------------------------------------- groups

    def add_param_group(self, group: Mapping[str, Any], *, mask: Any = None) -> None:
        """Add tensors with hyperparameters of their own; `group["params"]` is an array or a nested list or dict.

        Raises InputError or DtypeError and changes nothing if the group cannot be used.
        """
        index = len(self.param_groups)
        name = f"param_groups[{index}]"
        if not isinstance(group, Mapping) or "params" not in group:
            raise InputError(f"{name}: expected a dict with the key 'params', found {type(group).__name__}")
        made = self.defaults | {k: v for k, v in group.items()}
        check_group(made, self.rule, name)
        prefix = f"{name}['params']" if self._grouped or index else "params"
        leaves = list(trees.flatten(group["params"], prefix))
        masks = [None] * len(leaves) if mask is None else list(trees.mirror(group["params"], mask, "mask", "params"))
        clock = self._clock(index, 0)
        slots = []
        for (label, array), tensor_mask in zip(leaves, masks, strict=True):
            slot = Slot(label, array, parameter_view(array, label), index, clock)
            self._choice(slot)
            slot.mask = self._checked_mask(tensor_mask, slot)
            slots.append(slot)
        check_overlap([*self._slots, *slots])
        made["params"] = [s.array for s in slots]
        self.param_groups.append(made)
        self._structures.append(group["params"])
        self._slots += slots
        self._written = Written(self._slots)
        self._key = None

    def _clock(self, group: int, step: int) -> Clock:
        return Clock(group, step, lambda t: environment(self.param_groups[group], t))

    def _checked_mask(self, mask: Any, slot: Slot) -> Any:
        if mask is None:
            return None
        view = arrays.describe(mask, f"mask of {slot.label}")
        if view.dtype != "bool" or view.shape != slot.view.shape or view.device != slot.view.device:
            raise InputError(
                f"mask of {slot.label}: found {view.dtype} {view.shape} on {view.device}: expected bool "
                f"{slot.view.shape} on {slot.view.device}"
            )
        if arrays.canonical(view.shape, view.strides) != arrays.canonical(slot.view.shape, slot.view.strides):
            return arrays.kind_of(slot.array, slot.label).relayout(mask, slot.array, None)
        return mask

    # ------------------------------------------------------------------------------------------- step

    def step(self, grads: Any) -> None:
        """Update every parameter in place from its gradient; gradients are only read.

        grads mirrors params (a list of one such tree per group where there are several groups); None skips a tensor, its
        step count included. Raises InputError or DtypeError before anything is written.
        """
        self._step(self._leaves(grads))

    def _step(self, leaves: Sequence[Any]) -> None:
        changes = self._collect(leaves)
        key = (tuple(g is not None for g in leaves), self._flags(), self.settings)
        if changes or key != self._key:
            self._commit(leaves, changes)
        if key != self._key or any(old is None or old.dtype != new.dtype for _, _, new, old in changes):
            self._key = None
            self._rebuild([slot for slot, g in zip(self._slots, leaves, strict=True) if g is not None])
            self._key = (*key[:2], Settings(**vars(self.settings)))
        elif changes:
            self._refresh()
        demand = self._demand()
        if demand.sums and len(self._launches) > 1:
            raise InputError("max_grad_norm and skip_nonfinite need all parameters on one device")
        for backend, launches, clocks in self._launches:
            self._skipped += not backend.step(launches, demand, clocks)

    def _leaves(self, grads: Any) -> list[Any]:
        if len(self._structures) == 1 and not self._grouped:
            return list(trees.mirror(self._structures[0], grads, "grads", "params"))
        if not isinstance(grads, (list, tuple)) or len(grads) != len(self._structures):
            raise InputError(f"grads: expected a list with one entry for each of {len(self._structures)} groups")
        leaves: list[Any] = []
        for k, (structure, tree) in enumerate(zip(self._structures, grads, strict=True)):
            tree = tree["params"] if isinstance(tree, Mapping) and "params" in tree else tree
            leaves += trees.mirror(structure, tree, f"grads[{k}]", "params")
        return leaves

    def _collect(self, leaves: Sequence[Any]) -> list[tuple[Slot, Any, arrays.View, arrays.View | None]]:
        """Check every gradient that is not the one seen last time; nothing is changed yet."""
        changes = []
        for slot, grad in zip(self._slots, leaves, strict=True):
            if grad is None or (grad is slot.grad_source and grad is slot.grad):
                continue
            view = gradient_view(grad, slot, f"gradient of {slot.label}")
            changes.append((slot, grad, view, slot.grad_view))
        if changes:
            self._written.check([f"gradient of {c[0].label}" for c in changes], [c[2] for c in changes])
        return changes

    def _commit(self, leaves: Sequence[Any], changes: Sequence[tuple[Slot, Any, arrays.View, Any]]) -> None:
        """Remember the gradients; one in another memory order is copied into its parameter's."""
        for slot, grad, view, _ in changes:
            same = arrays.canonical(view.shape, view.strides) == arrays.canonical(slot.view.shape, slot.view.strides)
            if same and arrays.is_dense(view.shape, view.strides):
                slot.grad = grad
            else:
                kind = arrays.kind_of(grad, slot.label)
                old = slot.grad if slot.grad is not slot.grad_source else None
                slot.grad = kind.relayout(grad, slot.array, old)
                view = kind.describe(slot.grad)
            slot.grad_source, slot.grad_view = grad, view

    def _flags(self) -> tuple[tuple[tuple[str, object], ...], ...]:
        """The compile-time constants of every group. Options are switched on for all groups if any needs them."""
        groups, settings = self.param_groups, self.settings
        scaled = settings.max_grad_norm is not None or settings.grad_scale is not None
        shared = {
            "scaled": scaled or any(g["maximize"] for g in groups),
            "clipped": any(g["clip_value"] is not None for g in groups),
            "sparse": any(g["l1"] for g in groups),
        }
        return tuple(tuple(sorted((self.rule.flags(g) | shared).items())) for g in groups)

    def _demand(self) -> Demand:
        s = self.settings
        on_device = s.skip_nonfinite or s.capturable or s.found_inf is not None or hasattr(s.grad_scale, "shape")
        return Demand(s.max_grad_norm, s.grad_scale, s.found_inf, s.skip_nonfinite, on_device)

    # ------------------------------------------------------------------------------------------- launches

    def _rebuild(self, active: Sequence[Slot]) -> None:
        """Make states, clocks and launches anew. Everything is allocated before any slot changes."""
        self.synchronize()
        flags = [dict(f) for f in self._flags()]
        made = [(slot, self._missing_states(slot, flags[slot.group])) for slot in active]
        for slot, states in made:
            slot.states |= states
        chosen = {id(s) for s in active}
        clocks: dict[tuple[int, int, bool], Clock] = {}
        for slot in self._slots:
            key = (slot.group, slot.clock.step, id(slot) in chosen)
            slot.clock = clocks.setdefault(key, self._clock(*key[:2]))
        buckets: dict[tuple[Any, ...], list[Slot]] = {}
        for slot in active:
            assert slot.grad_view is not None
            signature = self._signature(slot, flags[slot.group])
            buckets.setdefault((slot.view.device, self._choice(slot)[0], signature), []).append(slot)
        by_backend: dict[tuple[str, str], list[Launch]] = {}
        for (device, name, signature), slots in buckets.items():
            by_backend.setdefault((device, name), []).append(make_launch(signature, slots))
        running = [c for (_, _, on), c in clocks.items() if on]
        self._launches = []
        for (device, name), launches in by_backend.items():
            mine = {id(c) for launch in launches for c in launch.clocks}
            own = [c for c in running if id(c) in mine] or []
            self._launches.append((backends.get(name), launches, own))
            running = [c for c in running if id(c) not in mine]
        for clock in running:  # only empty tensors: their count advances with no launch
            self._launches[0][2].append(clock) if self._launches else setattr(clock, "step", clock.step + 1)

    def _missing_states(self, slot: Slot, flags: Mapping[str, object]) -> dict[str, Any]:
        formats = self.settings.formats(self.rule)
        kind = arrays.kind_of(slot.array, slot.label)
        found = {}
        for state in self.rule.active_states(flags):
            if state.name not in slot.states:
                dtype = state_storage(formats[state.name], STORAGES[slot.view.dtype].compute)
                array = kind.zeros(slot.array, dtype)
                init = state.init if isinstance(state.init, (int, float)) else self.param_groups[slot.group][state.init]
                if init:
                    array[...] = init
                found[state.name] = array
        return found

    def _signature(self, slot: Slot, flags: Mapping[str, object]) -> Signature:
        assert slot.grad_view is not None
        roles = [Role("p", slot.view.dtype, True), Role("g", slot.grad_view.dtype, False)]
        for state in self.rule.active_states(flags):
            view = arrays.describe(slot.states[state.name], f"{state.key} of {slot.label}")
            roles.append(Role(state.name, view.dtype, not state.readonly))
        if slot.mask is not None:
            roles.append(Role("mask", "bool", False))
        everything = {**flags, "masked": slot.mask is not None}
        return Signature(self.rule, tuple(sorted(everything.items())), tuple(roles), STORAGES[slot.view.dtype].compute)

    def _refresh(self) -> None:
        """Gradients moved: new addresses in the tables."""
        for _, launches, _ in self._launches:
            for launch in launches:
                slots: list[Slot] = launch.private["slots"]
                launch.plan.move(1, np.array([s.grad_view.address for s in slots if s.grad_view], np.int64))
                for arrays_of, slot in zip(launch.arrays, slots, strict=True):
                    arrays_of["g"] = slot.grad

    # ------------------------------------------------------------------------------------------- state

    def synchronize(self) -> None:
        """Bring step counts that live on a GPU back to the host; waits for the device, so only saving and rebuilding do."""
        for backend, launches, _ in self._launches:
            self._skipped += backend.synchronize(launches)

    @property
    def skipped(self) -> int:
        """Steps skipped so far because a gradient was not finite or found_inf was set; waits for the device."""
        self.synchronize()
        return self._skipped

    def state_dict(self) -> dict[str, Any]:
        """Copies of all states by parameter index, step counts and groups; see optim.state_dict."""
        self.synchronize()
        return state_dict.save(self.rule, self._slots, self.param_groups)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take states, step counts and hyperparameters from `state_dict()`. Raises InputError and changes nothing if it
        does not fit.
        """
        groups = state_dict.load(self.rule, self._slots, self.param_groups, saved, self._missing_states)
        for group, values in zip(self.param_groups, groups, strict=True):
            group.update(values)
        self._launches, self._key = [], None


def make_launch(signature: Signature, slots: Sequence[Slot]) -> Launch:
    """The launch of tensors that share a signature; empty tensors have no place in it."""
    slots = [s for s in slots if s.view.numel] or list(slots[:0])
    program = program_for(signature)
    clocks = list(dict.fromkeys(id(s.clock) for s in slots))
    by_id = {id(s.clock): s.clock for s in slots}
    of = []
    for s in slots:
        of.append({"p": s.array, "g": s.grad, "mask": s.mask, **s.states})
    names = [r.name for r in signature.roles]
    views = [[arrays.describe(o[n], n).address for n in names] for o in of]
    addresses = np.array(views, np.int64).reshape(len(slots), len(names))
    plan = Plan(program, [s.view.numel for s in slots], [clocks.index(id(s.clock)) for s in slots], addresses)
    return Launch(plan, [by_id[c] for c in clocks], of, dict(signature.flags), {"slots": slots})
