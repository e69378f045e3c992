"""The groups of hyperparameters as the engine reads them at every step: checked, and turned into floats and flags, only when
something in them changed.

Used by `optim.engine`. Values are compared by identity, so what can change in itself (a schedule, a tensor, a list) is read anew
at every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from types import NoneType
from typing import Any

from gpuopt.compiler.names import OPTION
from gpuopt.errors import InputError
from gpuopt.optim import companions, geometry, hyper
from gpuopt.rules.definition import MATRIX
from gpuopt.rules.language import Rule

PLAIN = {int, float, bool, str, NoneType}
ANOTHER = object()  # than any value
Flags = tuple[tuple[tuple[str, object], ...], ...]


class Groups:
    """dicts: the groups themselves, which belong to the caller and may be replaced."""

    def __init__(self, rule: Rule, dicts: list[dict[str, Any]]) -> None:
        self.rule, self.dicts = rule, dicts
        self.definition = rule.definition()
        self._known = hyper.defaults_of(rule)
        self._values: list[tuple[Any, ...]] = []
        self._environments: list[Mapping[str, Any] | None] = []  # None where it has to be made at every step
        self._on_gpu: list[bool] = []
        self._flags: dict[bool, Flags] = {}

    def check(self) -> None:
        """Raise InputError for a hyperparameter that was set to something it cannot be; looks at what changed only.

        Raises RuleSyntaxError where a name that the rule uses stands for something else by now.
        """
        if self.rule.definition() is not self.definition:
            self._redefine()
        for index, group in enumerate(self.dicts):
            values = tuple(map(group.get, self._known))
            if index < len(self._values) and all(map(is_, values, self._values[index])):
                if self._environments[index] is None:
                    self._check_again(index, values)
                continue
            label = f"param_groups[{index}]"
            before = self._values[index] if index < len(self._values) else (ANOTHER,) * len(values)
            for name, value, old in zip(self._known, values, before, strict=True):
                if value is old and type(value) in PLAIN and name in group:
                    continue
                if name in group:
                    hyper.check_value(name, value, self.rule, self.definition, self._known[name], label)
                elif name in self.rule.hyperparameters or name not in (*hyper.GROUP_OPTIONS, MATRIX, hyper.HEADS):
                    raise InputError(f"{label}: {name} is missing, which {self.rule.title} needs at every step")
            hyper.check_together(group, self.rule, label)
            self._values[index : index + 1] = [values]
            self._environments[index : index + 1] = [self._made(group, 1) if plain(values) else None]
            self._on_gpu[index : index + 1] = [any(map(hyper.on_gpu, values))]
            self._flags.clear()

    def _check_again(self, index: int, values: tuple[Any, ...]) -> None:
        """The same for the same objects: those on the host that can change in themselves."""
        for name, value in zip(self._known, values, strict=True):
            if not plain((value,)) and not callable(value) and not hyper.on_gpu(value):
                hyper.check_value(name, value, self.rule, self.definition, self._known[name], f"param_groups[{index}]")

    def on_gpu(self) -> bool:
        """Whether a value lies on a GPU, where kernels read it: the host would have to wait for it."""
        return True in self._on_gpu[: len(self.dicts)]

    def scheduled(self) -> list[str]:
        """The hyperparameters that are functions of the step count."""
        changing = [group for group, made in zip(self.dicts, self._environments, strict=False) if made is None]
        return [name for group in changing for name in hyper.scheduled(group, self.rule)]

    def environment(self, index: int, step: int) -> Mapping[str, Any]:
        """The hyperparameters of a group, for its step-th step; see `hyper.environment`."""
        made = self._environments[index] if index < len(self._environments) else None
        return self._made(self.dicts[index], step) if made is None else made

    def _made(self, group: Mapping[str, Any], step: int) -> Mapping[str, Any]:
        return hyper.environment(group, step, self.rule)

    def _redefine(self) -> None:
        """The rule or its `prepare` was defined anew: new hyperparameters take their defaults, everything is looked at again."""
        known = hyper.defaults_of(self.rule)
        for group in self.dicts:
            given = {k: v for k, v in known.items() if k not in group}
            hyper.check_group(given, self.rule, f"{self.rule.title}, defined anew")
            group.update(given)
        self.definition, self._known = self.rule.definition(), known
        self._values, self._environments, self._on_gpu = [], [], []
        self._flags.clear()

    def flags(self, scaled: bool) -> Flags:
        """The compile-time constants of every group. Options that cost no pass are switched on for all groups if any
        needs them.

        scaled: whether gradients are multiplied by something whatever the groups say.
        """
        if scaled in self._flags and None not in self._environments:
            return self._flags[scaled]
        shared = hyper.switches(self.dicts, scaled)
        own = [self.rule.flags(g) | geometry.flags(g) | companions.flags(g) for g in self.dicts]
        heads = [{OPTION + hyper.HEADS: g[hyper.HEADS]} if hyper.HEADS in g else {} for g in self.dicts]
        made = tuple(tuple(sorted((flags | of | shared).items())) for flags, of in zip(own, heads, strict=True))
        self._flags[scaled] = made
        return made


def plain(values: tuple[Any, ...]) -> bool:
    """Whether none of these can change while it stays the same object."""
    return all(type(v) in PLAIN or (type(v) is tuple and plain(v)) for v in values)
