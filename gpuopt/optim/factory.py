"""One class for each rule, made from it: signature, defaults and docstring come from the rule. Used by `gpuopt` itself."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from gpuopt import rules
from gpuopt.errors import entry
from gpuopt.optim.classes import MISSING, bound, given, make
from gpuopt.optim.hyper import defaults_of, own_defaults
from gpuopt.optim.optimizer import Optimizer
from gpuopt.rules.definition import Definition
from gpuopt.rules.language import Rule, checked_rule


@entry
def make_optimizer(rule: Rule) -> type[Optimizer]:
    """An optimizer class for a rule, `MyOpt = gpuopt.make_optimizer(my_rule)`; hyperparameters as keyword arguments.

    Called again it gives the same class, until the rule's `prepare` is defined anew. Raises InputError for what is no rule.
    """
    return _made(checked_rule(rule), rule.definition())


@cache
def _made(rule: Rule, definition: Definition) -> type[Optimizer]:
    fields = defaults_of(rule)

    @entry
    def __init__(self: Optimizer, /, params: Any = MISSING, *args: Any, **options: Any) -> None:
        named = bound(rule.title, list(fields), args, options)
        Optimizer.__init__(self, rule, given(rule.title, params), **(own_options(rule) | named))

    kinds = inspect.Parameter
    parameters = [kinds("params", kinds.POSITIONAL_OR_KEYWORD)]
    parameters += [kinds(n, kinds.POSITIONAL_OR_KEYWORD, default=d) for n, d in fields.items() if d is kinds.empty]
    parameters += [kinds(n, kinds.POSITIONAL_OR_KEYWORD, default=d) for n, d in fields.items() if d is not kinds.empty]
    every = inspect.signature(Optimizer).parameters.values()
    shared = [p for p in every if p.kind is p.KEYWORD_ONLY and p.name not in fields]
    members = {"__init__": __init__, "__doc__": f"{rule.__doc__ or ''}\n\n{Optimizer.__doc__}"}
    made = make(rule.title, Optimizer, members, make_optimizer, rule)
    made.__signature__ = inspect.Signature([*parameters, *shared])  # type: ignore[attr-defined]
    return made


@cache
def named(title: str) -> type[Optimizer]:
    """The class of that title, such as "AdamW"."""
    made = make_optimizer(rules.get(title))
    made.__module__ = "gpuopt"
    return made


@entry
def optimizer(rule: Rule, params: Any, **options: Any) -> Optimizer:
    """An optimizer that runs your own rule: `gpuopt.optimizer(my_rule, params, lr=0.1)`."""
    return Optimizer(rule, params, **(own_options(checked_rule(rule)) | options))


def own_options(rule: Rule) -> dict[str, Any]:
    """The rule's own defaults of hyperparameters that are options of the whole optimizer elsewhere."""
    own, every = own_defaults(rule), inspect.signature(Optimizer).parameters
    return {name: own[name] for name in every if own.get(name, inspect.Parameter.empty) is not inspect.Parameter.empty}


@entry
def create(name: str, params: Any, **options: Any) -> Optimizer:
    """The optimizer of that name (`gpuopt.optimizers()` lists them), e.g. `create("adamw", params, lr=1e-3)`."""
    return named(rules.get(name).title)(params, **options)


def optimizers() -> list[str]:
    """The names that `create` takes."""
    return list(rules.NAMES)
