"""What is asked of a torch optimizer between two steps: parameters to evaluate, and states from other gradients.

The part of `torch.optimizer` that is no step, as `optim.between` is of the optimizer over arrays. By torch's own operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from gpuopt.compiler.names import OPTION
from gpuopt.errors import InputError, entries, entry
from gpuopt.formats.dtypes import STORAGES
from gpuopt.launch.shards import agree
from gpuopt.optim import coded, companions
from gpuopt.optim.between import averages, check_averages, computed, of_rule
from gpuopt.optim.checkpoint import Entry, Outline
from gpuopt.optim.full_precision import decoded, encoded, keeps
from gpuopt.optim.hyper import MODE, defaults_of, environment
from gpuopt.optim.routes import Routing, routing
from gpuopt.optim.settings import Settings
from gpuopt.rules.between import EVALUATE, RESUME
from gpuopt.rules.language import Rule
from gpuopt.rules.primitives import compute_dtype
from gpuopt.tensor_file import Tensor
from gpuopt.torch import contents, shards
from gpuopt.torch.differentiable import like, plain, real
from gpuopt.torch.loading import on_host
from gpuopt.torch.parameters import labelled
from gpuopt.torch.tensors import NAMES, TYPES

HALVES = (torch.float16, torch.bfloat16)


@entries
class BetweenSteps:
    """Used by TorchOptimizer."""

    rule: Rule
    param_groups: list[dict[str, Any]]
    state: Any
    _given: Settings
    _trackers: dict[Any, Any]  # of engines
    _travelling = False  # whether states may be on their way to host memory

    def _arrived(self) -> None:
        """Wait until states that the last steps have changed are in host memory again."""
        if self._travelling:
            self._travelling = False
            for tracker in self._trackers.values():
                tracker.engine.wait()

    @entry
    def _eval(self) -> None:
        """Bring the parameters to evaluate into the tensors, in place, until `train()`."""
        self._switch(False, EVALUATE)

    @entry
    def _train(self) -> None:
        """Bring the parameters to train back into the tensors, in place, after `eval()`."""
        self._switch(True, RESUME)

    @torch.no_grad()
    def _switch(self, train: bool, name: str) -> None:
        check_averages(self.rule, back=True)
        for group in self.param_groups:
            for p in group["params"] if group.get(MODE, True) is not train else ():
                if self.state.get(p):
                    self._become(p, self._asked_of(name, group, p, shards.local(p)))
            group[MODE] = train

    def _become(self, p: torch.Tensor, values: torch.Tensor) -> None:
        """A parameter becomes these values between two steps, and what a format keeps beside it."""
        own, state = shards.local(p), shards.locals_of(self.state[p])
        if not keeps(self.rule, NAMES.get(p.dtype, "")):
            own.copy_(values)
            return
        keys, place = {s.name: s.key for s in self.rule.states}, (self._place(p), shards.part(p, "a parameter"))
        for plane, made in encoded(self.rule, values.float().cpu().numpy(), NAMES[p.dtype], *place).items():
            (own if plane == "p" else state[keys[plane]]).copy_(torch.from_numpy(made))

    def _place(self, p: torch.Tensor) -> tuple[int, int, int]:
        """Seed, number and step count of a parameter, on which its random bits between two steps depend."""
        number = next(n for _, q, _, n in labelled(self.param_groups) if q is p)
        return self._given.seed, number, int(self.state[p].get("step", 0))

    def _full(self, p: torch.Tensor) -> torch.Tensor:
        """What this process has of a parameter in full precision, as a new tensor."""
        state, own = shards.locals_of(self.state.get(p) or {}), shards.local(p)
        of_parameter = getattr(self.rule, "of_parameter", ())
        states = {s.name: state[s.key] for s in of_parameter if s.key in state}
        made = decoded(self.rule, states, own, NAMES.get(p.dtype, "float32"), _halves_as_bits)
        return torch.from_numpy(made).to(own.device)

    def routing(self) -> Routing:
        """Which parameters are stepped as matrices and which as vectors, with rate and decay: prints as a table."""
        every = labelled(self.param_groups)
        return routing(
            self.rule, [(label, tuple(p.shape), p.is_complex(), self.param_groups[k]) for label, p, k, _ in every]
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all states that this process has by now, those of a format beside parameters included; step counts are not."""
        keys = {s.key for s in self.rule.states}
        found = [t for state in self.state.values() for key, t in state.items() if key in keys and t is not None]
        return sum(shards.local(t).nbytes for t in {id(t): t for t in found}.values())

    @property
    def nbytes_on_host(self) -> int:
        """Those of them that `state_device="host"` keeps in host memory."""
        large = {s.key for s in self.rule.states if s.large} if self._given.on_host else set[str]()
        found = [t for state in self.state.values() for key, t in state.items() if key in large and t is not None]
        return sum(shards.local(t).nbytes for t in found)

    @torch.no_grad()
    def _full_precision(self) -> list[torch.Tensor]:
        """See `gpuopt.full_precision`."""
        return [shards.like(self._full(p), p) for group in self.param_groups for p in group["params"]]

    def _checkpoint(self) -> Outline:
        """See `optim.checkpoint`, as for the two below."""
        return contents.outline(self)

    @property
    def _writes(self) -> bool:
        """Whether this process writes the file of `gpuopt.save`: the first of those that have parts of the parameters."""
        first = next(iter(self._meshes()), None)
        return first is None or int(first.mesh.flatten()[0]) == torch.distributed.get_rank()

    def _agree(self, failed: bool, unread: Sequence[Tensor]) -> None:
        """Raises CommunicationError where another process has failed. unread: what this one has not brought together with the
        others yet, which wait for its parts whether it writes, or could not.
        """
        meshes = self._meshes()
        for tensor in unread if meshes else ():
            tensor.read()
        for mesh, p in meshes.items():
            everyone = shards.communicator(mesh, tuple(range(mesh.ndim)))
            agree(everyone, failed, "gpuopt.save", shards.local(p).detach())

    def _meshes(self) -> dict[Any, torch.Tensor]:
        """Of the parameters that are DTensors, each with one of them."""
        every = (p for group in self.param_groups for p in group["params"])
        return {p.device_mesh: p for p in every if shards.is_part(p)}

    def _entries(self) -> list[Entry]:
        return contents.entries(self)

    def _take(self, groups: Sequence[dict[str, Any]], found: Sequence[Entry]) -> None:
        contents.take(self, groups, found)

    @torch.no_grad()
    def averaged_params(self) -> list[torch.Tensor]:
        """The parameters to evaluate as new tensors, in the order of the groups and their parameters; nothing is changed. Of
        DTensors they are DTensors.

        Raises InputError where a rule evaluates what it trains.
        """
        check_averages(self.rule)
        return [shards.like(self._averaged(group, p), p) for group in self.param_groups for p in group["params"]]

    def _averaged(self, group: dict[str, Any], p: torch.Tensor) -> torch.Tensor:
        """What this process has of what is evaluated of a parameter, as a new tensor."""
        state, own = shards.locals_of(self.state.get(p) or {}), shards.local(p)
        if averages(self.rule) and state and group.get(MODE, True):
            return self._asked_of(EVALUATE, group, p, own).to(p.dtype)
        average = state.get(companions.AVERAGE.removeprefix(OPTION)) if not averages(self.rule) else None
        return own.detach().clone() if average is None else average.detach().to(p.dtype, copy=True)

    def __getattr__(self, name: str) -> Any:
        return of_rule(self, type(self).rule, name)

    @torch.no_grad()
    def _observe(self, name: str, grads: Iterable[torch.Tensor | None] | None = None) -> None:
        """Change a state by gradients, one or None for each parameter in order; by those in `.grad` where none are given."""
        members = [(group, p) for group in self.param_groups for p in group["params"]]
        given: Sequence[torch.Tensor | None] = [p.grad for _, p in members] if grads is None else list(grads)
        if len(given) != len(members):
            raise InputError(
                f"{name}: {len(given)} gradients: expected one or None for each of {len(members)} parameters"
            )
        for (_, p), g in zip(members, given, strict=True):
            if g is not None and (g.shape != p.shape or g.layout is not torch.strided):
                raise InputError(
                    f"{name}: a gradient of shape {tuple(g.shape)}: expected a dense one of {tuple(p.shape)}"
                )
        missing = [p for (_, p), g in zip(members, given, strict=True) if g is not None and not self.state.get(p)]
        if missing:
            self._make_states(missing)
        by_name = {s.name: s.key for s in self.rule.states}
        target = self.rule.between[name].arrays[1]
        for (group, p), g in zip(members, given, strict=True):
            if g is not None:
                own, kept = shards.locals_of(self.state[p]), self._values(p)[target]
                kept.copy_(self._asked_of(name, group, p, kept, shards.local(shards.as_placed(g, p, name))))
                there = own.get(by_name[target])
                if there is not None and there is not kept:  # in host memory
                    there.copy_(kept)
                elif there is None:  # in codes
                    place = self._place(p), shards.part(p, "a parameter")
                    made = coded.encoded(self.rule, target, kept.cpu().numpy(), *place)
                    for plane, codes in made.items():
                        own[by_name[plane]].copy_(torch.from_numpy(codes))

    def _values(self, p: torch.Tensor) -> dict[str, Any]:
        """The states that this process has of a parameter by their names in the rule, where it is, those that are kept in codes as
        new tensors.
        """
        state = shards.locals_of(self.state[p])
        found = {s.name: state.get(s.key) for s in self.rule.states}
        found |= {n: t.to(p.device) for n, t in found.items() if t is not None and self._given.on_host}
        for name, planes in getattr(self.rule, "of_states", {}).items():
            if found.get(planes[0].name) is not None:
                made = coded.decoded(self.rule, name, found, tuple(shards.local(p).shape), on_host)
                found[name] = torch.from_numpy(np.ascontiguousarray(made)).to(p.device)
        return found

    def _make_states(self, params: list[torch.Tensor]) -> None:
        raise NotImplementedError

    def _asked_of(self, name: str, group: Any, p: torch.Tensor, target: torch.Tensor, g: Any = None) -> torch.Tensor:
        """What a function of the rule says of a parameter, in the compute type."""
        hyper = {k: plain(v) for k, v in group.items() if k in defaults_of(self.rule)}
        state = self.state[p]
        scalars = environment(hyper, max(1, int(state.get("step", 1))), self.rule)
        shown = self._full(p) if keeps(self.rule, NAMES.get(p.dtype, "")) else shards.local(p)
        given = {"p": shown, "g": g, **self._values(p)}
        compute = STORAGES[NAMES[p.dtype]].compute
        with compute_dtype(np.dtype(compute)):
            made = computed(self.rule.between[name], given, scalars, lambda t: real(t.detach()).to(TYPES[compute]))
        return like(made, real(target.detach()).to(TYPES[compute]), target)


def _halves_as_bits(tensor: torch.Tensor) -> Any:
    """A tensor on the host, numbers of 16 bits as uint16."""
    found = tensor.detach().resolve_conj().resolve_neg().cpu()
    return found.view(torch.uint16).numpy() if found.dtype in HALVES else found.numpy()
