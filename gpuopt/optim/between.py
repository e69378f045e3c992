"""What is asked of an optimizer between two steps: other parameters to evaluate than to train, and states from other gradients.

A rule says how (`Rule.evaluate`, `resume`, `observe`), in functions that run by the operations of the array library itself, in the
compute type: they are called seldom. Used by both optimizers; knows no rule and no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpuopt import arrays, dlpack
from gpuopt.errors import InputError, entries, entry
from gpuopt.formats.dtypes import STORAGES, numpy_dtype
from gpuopt.optim import coded, companions, contents, trees
from gpuopt.optim.checkpoint import Entry, Outline
from gpuopt.optim.engine import Engine
from gpuopt.optim.full_precision import decoded, encoded, keeps
from gpuopt.optim.hyper import MODE, environment
from gpuopt.optim.parameters import Parameter, as_array, gradient_view
from gpuopt.optim.states import assign
from gpuopt.pairs import COMPLEX, as_pairs, is_complex
from gpuopt.rules.between import EVALUATE, RESUME, Between
from gpuopt.rules.language import Rule
from gpuopt.rules.primitives import compute_dtype


def averages(rule: Rule) -> bool:
    """Whether other parameters are evaluated than are trained."""
    return EVALUATE in rule.between


def check_averages(rule: Rule, back: bool = False) -> None:
    """Raise InputError unless it does, or keeps an average; back: and there is a way back to those that are trained."""
    if not averages(rule) and (back or companions.AVERAGE not in {s.name for s in rule.states}):
        raise InputError(
            f"{rule.title} evaluates the parameters that it trains: expected no averaged_params(), or ema_decay"
        )
    if back and RESUME not in rule.between:
        raise InputError(
            f"{rule.name} has no way back from eval(): expected @{rule.name}.resume in the rule, or averaged_params()"
        )


def of_rule(optimizer: Any, rule: Rule | None, name: str) -> Any:
    """The method that a rule gives its optimizer; AttributeError for another name.

    `eval()` and `train()` where it averages, and for no other: trainers call them wherever an optimizer has them. What it takes
    of other gradients between two steps, as `update_hessian(grads)`.
    """
    if rule is not None and name in ("eval", "train") and averages(rule):
        return getattr(optimizer, f"_{name}")
    if rule is None or name in (EVALUATE, RESUME) or name not in rule.between:
        raise AttributeError(f"{type(optimizer).__name__!r} object has no attribute {name!r}", name=name, obj=optimizer)
    return partial(optimizer._observe, name)


def check_training(rule: Rule, groups: Any) -> None:
    """Raise InputError where a step would train the parameters to evaluate."""
    if not all(group.get(MODE, True) for group in groups):
        raise InputError(
            f"{rule.title} is in the mode of evaluation, with averaged parameters: call opt.train() before a step"
        )


def computed(between: Between, given: Mapping[str, Any], scalars: Mapping[str, Any], cast: Callable[[Any], Any]) -> Any:
    """What the function makes of arrays, which `cast` brings into the compute type."""
    return between.function(
        *(cast(given[name]) for name in between.arrays), **{name: scalars[name] for name in between.hyper}
    )


def write(between: Between, given: Mapping[str, Any], target: Any, scalars: Mapping[str, Any], label: str) -> None:
    """The function's result into an array, of any library but torch's."""
    compute = STORAGES[arrays.describe(target, label).dtype].compute
    pairs = any(is_complex(each) for each in given.values())
    native = {name: _native(each) for name, each in given.items()}
    dtype = numpy_dtype(compute)

    def cast(array: Any) -> Any:
        array = as_pairs(array) if pairs and is_complex(array) else array
        return array.astype(dtype)

    with compute_dtype(np.dtype(compute)), np.errstate(all="ignore"):
        made = computed(between, native, scalars, cast)
    if is_complex(target):
        made = made.reshape(-1).view(COMPLEX[compute]).reshape(made.shape[:-1])
    arrays.kind_of(target, label).assign(target, made)


def _halves_as_bits(array: Any) -> Any:
    """An array on the host, numbers of 16 bits as uint16."""
    found = arrays.on_host(array)
    return found.view(np.uint16) if found.dtype.itemsize == 2 else found


def _native(array: Any) -> Any:
    """An array of NumPy or CuPy: the same memory, or a copy on the host where only an interface is known."""
    if hasattr(array, "__cuda_array_interface__") and not hasattr(array, "__dlpack__"):
        from gpuopt import numba_arrays

        return numba_arrays.to_host(array)
    return dlpack.native(array)


@entries
class BetweenSteps:
    """The part of the optimizer over arrays that is not a step."""

    rule: Rule
    param_groups: list[dict[str, Any]]
    _engine: Engine
    _structures: list[Any]
    _grouped: bool
    _check_groups: Callable[[], None]
    _leaves: Callable[[Any], Sequence[Any]]

    @entry
    def _eval(self) -> None:
        """Bring the parameters to evaluate into the arrays, in place, until `train()`."""
        self._switch(False, EVALUATE)

    @entry
    def _train(self) -> None:
        """Bring the parameters to train back into the arrays, in place, after `eval()`."""
        self._switch(True, RESUME)

    def _switch(self, train: bool, name: str) -> None:
        check_averages(self.rule, back=True)
        self._engine.synchronize()
        self._engine.wait()
        for p in self._engine.parameters:
            if self.param_groups[p.group].get(MODE, True) is not train and p.states:
                self._ask(name, p, p.array)
        for group in self.param_groups:
            group[MODE] = train

    def averaged_params(self) -> Any:
        """The parameters to evaluate as new arrays, in the structure of params, one such for each group where there are several.

        Nothing is changed. Raises InputError where a rule evaluates what it trains.
        """
        check_averages(self.rule)
        self._engine.synchronize()
        self._engine.wait()
        made = []
        for p in self._engine.parameters:
            kind = arrays.kind_of(p.array, p.label)
            copy = kind.clone(p.array)
            if companions.AVERAGE in p.states:
                kind.assign(copy, p.states[companions.AVERAGE])
            elif averages(self.rule) and p.states and self.param_groups[p.group].get(MODE, True):
                self._ask(EVALUATE, p, copy)
            made.append(copy)
        return self._mirrored(made)

    def _full_precision(self) -> Any:
        """See `gpuopt.full_precision`."""
        self._engine.synchronize()
        self._engine.wait()
        return self._mirrored([self._full(p) for p in self._engine.parameters])

    def _checkpoint(self) -> Outline:
        """See `optim.checkpoint`, as for the two below."""
        return contents.outline(self)

    def _entries(self) -> list[Entry]:
        return contents.entries(self)

    def _take(self, groups: Sequence[dict[str, Any]], found: Sequence[Entry]) -> None:
        contents.take(self, groups, found)

    def _full(self, p: Parameter) -> Any:
        """A parameter in full precision, as a new array."""
        kind, full = (
            arrays.kind_of(p.array, p.label),
            decoded(self.rule, p.states, p.array, p.view.dtype, _halves_as_bits),
        )
        array = kind.zeros(p.array, STORAGES[p.view.dtype].compute)
        kind.assign(array, full)
        return array

    def _mirrored(self, leaves: Sequence[Any]) -> Any:
        """Arrays of all parameters in the structure of params."""
        rest = iter(leaves)
        made = [trees.rebuilt(structure, rest) for structure in self._structures]
        return made if self._grouped or len(made) > 1 else made[0]

    def __getattr__(self, name: str) -> Any:
        return of_rule(self, vars(self).get("rule"), name)

    def _observe(self, name: str, grads: Any) -> None:
        """Change a state by gradients, which mirror params as in `step`; None skips a tensor."""
        self._check_groups()
        work = []
        for p, grad in zip(self._engine.parameters, self._leaves(grads), strict=True):
            if grad is not None:
                gradient_view(as_array(grad, p), p, f"gradient of {p.label}")
                work.append((p, as_array(grad, p)))
        self._engine.wait()
        target = self.rule.between[name].arrays[1]
        for p, grad in work:
            flags = self.rule.flags(self.param_groups[p.group])
            shaped = self.rule.shaped(flags, p.view.shape, p.view.pairs, p.view.dtype)
            missing = self._engine.missing_states(p, shaped)
            if missing:
                p.states = p.states | missing
                self._engine.forget()
            kept = self._values(p)[target]
            self._ask(name, p, kept, grad)
            if p.states.get(target, kept) is not kept:  # in host memory
                assign(p.states[target], kept)
            if target not in p.states:  # in codes
                place = self._engine.settings.seed, p.number, p.counter.step
                for plane, codes in coded.encoded(self.rule, target, arrays.on_host(kept), place).items():
                    assign(p.states[plane], codes)

    def _values(self, p: Parameter) -> dict[str, Any]:
        """The states of a parameter where that is, those that are kept in codes or in host memory as new arrays."""
        kind, found = arrays.kind_of(p.array, p.label), dict(p.states)
        for state in self.rule.states if self._engine.settings.on_host and p.view.device != "cpu" else ():
            if state.name in found and state.walked and not state.plane:
                found[state.name] = kind.zeros(p.array, arrays.describe(found[state.name], state.key).dtype)
                kind.assign(found[state.name], p.states[state.name])
        for name, planes in getattr(self.rule, "of_states", {}).items():
            if planes[0].name in p.states:
                found[name] = kind.zeros(p.array, "float32")
                kind.assign(found[name], coded.decoded(self.rule, name, p.states, p.view.shape, arrays.on_host))
        return found

    def _ask(self, name: str, p: Parameter, target: Any, grad: Any = None) -> None:
        """Write what a function of the rule says of a parameter."""
        scalars = environment(self.param_groups[p.group], max(1, p.counter.step), self.rule)
        kind, kept = arrays.kind_of(p.array, p.label), keeps(self.rule, p.view.dtype)
        given = {"p": self._full(p) if kept else p.array, "g": grad, **self._values(p)}
        asked = self.rule.between[name]
        into = kind.zeros(p.array, "float32") if kept and target is p.array else target
        write(asked, {n: given[n] for n in asked.arrays}, into, scalars, p.label)
        if into is not target:
            place = self._engine.settings.seed, p.number, p.counter.step
            for plane, values in encoded(self.rule, arrays.on_host(into), p.view.dtype, place).items():
                assign(p.array if plane == "p" else p.states[plane], values)
