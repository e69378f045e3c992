"""Names that a rule cannot give to its arguments, because an optimizer made from it means something else by them already.

Asked by the parser of rules, and read off the places where options are defined: there is no second list of them.
"""

from __future__ import annotations

import inspect
from functools import cache

# What torch's optimizers, schedulers and GradScaler keep in a group, in a state or on an optimizer under these names.
TORCH = (
    *(
        "params",
        "param_names",
        "name",
        "train_mode",
        "closure",
        "foreach",
        "fused",
        "differentiable",
        "capturable",
        "found_inf",
    ),
    *("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"),
)

# Options that a rule may have of its own: then that is the option of this name.
OWN = ("weight_decay", "max_grad_norm")


@cache
def _options() -> frozenset[str]:
    from gpuopt.optim.hyper import GROUP_OPTIONS
    from gpuopt.optim.optimizer import Optimizer
    from gpuopt.rules.options import scalars

    parameters = inspect.signature(Optimizer).parameters.values()
    own = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    return frozenset({*own, *GROUP_OPTIONS, *scalars()} - {"lr", "step", *OWN})


def meaning(name: str) -> str | None:
    """What a name means already, to put behind "is"; None where it is free."""
    if name in _options():
        return "an option of every optimizer"
    if name in TORCH:
        return "what torch calls something of its own in every optimizer or schedule, an option say"
    if name == "betas":
        return "what an optimizer calls all of beta1, beta2 ... together"
    return None
