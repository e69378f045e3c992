"""The drop-in `torch.optim.Optimizer`: torch's groups, state dict and hooks outside, gpuopt's engine inside.

One subclass for each rule is made by `gpuopt.torch`. State lives in `self.state` under torch's names, allocated by torch at the
first step that needs it. Knows no kernel; the engine knows no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from gpuopt.errors import InputError
from gpuopt.optim.engine import Engine
from gpuopt.optim.hyper import check_group, defaults_of
from gpuopt.optim.settings import Settings
from gpuopt.optim.slots import Slot, checked_mask, parameter_view
from gpuopt.rules.language import Rule
from gpuopt.torch import differentiable
from gpuopt.torch.follow import Follower
from gpuopt.torch.shown import ShownStates, StepTensor
from gpuopt.torch.tensors import TorchStreams, resolved

# Keys of torch's groups that choose another algorithm: only torch's default of that class is what this class does.
ALGORITHMS = ("decoupled_weight_decay",)
WITHOUT_STEP = ("sgd",)  # torch.optim.SGD keeps no step count: a momentum buffer means that a first step was made
EAGER = ("adagrad",)  # torch.optim.Adagrad allocates its state at once
WIDE = {torch.float64, torch.complex128}  # the states of these, and of no others, are computed in float64


class TorchOptimizer(torch.optim.Optimizer):
    """Common part of `gpuopt.torch.AdamW` and its kin; `rule`, `torch_defaults` and `twin` are set by the subclass."""

    rule: Rule
    torch_defaults: dict[str, Any]
    twin: str  # the name of the rule where torch has this optimizer too, else empty
    _step_supports_amp_scaling = True

    def __init__(self, params: Any, defaults: dict[str, Any], options: dict[str, Any], backend: str | None) -> None:
        self._options, self._asked = dict(options), backend
        self._edits: list[str] = []  # what was done to self.state since the engine last agreed with it
        self._mask = dict(self._options.pop("mask", None) or {})
        self._keys = tuple(defaults)
        self._reset()
        self._settings().check(self.rule)
        super().__init__(params, defaults)
        self.state = ShownStates(self.state, self._edits)
        if self.twin in EAGER:
            self.init_state()

    @property
    def _counts_steps(self) -> bool:
        return self.twin not in WITHOUT_STEP

    def _settings(self) -> Settings:
        """The options of the whole optimizer as they are now: a GradScaler sets `grad_scale` and `found_inf` for a step."""
        made = Settings(**self._options)
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            made.grad_scale = scale
        made.found_inf = getattr(self, "found_inf", None)
        groups = getattr(self, "param_groups", [])
        made.capturable = made.capturable or any(g.get("capturable") for g in groups)
        return made

    def _reset(self) -> None:
        self._steps: list[StepTensor] = []
        self._planned = 0
        self._follower: Follower | None = None
        self._single: dict[torch.Tensor, Engine] = {}

    # ------------------------------------------------------------------------------------------- groups and slots

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch. Raises InputError for a hyperparameter out of range and changes nothing."""
        own = defaults_of(self.rule)
        made = {k: v for k, v in ({**self.defaults, **param_group}).items() if k in own}
        check_group({k: _plain(v) for k, v in made.items()}, self.rule, f"param_groups[{len(self.param_groups)}]")
        self._check_algorithm({**self.defaults, **param_group})
        differentiable.check(self.rule, self._settings(), {**self.defaults, **param_group})
        super().add_param_group(param_group)
        self._save_steps()
        self._reset()

    def _check_algorithm(self, group: Mapping[str, Any]) -> None:
        own = defaults_of(self.rule)
        for key in ALGORITHMS:
            wanted = self.torch_defaults.get(key)
            if key not in own and wanted is not None and group.get(key, wanted) != wanted:
                raise InputError(f"{key} = {group[key]}: gpuopt's {self.rule.title} is torch's with {key} = {wanted}")

    @property
    def _engine(self) -> Engine | None:
        return None if self._follower is None else self._follower.engine

    def _made_follower(self) -> Follower:
        """Follows an engine over the groups as they stand, with the states that are in `self.state`."""
        if self._follower is None:
            engine = Engine(self.rule, self._settings(), self.param_groups, self._asked)
            slots = []
            for index, group in enumerate(self.param_groups):
                numbers = range(len(group["params"]))
                names = group.get("param_names") or [f"param_groups[{index}]['params'][{k}]" for k in numbers]
                for label, p in zip(names, group["params"], strict=True):
                    slots.append(self._slot(engine, label, p, index))
            engine.add(slots)
            self._follower = Follower(engine, self.param_groups)
            self._watch()
        return self._follower

    def _slot(self, engine: Engine, label: str, p: torch.Tensor, index: int) -> Slot:
        state = self.state.get(p, {})
        found = {s.name: state[s.key] for s in self.rule.states if state.get(s.key) is not None}
        step = int(state["step"]) if "step" in state else int(bool(found))
        slot = Slot(label, p, parameter_view(p, label), index, engine.clock(index, step), None, found)
        engine.choice(slot)
        slot.mask = checked_mask(self._mask.get(p), slot)
        return slot

    # ------------------------------------------------------------------------------------------- step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; gradients are only read. Returns the closure's loss, if any.

        Raises InputError or DtypeError before anything is written.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._run()
        return loss

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _run(self) -> None:
        if differentiable.asked(self.param_groups):
            self._save_steps()
            self._reset()
            differentiable.Step(self).run()
            return
        if self._follower is not None and not self._current(self._follower):
            self._save_steps()
            self._reset()
        if self._follower is None and all(p.grad is None for group in self.param_groups for p in group["params"]):
            return
        follower = self._made_follower()
        engine = follower.engine
        engine.settings, engine.groups.dicts = self._settings(), self.param_groups
        engine.groups.check()
        with TorchStreams():
            follower.step()
        if engine.planned != self._planned:
            self._publish(engine)
        for shown in self._steps:
            shown.show()

    def _current(self, follower: Follower) -> bool:
        """Whether parameters and states are still the tensors that the engine works on, with the step counts it showed."""
        return (
            follower.same_parameters(self.param_groups)
            and isinstance(self.state, ShownStates)
            and not self._edits
            and not any(shown.changed() for shown in self._steps)
        )

    def _publish(self, engine: Engine) -> None:
        """Show new states in `self.state`, in torch's order; tensors that share a clock share its step tensor."""
        keys = {s.name: s.key for s in self.rule.states}
        tensors: dict[int, StepTensor] = {}
        for slot in engine.slots:
            if not slot.states and (not slot.clock.step or not self._counts_steps):
                continue
            state = self.state[slot.array]
            if self._counts_steps:
                if id(slot.clock) not in tensors:
                    tensors[id(slot.clock)] = StepTensor(slot.clock)
                state["step"] = tensors[id(slot.clock)].tensor
            state.update({keys[name]: tensor for name, tensor in slot.states.items()})
        self._steps, self._planned = list(tensors.values()), engine.planned
        self._watch()

    def _watch(self) -> None:
        """Notice from now on what others do to `self.state`."""
        if not isinstance(self.state, ShownStates):
            self.state = ShownStates(self.state, self._edits)
        self.state.watch()
        if self._follower is not None:
            self._follower.watch_states()

    def init_state(self) -> None:
        """Allocate the state of every parameter now, with step 0, instead of at its first step."""
        engine = self._made_follower().engine
        for slot in engine.slots:
            slot.states |= engine.missing_states(slot, self.rule.flags(self.param_groups[slot.group]))
        self._publish(engine)

    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def _step_one(self, p: torch.Tensor) -> None:
        """Step one parameter, with an engine and a step count of its own: for gradient release."""
        if self._follower is not None:  # it does not know of the steps that are made here
            self._save_steps()
            single = self._single
            self._reset()
            self._single = single
        if p not in self._single:
            engine = Engine(self.rule, self._settings(), self.param_groups, self._asked)
            every = [(k, q) for k, g in enumerate(self.param_groups) for q in g["params"]]
            number, index = next((n, k) for n, (k, q) in enumerate(every) if q is p)
            slot = self._slot(engine, f"parameter of shape {tuple(p.shape)}", p, index)
            slot.number = number
            engine.add([slot])
            self._single[p] = engine
        engine = self._single[p]
        engine.settings, engine.groups.dicts = self._settings(), self.param_groups
        with TorchStreams():
            engine.touch()
            engine.step([None if p.grad is None else resolved(p.grad)])
        engine.let_go()
        (slot,) = engine.slots
        if self._counts_steps:
            self.state[p]["step"] = StepTensor(slot.clock).tensor
        self.state[p].update({s.key: slot.states[s.name] for s in self.rule.states if s.name in slot.states})

    # ------------------------------------------------------------------------------------------- state dict

    def _save_steps(self) -> None:
        """Bring step counts into the step tensors, from the GPU too; one that was set from outside stays as it is."""
        with TorchStreams():
            for engine in (*self._single.values(), *([self._engine] if self._engine else [])):
                engine.synchronize()
        for shown in self._steps:
            if not shown.changed():
                shown.show()
        for p, engine in self._single.items():
            if "step" in self.state[p]:
                self.state[p]["step"].fill_(engine.slots[0].clock.step)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with a step tensor of its own for each parameter, so that torch's optimizers can go on with it."""
        self._save_steps()
        made: dict[str, Any] = super().state_dict()
        made["state"] = {
            index: {k: (v.clone() if k == "step" else v) for k, v in state.items()}
            for index, state in made["state"].items()
        }
        return made

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state dict of this class or of torch's class of the same name; states keep the dtypes they were saved in."""
        loaded: list[Mapping[str, Any]] = []

        def check(_: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
            for group in saved["param_groups"]:
                self._check_algorithm(group)
            loaded.append(saved)

        def restore(_: torch.optim.Optimizer) -> None:
            self._restore_dtypes(loaded[0])

        # Around torch's own loading, behind the hooks that change what is loaded and before those that look at it.
        hooks = [
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            for hook in hooks:
                hook.remove()

    def _restore_dtypes(self, saved: Mapping[str, Any]) -> None:
        """Torch casts loaded states to the parameter's dtype; the step of a 16-bit parameter needs them as they were saved."""
        indices = [i for group in saved["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(indices, params, strict=True):
            for key, value in saved["state"].get(index, {}).items():
                if key == "step" or not isinstance(value, torch.Tensor) or {p.dtype, value.dtype} & WIDE:
                    continue
                if self.state[p][key].dtype != value.dtype:
                    self.state[p][key] = value.detach().to(device=p.device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        self._save_steps()
        return {**super().__getstate__(), "gpuopt": (self._options, self._asked, self._mask, self._keys)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if "gpuopt" in state:
            self._options, self._asked, self._mask, self._keys = state.pop("gpuopt")
        super().__setstate__(state)
        for group in self.param_groups:
            for key in self._keys:
                group.setdefault(key, self.defaults[key])
        self._edits = []
        self.state = ShownStates(self.state, self._edits)
        self._reset()

    @property
    def backend(self) -> str:
        """The name of the backend that runs the first parameter."""
        engine = self._made_follower().engine
        return engine.choice(engine.slots[0])[0]


def _plain(value: Any) -> Any:
    """A hyperparameter as a number where it is a one-element tensor."""
    if isinstance(value, (tuple, list)):
        return tuple(_plain(v) for v in value)
    return value.item() if isinstance(value, torch.Tensor) else value
