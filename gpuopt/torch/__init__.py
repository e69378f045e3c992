"""Drop-in optimizers for PyTorch: `from gpuopt.torch import AdamW` in place of `from torch.optim import AdamW`.

One class for each rule, made from it: where torch has the optimizer, its signature, defaults, groups and state names are torch's,
read from torch itself; elsewhere the author's. CUDA tensors run on CuPy or Numba CUDA on torch's current stream, CPU tensors on
Numba, zero-copy. Classes are made on first use.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch

from gpuopt import rules
from gpuopt.errors import ArgumentError, entry
from gpuopt.messages import no_attribute, suggestion
from gpuopt.optim.classes import MISSING, bound, given, make
from gpuopt.optim.hyper import GROUP_OPTIONS, own_defaults
from gpuopt.rules.definition import Definition
from gpuopt.rules.language import Rule, checked_rule
from gpuopt.torch import differentiable
from gpuopt.torch import tensors as _tensors  # noqa: F401  registers torch tensors as arrays
from gpuopt.torch.groups import decay_groups
from gpuopt.torch.hooks import with_hooks
from gpuopt.torch.optimizer import TorchOptimizer
from gpuopt.torch.release import release_gradients
from gpuopt.torch.sam import SAM

# Of a group where they are asked for, or where torch's groups have them.
EVERYWHERE: dict[str, Any] = {differentiable.KEY: False} | GROUP_OPTIONS
OPTIONS: dict[str, Any] = {
    "backend": None,
    "state_format": "float32",
    "param_format": "native",
    "max_grad_norm": None,
    "grad_scale": None,
    "skip_nonfinite": False,
    "mask": None,
    "bounds": None,
    "anchor": None,
    "matrices": None,
    "rest": None,
    "seed": 0,
    "state_device": "device",
}

__all__ = [
    "SAM",
    "TorchOptimizer",
    "create",
    "decay_groups",
    "make_optimizer",
    "optimizers",
    "release_gradients",
    *rules.titles(),
]


def _twin(rule: Rule) -> Any:
    """Torch's class of the same optimizer: of gpuopt's own rules only, whatever the title of another may be. None without one, and
    of matrices, which torch multiplies in bfloat16 and steps nothing else.
    """
    own = rules.titled(rule.title) is rule and not rule.definition().multiplies
    return getattr(torch.optim, rule.title, None) if own else None


def _torch_defaults(theirs: Any, required: Iterable[str]) -> dict[str, Any]:
    """The keys and defaults of torch's groups, in torch's order, from torch's own class; empty where it has none."""
    if theirs is None:
        return {}
    return dict(_torch_made(theirs, required).defaults)


def _torch_later(theirs: Any, required: Iterable[str]) -> dict[str, Any]:
    """What torch's class puts into the groups of a checkpoint that is older than these keys; empty where torch has none."""
    if theirs is None:
        return {}
    made = _torch_made(theirs, required)
    made.__setstate__({"state": {}, "param_groups": [{"params": []}]})
    return {k: v for k, v in made.param_groups[0].items() if k != "params"}


def _torch_made(theirs: Any, required: Iterable[str]) -> Any:
    return theirs([torch.nn.Parameter(torch.zeros(0))], **dict.fromkeys(required, 1.0))


@entry
def make_optimizer(rule: Rule) -> type[TorchOptimizer]:
    """A `torch.optim.Optimizer` class for a rule of your own; hyperparameters as arguments, options as keywords.

    Called again it gives the same class, until the rule's `prepare` is defined anew. Raises InputError for what is no rule.
    """
    return _made(checked_rule(rule), rule.definition())


@cache
def _made(rule: Rule, definition: Definition) -> type[TorchOptimizer]:
    own = own_defaults(rule) | {"maximize": GROUP_OPTIONS["maximize"]}
    empty = inspect.Parameter.empty
    required = [k for k, v in own.items() if v is empty]
    twin = _twin(rule)
    theirs = _torch_defaults(twin, required)
    names = _signature_order(twin, own, required)
    fields = {k: theirs.get(k, own.get(k)) for k in dict.fromkeys((*theirs, *names, *own))}

    @entry
    def __init__(self: TorchOptimizer, /, params: Any = MISSING, *args: Any, **keywords: Any) -> None:
        params, values = given(rule.title, params), bound(rule.title, names, args, keywords)
        missing = [n for n in required if n not in values]
        if missing:
            raise ArgumentError(f"{rule.title} needs {missing[0]}")
        options = {k: default if k in own else values.pop(k, default) for k, default in OPTIONS.items()}
        if isinstance(options["anchor"], str):
            values["anchor"], options["anchor"] = options["anchor"], None
        extra = {k: values.pop(k) for k in EVERYWHERE if k in values and k not in fields}
        unknown = set(values) - set(fields) - {"capturable"}
        if unknown:
            name, known = min(unknown), [*dict.fromkeys((*fields, *EVERYWHERE, *OPTIONS))]
            hint = f"it takes params, {', '.join(known)}{suggestion(name, known)}"
            raise ArgumentError(f"{rule.title} has no argument {name!r}; {hint}")
        TorchOptimizer.__init__(self, params, fields | values | extra, options, options.pop("backend"))

    members = {"__init__": __init__, "__doc__": rule.__doc__, "rule": rule, "torch_defaults": theirs}
    members["torch_later"] = _torch_later(twin, required)
    members["twin"] = rule.name if twin else ""
    made = make(rule.title, TorchOptimizer, members, make_optimizer, rule)
    made.step = with_hooks(made, TorchOptimizer.step)  # type: ignore[method-assign]
    made.__signature__ = _signature(names, fields, required)  # type: ignore[attr-defined]
    return made


def _signature_order(theirs: Any, own: dict[str, Any], required: list[str]) -> list[str]:
    """The positional arguments: torch's order where torch has the class, else the rule's, those without a default first."""
    if theirs is None:
        return sorted((k for k in own if k != "maximize"), key=lambda k: k not in required)
    parameters = list(inspect.signature(theirs.__init__).parameters.values())[2:]
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def _signature(names: list[str], fields: dict[str, Any], required: list[str]) -> inspect.Signature:
    kind = inspect.Parameter
    parameters = [kind("params", kind.POSITIONAL_OR_KEYWORD)]
    for name in names:
        default = kind.empty if name in required else fields[name]
        parameters.append(kind(name, kind.POSITIONAL_OR_KEYWORD, default=default))
    rest = {k: v for k, v in fields.items() if k not in names}
    keywords = rest | {k: v for k, v in (EVERYWHERE | OPTIONS).items() if k not in fields}
    return inspect.Signature([*parameters, *(kind(k, kind.KEYWORD_ONLY, default=v) for k, v in keywords.items())])


@cache
def _named(title: str) -> type[TorchOptimizer]:
    made = make_optimizer(rules.get(title))
    made.__module__ = "gpuopt.torch"
    return made


@entry
def create(name: str, params: Any, **options: Any) -> TorchOptimizer:
    """The optimizer of that name, in any case: `create("adamw", model.parameters(), lr=1e-3)`."""
    return _named(rules.get(name).title)(params, **options)


def optimizers() -> list[str]:
    """The names that `create` takes."""
    return list(rules.NAMES)


def __getattr__(name: str) -> Any:
    if name.startswith("_") or rules.titled(name) is None:
        raise AttributeError(no_attribute("gpuopt.torch", name, __all__))
    value = globals()[name] = _named(name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
