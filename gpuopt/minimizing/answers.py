"""What a minimization asks of the caller's functions, by scipy's conventions: loss and gradient, and the callback.

Called by `loop`. Every answer is checked before it is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from gpuopt import arrays, dlpack
from gpuopt.errors import InputError
from gpuopt.messages import abbreviated
from gpuopt.minimizing.points import on_gpu
from gpuopt.optim import trees
from gpuopt.optim.parameters import Parameter, as_array, gradient_view


class Objective:
    """The loss and its gradient. fun(x, *args) returns both where jac is True; else jac(x, *args) returns the gradient."""

    def __init__(self, fun: Any, jac: Any, args: Any) -> None:
        if not callable(fun):
            raise InputError(f"minimize: fun = {abbreviated(fun)}: expected a function of x")
        if jac is not True and not callable(jac):
            raise InputError(
                f"minimize: jac = {abbreviated(jac)}: expected True, fun returning (loss, gradient), or a function that returns "
                "the gradient: every step needs it"
            )
        self.fun, self.jac = fun, jac
        self.args = args if isinstance(args, tuple) else (args,)
        self.calls = 0

    def __call__(self, x: Any, parameters: Sequence[Parameter], structure: Any) -> tuple[Any, list[Any]]:
        """The loss, a number or an array of one element on a GPU, and the gradient of each parameter, None where there is none."""
        answer = self.fun(x, *self.args)
        self.calls += 1
        if self.jac is not True:
            loss, grad = answer, self.jac(x, *self.args)
        elif isinstance(answer, (tuple, list)) and len(answer) == 2:
            loss, grad = answer
        else:
            raise InputError(
                f"minimize: fun returned {described(answer)}: expected (loss, gradient), since jac is True; or give jac, a "
                "function that returns the gradient"
            )
        return self._loss(loss), self._gradients(grad, parameters, structure)

    def _loss(self, loss: Any) -> Any:
        shape = tuple(getattr(loss, "shape", ()))
        try:
            if isinstance(loss, (str, bytes)) or prod(shape) != 1:
                raise TypeError
            return loss.reshape(()) if on_gpu(loss) else arrays.number(loss.reshape(()) if shape else loss)
        except (TypeError, AttributeError):
            raise InputError(
                f"minimize: fun returned {described(loss)} as the loss: expected one real number"
            ) from None

    def _gradients(self, grad: Any, parameters: Sequence[Parameter], structure: Any) -> list[Any]:
        found = []
        for p, leaf in zip(parameters, trees.mirror(structure, grad, "gradient", "x0"), strict=True):
            if leaf is not None:
                leaf = as_array(leaf, p)
                gradient_view(leaf, p, f"gradient of {p.label}")
                leaf = dlpack.native(leaf)
            found.append(leaf)
        return found


def described(answer: Any) -> str:
    """What someone's function returned, in a message."""
    shape = getattr(answer, "shape", None)
    return abbreviated(answer) if shape is None else f"{type(answer).__name__} of shape {tuple(shape)}"


def wrapped(callback: Any) -> Callable[[Any], None] | None:
    """A function of an intermediate result that calls the callback as scipy does: with a keyword `intermediate_result` where
    that is its one parameter, else with x. Raises InputError for what is no function.
    """
    if callback is None:
        return None
    if not callable(callback):
        raise InputError(f"minimize: callback = {abbreviated(callback)}: expected a function or None")
    try:
        names = set(inspect.signature(callback).parameters)
    except (TypeError, ValueError):  # of a function without a signature, such as many of C
        names = set()
    if names == {"intermediate_result"}:
        return lambda result: callback(intermediate_result=result)
    return lambda result: callback(result.x)
