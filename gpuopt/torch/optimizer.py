"""The drop-in `torch.optim.Optimizer`: torch's groups, state dict and hooks outside, gpuopt's engine inside.

One subclass for each rule is made by `gpuopt.torch`. State lives in `self.state` under torch's names, allocated by torch at the
first step that needs it. Knows no kernel; the engine knows no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakMethod

import torch

from gpuopt import backends
from gpuopt.errors import InputError, OptionError, entries
from gpuopt.optim.between import averages, check_training
from gpuopt.optim.decay import peak_of
from gpuopt.optim.engine import Engine
from gpuopt.optim.hyper import MODE, check_group, defaults_of, members
from gpuopt.optim.keeping import check_narrow, of_settings
from gpuopt.optim.settings import Settings
from gpuopt.rules.language import Rule
from gpuopt.torch import differentiable, engines, joint, loading, refusals, routes, sparse
from gpuopt.torch.between import BetweenSteps
from gpuopt.torch.change_tracker import ChangeTracker
from gpuopt.torch.parameters import (
    Beside,
    Member,
    any_has,
    labelled,
    new_states,
    show,
    shown,
)
from gpuopt.torch.replayed import Replayed
from gpuopt.torch.state_view import StateView
from gpuopt.torch.step_tensors import step_tensor, usable
from gpuopt.torch.tensors import DEVICES, NAMES, TorchStreams

# Keys of torch's groups that choose another algorithm: only torch's default of that class is what this class does. A checkpoint
# may have another, as Adam's in AdamW, and is taken over to this class, as in torch.
ALGORITHMS = ("decoupled_weight_decay",)
WITHOUT_STEP = ("sgd",)  # torch.optim.SGD keeps no step count: a momentum buffer means that a first step was made
EAGER = ("adagrad",)  # torch.optim.Adagrad allocates its state at once


@entries
class TorchOptimizer(BetweenSteps, torch.optim.Optimizer):
    """Common part of `gpuopt.torch.AdamW` and its kin; the class attributes are set by the subclass."""

    rule: Rule
    torch_defaults: dict[str, Any]
    torch_later: dict[str, Any]  # of a group in a checkpoint that is older than these keys
    twin: str  # the name of the rule where torch has this optimizer too, else empty
    _step_supports_amp_scaling = True

    def __init__(self, params: Any, defaults: dict[str, Any], options: dict[str, Any], backend: str | None) -> None:
        asked = dict(options)
        around = {name: asked.pop(name, None) for name in ("mask", "bounds", "anchor")}
        params = routes.grouped(self.rule, params, asked.pop("matrices", None), asked.pop("rest", None))
        self._given, self._asked = Settings(**asked), backend
        together = {k: members(defaults[k], defaults[k]) for k in self.rule.definition().tuples if k in defaults}
        defaults = {**defaults, **together}  # tuples, as in torch
        self._keys = tuple(defaults)
        # The steps made with each parameter, where `self.state` does not say it.
        self._taken: dict[torch.Tensor, int] = {}
        self._replayed = Replayed()
        self._reset()
        self._settings().check(self.rule)
        self.rule = of_settings(self.rule, self._given, defaults)
        self._check_group(defaults, self.rule.title)
        super().__init__(params, defaults)
        every = [p for group in self.param_groups for p in group["params"]]
        self._settings().check_capture()
        check_narrow(self._given.param_format, [NAMES.get(p.dtype, str(p.dtype)) for p in every])
        if defaults.get("fused") and defaults.get("foreach"):
            raise OptionError("`fused` and `foreach` cannot be `True` together.")  # as torch
        self._beside = Beside(around, self.param_groups)
        self._watch()
        if self.twin in EAGER:
            self._allocate([p for p in every if p.layout is torch.strided])

    def __repr__(self) -> str:
        """torch's, and the options of the whole optimizer that are set."""
        options = str(self._given)
        return super().__repr__() + (f" with {options}" if options else "")

    @property
    def _counts_steps(self) -> bool:
        return self.twin not in WITHOUT_STEP

    def _settings(self) -> Settings:
        """The options of the whole optimizer as they are now: a GradScaler sets `grad_scale` and `found_inf` for a step."""
        given, scale, found_inf = self._given, getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        capturable = any_has(getattr(self, "param_groups", ()), "capturable")
        if scale is None and found_inf is None and not capturable:
            return given
        return replace(
            given,
            grad_scale=given.grad_scale if scale is None else scale,
            found_inf=found_inf,
            capturable=given.capturable or capturable,
        )

    def _reset(self) -> None:
        # Of the whole optimizer under None, of parameters that gradient release steps together under those; no two of them
        # have a parameter with a gradient in common.
        self._trackers: dict[frozenset[torch.Tensor] | None, ChangeTracker] = {}

    # ------------------------------------------------------------------------------------------- groups and parameters

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch. Raises InputError for a hyperparameter out of range and changes nothing."""
        if isinstance(param_group, dict):  # torch says what it is else
            peak = peak_of({**self.defaults, **param_group})
            self._check_group({**self.defaults, **param_group}, f"param_groups[{len(self.param_groups)}]")
            self._check_algorithm({**self.defaults, **param_group})
            differentiable.check(self.rule, self._settings(), {**self.defaults, **param_group})
            param_group.update(peak)
            if averages(self.rule):
                param_group.setdefault(MODE, True)
        super().add_param_group(param_group)
        self._save_steps()
        self._reset()

    def _check_group(self, group: Mapping[str, Any], label: str) -> None:
        own = defaults_of(self.rule)
        given = {k: v for k, v in (peak_of(group) | dict(group)).items() if k in own}
        check_group({k: differentiable.plain(v) for k, v in given.items()}, self.rule, label)

    def _check_algorithm(self, group: Mapping[str, Any]) -> None:
        for key, wanted in self._algorithm().items():
            if group.get(key, wanted) != wanted:
                raise InputError(f"{key} = {group[key]}: gpuopt's {self.rule.title} is torch's with {key} = {wanted}")

    def _algorithm(self) -> dict[str, Any]:
        """What every group has for the keys that choose another algorithm, where the rule itself has no such choice."""
        own = defaults_of(self.rule)
        return {k: self.torch_defaults[k] for k in ALGORITHMS if k in self.torch_defaults and k not in own}

    @property
    def _engine(self) -> Engine | None:
        return self._trackers[None].engine if None in self._trackers else None

    def _made_tracker(self, part: frozenset[torch.Tensor] | None, members: Sequence[Member]) -> ChangeTracker:
        """Follows a new engine over parameters that have a gradient, with the states that are in `self.state`; it replaces those
        that know other states or step counts of these parameters.
        """
        params, edited, old = [p for _, p, *_ in members], self._state_edited(), self._trackers.get(part)
        mine, known = set(params), [*self._trackers.items()]
        gone = [key for key, other in known if edited or other is old or not mine.isdisjoint(key or other.params)]
        self._save_steps([self._trackers.pop(key) for key in gone])
        every = [p for group in self.param_groups for p in group["params"]] if part is None else params
        engine, gathering = engines.made(self, members)
        made = ChangeTracker(engine, self.param_groups, every, params, self._publish, self._unsparse, gathering)
        made.patience = made.patience if old is None else old.patience
        if edited:
            self._watch()
        if gathering.of:  # their states were made
            self._known_version = self._view.version()
        self._trackers[part] = made
        return made

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
    def _run(self, part: frozenset[torch.Tensor] | None = None) -> Sequence[torch.Tensor]:
        """Step the parameters that have a gradient, or those of a part, which all have one; returns those that were stepped."""
        if self.rule.between:
            check_training(self.rule, self.param_groups)
        if any_has(self.param_groups, differentiable.KEY):
            self._save_steps()
            self._reset()
            differentiable.Step(self).run()
            return ()
        tracker = self._trackers.get(part)
        if tracker is not None and tracker.same_parameters(self.param_groups) and self._stepped(tracker):
            return tracker.params
        every = labelled(self.param_groups)
        members = [m for m in every if (m[1].grad is not None if part is None else m[1] in part)]
        if not members:
            return ()
        made = self._made_tracker(part, members)
        self._stepped(made)
        return made.params

    def _stepped(self, tracker: ChangeTracker) -> bool:
        """One step, where the parameters and states are still the tensors that the engine works on."""
        if self._state_edited():
            return False
        engine = tracker.engine
        engine.settings, engine.groups.dicts = self._settings(), self.param_groups
        engine.groups.check()
        with TorchStreams():
            stepped = tracker.step()
        self._travelling = self._given.on_host
        return stepped

    def _state_edited(self) -> bool:
        """Whether someone put states into `self.state`, or took some out."""
        return self.state is not self._view or self._view.version() != self._known_version

    def _publish(self, tracker: ChangeTracker) -> list[torch.Tensor]:
        """Show states and step counts in `self.state`, in torch's order; returns the step tensors, one a parameter or none."""
        steps, own = [], set[int]()
        for p, stepped in zip(tracker.params, tracker.engine.parameters, strict=True):
            if not stepped.states and not self._counts_steps:
                continue
            state, counter = self.state[p], stepped.counter
            if self._counts_steps:
                step = state.get("step")
                if not usable(step) or step.data_ptr() in own:  # what one parameter's count says is not another's
                    step = state["step"] = step_tensor(counter.step, self.param_groups[counter.group])
                own.add(step.data_ptr())
                steps.append(step)
            if p not in tracker.gathering:
                show(self.rule, p, state, stepped.states, self.param_groups[counter.group])
        self._known_version = self._view.version()  # these are its own
        return steps

    def _unsparse(self, engine: Engine, gradients: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], sparse.Rows]:
        """What is stepped for gradients some of which are sparse, and the rows of these."""
        return sparse.taken(self.twin, engine.settings, self.param_groups, engine.parameters, gradients)

    def _watch(self) -> None:
        """Notice from now on what others do to `self.state`."""
        if not isinstance(self.state, StateView):  # another optimizer of ours may have the same
            self.state = StateView(self.state)
        if self._given.on_host:
            self.state.settle = WeakMethod(self._arrived)
        self._view = self.state  # and what it was when the engine last agreed with it
        self._known_version = self._view.version()

    def init_state(self) -> None:
        """Allocate the state of every parameter that requires gradients now, with step 0, instead of at its first step."""
        self._make_states([p for group in self.param_groups for p in group["params"] if p.requires_grad])

    def _make_states(self, params: list[torch.Tensor]) -> None:
        self._save_steps()
        self._reset()
        self._allocate(params)

    def _allocate(self, params: Iterable[torch.Tensor]) -> None:
        chosen, settings = set(params), self._settings()
        for label, p, index, _ in labelled(self.param_groups):
            group = self.param_groups[index]
            if p in chosen:
                refusals.check(self.rule, group, p, label)
            made = shown(self.rule, p, new_states(self.rule, settings, group, p), group) if p in chosen else {}
            if p in chosen and self._counts_steps:
                self.state[p].setdefault("step", step_tensor(0, group))
            for state in self.rule.states:
                if state.name in made:
                    self.state[p].setdefault(state.key, made[state.name])
        joint.share(self.rule, self.param_groups, self.state)

    # ------------------------------------------------------------------------------------------- state dict

    def _save_steps(self, trackers: Iterable[ChangeTracker] | None = None) -> None:
        """Bring step counts back from the GPU into the step tensors, of all trackers or of these; one that was set from outside
        stays as it is.
        """
        for tracker in self._trackers.values() if trackers is None else trackers:
            with TorchStreams():
                tracker.engine.synchronize()
            tracker.step_tensors.write_unchanged()
            counters = {
                p: stepped.counter for p, stepped in zip(tracker.params, tracker.engine.parameters, strict=True)
            }
            if tracker.engine.settings.capturable:
                self._replayed.remember(counters)
            if not self._counts_steps:
                self._taken |= {p: counter.step for p, counter in counters.items()}
        if self._replayed.counters:
            self._replayed.settle(self.state, {p for tracker in self._trackers.values() for p in tracker.params})

    def state_dict(self) -> dict[str, Any]:
        """As torch's: it refers to the tensors of the optimizer, whose values go on changing; a deepcopy is a snapshot."""
        self._save_steps()
        self._arrived()
        made: dict[str, Any] = super().state_dict()
        return made

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state dict of this class or of torch's class of the same name; states get the dtypes that `state_format` says.

        Raises InputError before anything is changed where steps could not go on with it: it lacks a state, a step count or a
        hyperparameter, is another optimizer's, or its shapes do not fit.
        """
        loaded: list[Mapping[str, Any]] = []

        def check(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            saved = loading.with_peaks(self.param_groups, saved)
            saved = loading.in_formats(self.rule, self._given.seed, self.param_groups, saved)
            self._check_saved(saved)
            loaded.append(saved)
            return loading.without_large(self.rule, saved) if self._given.on_host else saved

        def restore(_: torch.optim.Optimizer) -> None:
            loading.restore(self.rule, self._settings(), self.param_groups, self.state, loaded[0])
            joint.share(self.rule, self.param_groups, self.state)

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

    def _check_saved(self, saved: Mapping[str, Any]) -> None:
        groups = saved["param_groups"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
            return  # torch says so
        loading.check_groups(self.rule, groups)
        for index, group in enumerate(groups):
            self._check_group({**self.defaults, **group}, f"state_dict: param_groups[{index}]")
        for label, p, index, entry in loading.entries(self.param_groups, saved):
            loading.check_origin(self.rule, entry, label)
            group = {**self.defaults, **self.torch_later, **groups[index]}
            needed = loading.required(self.rule, group, p)
            loading.check_entry(self.rule, entry, needed, group, self._counts_steps, p, label)

    def __getstate__(self) -> dict[str, Any]:
        self._save_steps()
        return {**super().__getstate__(), "gpuopt": (self._given, self._asked, self._beside, self._keys)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if "gpuopt" in state:
            self._given, self._asked, self._beside, self._keys = state.pop("gpuopt")
            self.rule = of_settings(type(self).rule, self._given, state["defaults"])
        super().__setstate__(state)
        for group in self.param_groups:
            for key in self._keys:  # what torch's class did not always have was as it says; ours are as given here
                group.setdefault(key, self.torch_later.get(key, self.defaults[key]))
            group.update(self._algorithm())
            for p in group["params"]:
                found = self.state.get(p)
                if isinstance(found, dict) and isinstance(found.get("step"), (int, float)):
                    found["step"] = step_tensor(found["step"], group)  # as old checkpoints have it
        self._taken, self._replayed = {}, Replayed()
        self._watch()
        self._reset()

    @property
    def backend(self) -> str:
        """The name of the backend that runs the first parameter that one can run."""
        devices = [p.device.type for group in self.param_groups for p in group["params"]]
        return backends.choose(self._asked, next((d for d in devices if d in DEVICES), DEVICES[0]))[0]
