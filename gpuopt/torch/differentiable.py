"""`differentiable=True`: a step that autograd can go through. The rule's own function runs on tensors, by torch's operations.

Called by the optimizer in place of its engine, with states in `self.state` under the same names; parameters and states are
written in place, as torch's own differentiable steps write them. So every rule has it; it is slow, as torch's is. Knows no rule.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpuopt import arrays
from gpuopt.backends.numpy import Unknown, apply
from gpuopt.compiler.host import prepared_values
from gpuopt.compiler.names import OPTION
from gpuopt.errors import InputError, OptionError
from gpuopt.formats.dtypes import STORAGES
from gpuopt.optim import companions, geometry
from gpuopt.optim.decay import names
from gpuopt.optim.hyper import check_group, defaults_of, environment, switches
from gpuopt.optim.settings import Settings
from gpuopt.pairs import filled
from gpuopt.rules import primitives
from gpuopt.rules.declared import PARAMETER
from gpuopt.rules.language import Rule
from gpuopt.rules.options import BESIDE
from gpuopt.rules.primitives import compute_dtype, reductions
from gpuopt.torch import shards
from gpuopt.torch.parameters import shaped
from gpuopt.torch.step_tensors import step_tensor
from gpuopt.torch.tensors import NAMES, TYPES, resolved, zeros

if TYPE_CHECKING:
    from gpuopt.torch.optimizer import TorchOptimizer

KEY = "differentiable"
REMEDY = {
    "state_format": "leave it at float32: a value that is rounded has no derivative",
    "param_format": "leave it at native: a value that is rounded has no derivative",
    "state_device": "leave it at device: torch's operations want states where the parameters are",
    "capturable": "leave it out: the step counts of a differentiable step are on the host",
}


def check(rule: Rule, settings: Settings, group: Mapping[str, Any]) -> None:
    """Raise what keeps a group from being differentiable, if it asks for that: InputError, for `fused` torch's RuntimeError."""
    if not group.get(KEY):
        return
    if group.get("fused"):
        raise OptionError("`fused` does not support `differentiable`")  # as torch
    other = set(settings.formats(rule).values()) - {"float32"} | {of.name for _, of in settings.codes(rule)}
    found = {
        "state_format": next(iter(other), None),
        "param_format": settings.param_format if settings.param_format != "native" else None,
        "state_device": settings.state_device if settings.on_host else None,
        "capturable": settings.capturable or group.get("capturable"),
    }
    if rule.definition().multiplies:
        raise InputError(
            f"differentiable=True cannot go with {rule.title}, which multiplies matrices without derivatives"
        )
    for name, value in found.items():
        if value:
            raise InputError(f"differentiable=True cannot go with {name} = {value!r}: {REMEDY[name]}")


class Live(torch.Tensor):
    """A hyperparameter that requires grad, while `prepare` works on it: to make a number of it would lose its derivative."""

    def _refused(self, *_: Any) -> Any:
        raise InputError(
            "a hyperparameter that requires grad is turned into a number by `prepare`, which would lose its derivative: "
            "expected + - * / ** and gpuopt's own functions there"
        )

    __float__ = __int__ = __index__ = item = tolist = numpy = __array__ = _refused  # type: ignore[assignment]


def where(condition: torch.Tensor, a: Any, b: Any, dtype: Any) -> torch.Tensor:
    """The primitive on tensors; two literals take the dtype."""
    if not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor):
        a = torch.tensor(a, dtype=TYPES[np.dtype(dtype).name], device=condition.device)
    return torch.where(condition, a, b)


primitives.ELSEWHERE[torch.Tensor] = where, torch.sqrt


# What all elements give; of nothing as in `launch.sums.beginning`.
TOTALS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tensor_sum": torch.sum,
    "global_sum": torch.sum,
    "tensor_max": lambda x: x.max() if x.numel() else torch.tensor(-math.inf, dtype=x.dtype, device=x.device),
}


class Sums:
    """The reductions of one parameter in one step, as tensors of no dimension, in float64; `known`: sums over all parameters, in
    the order in which the rule asks for them.
    """

    def __init__(self, rule: Rule, p: torch.Tensor) -> None:
        (rows, columns), axis = rule.matrix(tuple(p.shape)), rule.axis(tuple(p.shape))
        self.axes = {"row_sum": tuple(range(axis, p.ndim)), "column_sum": (axis - 1,)}
        self.sizes = {"numel": float(real(p).numel()), "rows": float(rows), "columns": float(columns)}
        self.known: list[torch.Tensor] = []
        self.asked = 0

    def reduce(self, kind: str, x: Any) -> Any:
        if kind in self.sizes:
            return self.sizes[kind]
        if kind in self.axes:
            return x.sum(self.axes[kind], keepdim=True)
        total = TOTALS[kind](x.double())
        if kind != "global_sum":
            return total
        self.asked += 1
        if self.asked > len(self.known):
            raise Unknown(total, kind)
        return self.known[self.asked - 1].to(x.device)


@dataclass
class Update:
    """What a step writes of one parameter: the states it did not have yet, its step count, and tensors with their new values."""

    missing: dict[str, torch.Tensor]
    count: int | None  # None where the optimizer keeps no step count
    values: list[tuple[torch.Tensor, torch.Tensor]]

    def write(self, states: dict[Any, dict[str, Any]]) -> None:
        target = self.values[0][0]
        if self.missing:
            states[target].update(self.missing)
        for tensor, value in self.values:
            tensor.copy_(value)
        if self.count is not None:
            step = states[target]["step"]
            if isinstance(step, torch.Tensor):
                step.fill_(self.count)
            else:
                states[target]["step"] = self.count


class Step:
    """One step of an optimizer whose groups ask for it."""

    def __init__(self, opt: TorchOptimizer) -> None:
        self.opt, self.rule, self.settings = opt, opt.rule, opt._settings()
        # Of states that all parameters have in common: the first parameter, and the tensor.
        self.common: dict[tuple[str, str, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}
        self.live = bool(opt.defaults.get(KEY))  # as torch: the constructor's argument says whether autograd goes along
        with warnings.catch_warnings():  # of asking for the gradient of what is no leaf, as parameters here are not
            warnings.simplefilter("ignore", UserWarning)
            self.work = [(g, p) for g in opt.param_groups for p in g["params"] if p.grad is not None]

    def run(self) -> None:
        """Raises InputError or DtypeError before anything is written."""
        self._check()
        with torch.set_grad_enabled(self.live):
            multiplier, skip = self._decide()
            if not skip:
                for update in self._updates(multiplier):
                    update.write(self.opt.state)

    def _updates(self, multiplier: Any) -> list[Update]:
        """Those of all parameters. A rule that asks for a sum over all of them is run again when all have said their share."""
        every = [Sums(self.rule, p) for _, p in self.work]
        while True:
            made, asked = list[Update](), list[tuple[Sums, Any]]()
            for (group, p), found in zip(self.work, every, strict=True):
                found.asked = 0
                try:
                    with reductions(found):
                        made.append(self._update(group, p, multiplier))
                except Unknown as unknown:
                    asked.append((found, unknown.total))
            if not asked:
                return made
            total = torch.stack([share.to(asked[0][1].device) for _, share in asked]).sum()
            for found, _ in asked:
                found.known.append(total)

    def _check(self) -> None:
        own = defaults_of(self.rule)
        for index, group in enumerate(self.opt.param_groups):
            label = f"param_groups[{index}]"
            check_group({k: plain(v) for k, v in group.items() if k in own}, self.rule, label)
            check(self.rule, self.settings, group)
        for _, p in self.work:
            if shards.is_part(p):
                raise InputError(
                    "differentiable=True cannot go with DTensors: expected parameters that this process has whole"
                )
            arrays.describe(p.grad, f"gradient of a parameter of shape {tuple(p.shape)}")
            for tensor in (p, *self.opt.state.get(p, {}).values()):
                if self.live and isinstance(tensor, torch.Tensor) and tensor.is_leaf and tensor.requires_grad:
                    raise InputError(
                        f"differentiable=True: a tensor of shape {tuple(tensor.shape)} is a leaf that requires grad, which "
                        "autograd lets nobody write in place: give the optimizer and its state clones, such as p.clone()"
                    )

    def _decide(self) -> tuple[Any, bool]:
        """The factor of every gradient, None for none, and whether to skip."""
        wanted, scale = self.settings, self.settings.grad_scale
        skip = wanted.found_inf is not None and bool(wanted.found_inf)
        inverse = None if scale is None else 1 / torch.as_tensor(scale, dtype=torch.float64).reshape(())
        gradients = [real(p.grad).double() for _, p in self.work]
        if wanted.skip_nonfinite:
            skip = skip or not all(bool(g.isfinite().all()) for g in gradients)
        bound = math.inf if wanted.max_grad_norm is None else wanted.max_grad_norm
        if not math.isfinite(bound) or not gradients:
            return inverse, skip
        norms = [torch.linalg.vector_norm(g).to(gradients[0].device) for g in gradients]
        factor = 1.0 if inverse is None else inverse
        norm = torch.linalg.vector_norm(torch.stack(norms)) * factor
        return primitives.minimum(bound / (norm + 1e-6), 1.0) * factor, skip

    def _update(self, group: Mapping[str, Any], p: torch.Tensor, multiplier: Any) -> Update:
        """What the step will make of one parameter and its states, none of which is written yet."""
        hyper = {k: plain(v) for k, v in group.items() if k in defaults_of(self.rule)}
        live, state = self._live(group), self.opt.state.get(p, {})
        beside = self.opt._beside.of(self.rule, p, f"a parameter of shape {tuple(p.shape)}")
        flags = self._flags(hyper, live, multiplier is not None, beside)
        flags = shaped(self.rule, flags, p)
        active, missing = self.rule.active_states(flags), self._missing(p, state, flags, hyper)
        found = {s.name: missing.get(s.key, state.get(s.key)) for s in active}
        mine = [s for s in active if not s.readonly]
        for s in active:
            if s.shape == "global":  # one for all parameters of a compute type, written with the first of them
                place = s.name, STORAGES[NAMES[p.dtype]].compute, p.device
                first, found[s.name] = self.common.setdefault(place, (p, found[s.name]))
                missing |= {} if state.get(s.key) is found[s.name] else {s.key: found[s.name]}
                mine = [other for other in mine if other is not s or first is p]
        if not p.numel():
            mine = [s for s in mine if s.walked]  # nothing is summed
        tensors = {"p": p} | found
        counted = self.opt._counts_steps
        count = 1 + (int((state | missing)["step"]) if counted else int(bool(active) and not missing))

        compute = STORAGES[NAMES[p.dtype]].compute
        assert p.grad is not None
        x = {name: real(t).to(TYPES[compute], copy=True) for name, t in tensors.items()}
        x |= {s.name: x[s.name].double() for s in active if s.cell}
        before = x | {"g": real(p.grad).to(TYPES[compute])}
        after = before | {OPTION + name: t.to(TYPES[compute]) for name, t in beside.items()}
        scalars = environment(hyper, count, self.rule) | live
        scalars |= {"grad_multiplier": 1.0 if multiplier is None else multiplier, "step": count}
        with compute_dtype(np.dtype(compute), STORAGES[NAMES[p.dtype]].epsilon):
            apply(getattr(self.rule, "base", self.rule), flags, after, scalars, self._prepared(count, scalars, live))
        written = ["p", *(s.name for s in mine)]
        values = [(tensors[name], like(after[name], before[name], tensors[name])) for name in written]
        return Update(missing, count if counted else None, values)

    def _flags(
        self, hyper: Mapping[str, Any], live: Mapping[str, Any], scaled: bool, beside: Collection[str]
    ) -> dict[str, Any]:
        """The rule's flags and the options'; one of a hyperparameter that requires grad is on even where that is 0 now."""
        flags = self.rule.flags(hyper)
        lively = {name: True for name in flags if name.startswith("has_") and name[4:] in live}
        there = {OPTION + flag: name in beside for name, flag in BESIDE.items()}
        return (
            flags | lively | switches([hyper], scaled, live) | geometry.flags(hyper) | companions.flags(hyper) | there
        )

    def _missing(
        self, p: torch.Tensor, state: Mapping[str, Any], flags: Mapping[str, Any], hyper: Mapping[str, Any]
    ) -> dict[str, torch.Tensor]:
        """The states that there are not yet, in torch's order."""
        made = {}
        if self.opt._counts_steps and "step" not in state:
            made["step"] = step_tensor(0, {})
        for s in self.rule.active_states(flags):
            if state.get(s.key) is None:
                made_of = None if s.walked else self.rule.shape_of(s, tuple(p.shape), hyper)
                made[s.key] = zeros(p, STORAGES[NAMES[p.dtype]].compute, made_of)
                if s.init == PARAMETER:
                    made[s.key] = made[s.key] + p  # which has a derivative
                else:
                    made[s.key].fill_(filled(float(self.rule.first(s, hyper)), made[s.key]))
        return made

    def _live(self, group: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The hyperparameters that require grad, by the rule's names."""
        together = self.rule.definition().tuples
        given = {k: v for k, v in group.items() if k in defaults_of(self.rule) and k not in together}
        for name, each in together.items():
            given |= dict(zip(each, group[name], strict=True))
        tensors = {k: v for k, v in given.items() if isinstance(v, torch.Tensor) and v.requires_grad}
        named = names(group)
        return {named.get(k, k): v.reshape(()) for k, v in tensors.items()} if self.live else {}

    def _prepared(self, count: int, scalars: Mapping[str, Any], live: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        definition = self.rule.definition()
        if definition.prepare is None or live.keys().isdisjoint(definition.arguments):
            return prepared_values(definition, count, scalars)
        taken = {n: live[n].as_subclass(Live) if n in live else scalars[n] for n in definition.arguments}
        made = definition.prepare.function(count, **taken)
        return {k: v.as_subclass(torch.Tensor) if isinstance(v, torch.Tensor) else float(v) for k, v in made.items()}


def plain(value: Any) -> Any:
    """A hyperparameter as a number where it is a one-element tensor."""
    if isinstance(value, (tuple, list)):
        return tuple(map(plain, value))
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def real(tensor: torch.Tensor) -> torch.Tensor:
    """Complex numbers as pairs of real ones, which rules work on."""
    return torch.view_as_real(resolved(tensor)) if tensor.is_complex() else tensor


def like(value: Any, computed: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A result of a rule, which may be a number, as values for the tensor."""
    value = torch.as_tensor(value, dtype=computed.dtype, device=computed.device).expand_as(computed)
    return torch.view_as_complex(value.contiguous()) if target.is_complex() else value
