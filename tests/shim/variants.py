"""Every kernel that a rule has: the hyperparameters that switch each combination of its compile-time flags.

Read by the tests that must see every kernel (bits, sanitizers, cubins). A new rule needs no line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any

from gpuopt import rules
from gpuopt.optim.decay import MODES
from gpuopt.optim.hyper import defaults_of, own_defaults
from gpuopt.rules.definition import MATRIX
from gpuopt.source import program

# Values at which no term of a rule vanishes; flags `has_x` need x here.
LIVELY = {"lr": 0.01, "weight_decay": 0.1, "dampening": 0.1, "lr_decay": 0.9, "eps": 1e-6, "momentum": 0.9}
LIVELY |= {"max_grad_norm": 1.0, "precondition_frequency": 2, "max_precond_dim": 16, "max_size_triangular": 16}
MOST = 8  # kernels for the flags of one rule, beyond which not every combination is tried
EVERYTHING = {"maximize": True, "clip_value": 0.75, "l1": 0.125}
# Groups with a decay of every mode, and one with none: one launch with all of the fragments.
DECAYS = ({}, *({"weight_decay": 0.1, "weight_decay_mode": mode, "lr_max": 0.02} for mode in MODES))


def lively(name: str) -> dict[str, Any]:
    """Hyperparameters of a rule for which every term counts."""
    known = rules.get(name).hyperparameters
    return {k: v for k, v in LIVELY.items() if k in own_defaults(rules.get(name)) and k in known}


@cache
def _variants(name: str) -> tuple[Mapping[str, Any], ...]:
    rule = rules.get(name)
    derived = MATRIX, *rule.definition().sides
    flags = {flag: choices for flag, choices in rule.tree.flags.items() if flag not in derived}
    found: dict[object, Mapping[str, Any]] = {}
    for values in chosen(list(flags.values())):
        hyper = lively(name)
        for flag, value in zip(flags, values, strict=True):
            if flag.startswith("has_"):
                hyper[flag[4:]] = LIVELY[flag[4:]] if value else 0.0
            else:
                hyper[flag] = value
        allowed = possible(name, hyper)
        if allowed is not None:
            made = program(name, **allowed)
            found.setdefault((made.passes, made.row), allowed)
    return tuple(found.values())


def chosen(choices: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Every combination of flags; of more than MOST the first choices, the last ones, and each other choice among both."""
    every = list(product(*choices))
    if len(every) <= MOST:
        return every
    ends = [tuple(found[k] for found in choices) for k in (0, -1)]
    single = [(*end[:k], one, *end[k + 1 :]) for end in ends for k, found in enumerate(choices) for one in found]
    return list(dict.fromkeys([*ends, *single]))[: 2 * MOST]


def possible(name: str, hyper: dict[str, Any]) -> dict[str, Any] | None:
    """The same with one lively value fewer where the rule refuses them together; None where that does not help."""
    rule = rules.get(name)
    fewer = [{k: v for k, v in hyper.items() if k != left} for left in lively(name) if left in hyper]
    return next((h for h in (hyper, *fewer) if not rule.complaint(defaults_of(rule) | h)), None)


def variants(name: str) -> list[dict[str, Any]]:
    """One set of hyperparameters for each distinct kernel of a rule."""
    return [dict(hyper) for hyper in _variants(name)]


def richest(name: str) -> dict[str, Any]:
    """The variant with most states, and the longest of those."""

    def length(hyper: Mapping[str, Any]) -> tuple[int, int]:
        made = program(name, **hyper)
        return len(made.roles), len(made.update.body)

    return max(variants(name), key=length)


def label(hyper: Mapping[str, Any]) -> str:
    """What distinguishes a variant, for the name of a test."""
    return "-".join(k for k, v in hyper.items() if v is True or (k == "momentum" and v)) or "plain"


VARIANTS = [(name, hyper) for name in rules.NAMES for hyper in variants(name)]
VARIANT_LABELS = [f"{name}-{label(hyper)}" for name, hyper in VARIANTS]
