"""`gpuopt.scipy_method`: an optimizer as the `method` of `scipy.optimize.minimize`, by scipy's protocol for methods of one's own.

Called by scipy with its arguments as the user gave them: bounds and constraints are not in one form yet. Knows no rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpuopt import rules
from gpuopt.errors import InputError, entries, entry
from gpuopt.messages import abbreviated
from gpuopt.minimizing.loop import minimize
from gpuopt.rules.language import Rule, checked_rule


@entry
def scipy_method(optimizer: str | Rule = "adam", **options: Any) -> ScipyMethod:
    """An optimizer for scipy: `scipy.optimize.minimize(fun, x0, jac=True, method=gpuopt.scipy_method("adam", lr=0.01))`.

    optimizer, options: as in `gpuopt.minimize`. What scipy gives goes before: `bounds` (its Bounds, or a pair for each element),
    `tol`, `callback`, and `options`, whose `disp` is `progress`. jac is True or a function. hess, hessp and constraints are
    refused. Raises InputError for an optimizer that does not exist.
    """
    if isinstance(optimizer, str):
        rules.get(optimizer)
    else:
        checked_rule(optimizer)
    return ScipyMethod(optimizer, options)


@entries
class ScipyMethod:
    """What scipy calls; made by `scipy_method`."""

    def __init__(self, optimizer: str | Rule, options: Mapping[str, Any]) -> None:
        self.optimizer, self.options = optimizer, dict(options)

    def __repr__(self) -> str:
        name = self.optimizer if isinstance(self.optimizer, str) else self.optimizer.title
        return f"scipy_method({', '.join([repr(name), *(f'{k}={v!r}' for k, v in self.options.items())])})"

    @entry
    def __call__(
        self,
        fun: Any,
        x0: Any,
        args: Any = (),
        jac: Any = None,
        hess: Any = None,
        hessp: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Any = None,
        **options: Any,
    ) -> Any:
        """Minimize; see `gpuopt.minimize`. Raises InputError for what a method by gradients cannot do."""
        if np.size(constraints) or constraints not in ((), [], None):
            raise InputError(
                "constraints: gpuopt keeps bounds only: expected none; scipy's 'trust-constr' and 'SLSQP' take them, or add a "
                "penalty to fun"
            )
        for name, given in (("hess", hess), ("hessp", hessp)):
            if given is not None:
                raise InputError(f"{name}: gpuopt uses gradients only: expected None")
        if jac is None:
            raise InputError(
                "jac: gpuopt needs the gradient: expected jac=True, fun returning (loss, gradient), or a function that returns it"
            )
        given = {**self.options, **options}
        if "disp" in given:
            given["progress"] = bool(given.pop("disp"))
        if bounds is not None:
            given["bounds"] = of_elements(bounds, np.asarray(x0))
        return minimize(fun, x0, self.optimizer, args=args, jac=jac, callback=callback, **given)


def of_elements(bounds: Any, x0: Any) -> tuple[Any, Any]:
    """scipy's bounds of a vector, its Bounds or a sequence of pairs (None: none), as two arrays. Raises InputError for others."""
    expected = f"expected scipy.optimize.Bounds, or a pair (lower, upper) for each of {x0.size} elements, None for none"
    try:
        if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
            low, high = bounds.lb, bounds.ub
        else:
            low, high = zip(*((lower, upper) for lower, upper in bounds), strict=True)
        sides = [(low, -np.inf), (high, np.inf)]
        found = [[free if each is None else float(each) for each in np.ravel(side)] for side, free in sides]
        lower, upper = (np.array(np.broadcast_to(side, x0.shape)) for side in found)
    except (TypeError, ValueError):
        raise InputError(f"bounds = {abbreviated(bounds)}: {expected}") from None
    return lower, upper
