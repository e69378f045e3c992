"""The drop-in `torch.optim.Optimizer`: torch's groups, state dict and hooks outside, gpuopt's engine inside.

One subclass for each rule is made by `gpuopt.torch`. State lives in `self.state` under torch's names, allocated by torch at the
first step that needs it. Knows no kernel; the engine knows no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from gpuopt.errors import DtypeError, InputError
from gpuopt.launch.launcher import Clock
from gpuopt.launch.stream import override
from gpuopt.optim.engine import Engine
from gpuopt.optim.hyper import check_group, defaults_of
from gpuopt.optim.settings import Settings
from gpuopt.optim.slots import Slot, parameter_view
from gpuopt.rules.language import Rule

# Keys of torch's groups that choose another algorithm: only torch's default of that class is what this class does.
ALGORITHMS = ("differentiable", "decoupled_weight_decay")
WITHOUT_STEP = ("sgd",)  # torch.optim.SGD keeps no step count: a momentum buffer means that a first step was made
EAGER = ("adagrad",)  # torch.optim.Adagrad allocates its state at once


class TorchOptimizer(torch.optim.Optimizer):
    """Common part of `gpuopt.torch.AdamW` and its kin; `rule` and `torch_defaults` are set by the subclass."""

    rule: Rule
    torch_defaults: dict[str, Any]
    _step_supports_amp_scaling = True

    def __init__(self, params: Any, defaults: dict[str, Any], options: dict[str, Any], backend: str | None) -> None:
        self._options, self._asked = dict(options), backend
        self._mask = dict(self._options.pop("mask", None) or {})
        self._reset()
        self._settings().check(self.rule)
        super().__init__(params, defaults)
        if self.rule.name in EAGER:
            self.init_state()

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
        self._engine: Engine | None = None
        self._steps: list[tuple[Clock, torch.Tensor]] = []
        self._planned = 0
        self._seen: tuple[Any, ...] = (None, None)
        self._seen_addresses: list[int] = []
        self._single: dict[torch.Tensor, Engine] = {}

    # ------------------------------------------------------------------------------------------- groups and slots

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch. Raises InputError for a hyperparameter out of range and changes nothing."""
        own = defaults_of(self.rule)
        made = {k: v for k, v in ({**self.defaults, **param_group}).items() if k in own}
        check_group({k: _plain(v) for k, v in made.items()}, self.rule, f"param_groups[{len(self.param_groups)}]")
        for key in ALGORITHMS:
            value = param_group.get(key, self.defaults.get(key))
            if key not in own and key in self.torch_defaults and value != self.torch_defaults[key]:
                raise InputError(f"{key} = {value}: {self.rule.title} of gpuopt does {self.torch_defaults[key]}")
        super().add_param_group(param_group)
        self._save_steps()
        self._reset()

    def _made_engine(self) -> Engine:
        """The engine over the groups as they stand, with the states that are in `self.state`."""
        if self._engine is None:
            engine = Engine(self.rule, self._settings(), self.param_groups, self._asked)
            slots = []
            for index, group in enumerate(self.param_groups):
                numbers = range(len(group["params"]))
                names = group.get("param_names") or [f"param_groups[{index}]['params'][{k}]" for k in numbers]
                for label, p in zip(names, group["params"], strict=True):
                    slots.append(self._slot(engine, label, p, index))
            engine.add(slots)
            self._engine = engine
        return self._engine

    def _slot(self, engine: Engine, label: str, p: torch.Tensor, index: int) -> Slot:
        state = self.state.get(p, {})
        found = {s.name: state[s.key] for s in self.rule.states if state.get(s.key) is not None}
        step = int(state["step"]) if "step" in state else int(bool(found))
        slot = Slot(label, p, parameter_view(p, label), index, engine.clock(index, step), self._mask.get(p), found)
        engine.choice(slot)
        return slot

    # ------------------------------------------------------------------------------------------- step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; gradients are only read. Returns the closure's loss, if any.

        Raises InputError or DtypeError before anything is written.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        engine = self._made_engine()
        engine.settings, engine.groups = self._settings(), self.param_groups
        first = self.param_groups[0]["params"][0]
        stream = torch.cuda.current_stream(first.device).cuda_stream if first.is_cuda else None
        token = override.set(stream)
        try:
            self._run(engine)
        finally:
            override.reset(token)
        return loss

    def _run(self, engine: Engine) -> None:
        params = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in params]
        where = [p.data_ptr() for p in params]
        layouts = [None if g is None else (g.dtype, g.stride(), g.is_sparse) for g in grads]
        addresses = [0 if g is None else g.data_ptr() for g in grads]
        known = (where, layouts) == self._seen and engine.settled()
        self._seen = (None, None)  # what follows may fail
        if not known:
            engine.touch()
            engine.step([_resolved(g) for g in grads])
        else:
            if addresses != self._seen_addresses:
                engine.relocate(np.array(addresses, np.int64))
            engine.run()
        self._seen, self._seen_addresses = (where, layouts), addresses
        if engine.planned != self._planned:
            self._publish(engine)
        for clock, tensor in self._steps:
            tensor.fill_(clock.step)

    def _publish(self, engine: Engine) -> None:
        """Show new states in `self.state`, in torch's order; tensors that share a clock share its step tensor."""
        keys = {s.name: s.key for s in self.rule.states}
        dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
        tensors: dict[int, tuple[Clock, torch.Tensor]] = {}
        for slot in engine.slots:
            if not slot.states and (not slot.clock.step or self.rule.name in WITHOUT_STEP):
                continue
            state = self.state[slot.array]
            if self.rule.name not in WITHOUT_STEP:
                made = tensors.setdefault(
                    id(slot.clock), (slot.clock, torch.tensor(float(slot.clock.step), dtype=dtype))
                )
                state["step"] = made[1]
            state.update({keys[name]: tensor for name, tensor in slot.states.items()})
        self._steps, self._planned = list(tensors.values()), engine.planned

    def init_state(self) -> None:
        """Allocate the state of every parameter now, with step 0, instead of at its first step."""
        engine = self._made_engine()
        for slot in engine.slots:
            slot.states |= engine.missing_states(slot, self.rule.flags(self.param_groups[slot.group]))
        self._publish_all(engine)

    def _publish_all(self, engine: Engine) -> None:
        for slot in engine.slots:
            if slot.array not in self.state:
                self.state[slot.array] = {}
        self._publish(engine)

    @torch.no_grad()
    def _step_one(self, p: torch.Tensor) -> None:
        """Step one parameter, with an engine and a step count of its own: for gradient release."""
        engine = self._single.get(p)
        if engine is None:
            engine = Engine(self.rule, self._settings(), self.param_groups, self._asked)
            index = next(k for k, g in enumerate(self.param_groups) if any(q is p for q in g["params"]))
            engine.add([self._slot(engine, f"parameter of shape {tuple(p.shape)}", p, index)])
            self._single[p] = engine
        engine.settings, engine.groups = self._settings(), self.param_groups
        engine.touch()
        engine.step([_resolved(p.grad)])
        slot = engine.slots[0]
        self.state[p].update({s.key: slot.states[s.name] for s in self.rule.states if s.name in slot.states})
        if self.rule.name not in WITHOUT_STEP:
            self.state[p]["step"] = torch.tensor(float(slot.clock.step))

    # ------------------------------------------------------------------------------------------- state dict

    def _save_steps(self) -> None:
        """Bring step counts into the step tensors, from the GPU too."""
        if self._engine is not None:
            self._engine.synchronize()
        for clock, tensor in self._steps:
            tensor.fill_(clock.step)

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
        super().load_state_dict(dict(state_dict))
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(saved, params, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                cast = self.state[p].get(key)
                if key != "step" and isinstance(value, torch.Tensor) and cast.dtype != value.dtype:
                    self.state[p][key] = value.detach().to(device=p.device, copy=True)
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        self._save_steps()
        return {**super().__getstate__(), "gpuopt": (self._options, self._asked, self._mask)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if "gpuopt" in state:
            self._options, self._asked, self._mask = state.pop("gpuopt")
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
        self._reset()

    @property
    def backend(self) -> str:
        """The name of the backend that runs the first parameter."""
        engine = self._made_engine()
        return engine.choice(engine.slots[0])[0]


def _plain(value: Any) -> Any:
    """A hyperparameter as a number where it is a one-element tensor."""
    if isinstance(value, (tuple, list)):
        return tuple(_plain(v) for v in value)
    return value.item() if isinstance(value, torch.Tensor) else value


def _resolved(grad: torch.Tensor | None) -> torch.Tensor | None:
    """The gradient with a pending conjugation carried out. Raises DtypeError for a sparse one."""
    if grad is not None and grad.layout is not torch.strided:
        raise DtypeError(f"a gradient has layout {grad.layout}: expected dense; sparse gradients are not supported")
    return grad.resolve_conj() if grad is not None and grad.is_conj() else grad
