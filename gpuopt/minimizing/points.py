"""Points of a minimization: copies in the caller's structure, the bounds, the optimality, and the best point that was seen.

Called by `loop`. Arrays are NumPy's or CuPy's. Knows no optimizer but for the parameters that it steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from typing import Any

import numpy as np

from gpuopt import arrays
from gpuopt.errors import DtypeError
from gpuopt.optim import trees
from gpuopt.optim.parameters import Parameter, is_number
from gpuopt.pairs import as_pairs, is_complex
from gpuopt.rules.options import BESIDE, after, limits
from gpuopt.rules.primitives import ELSEWHERE

LIBRARIES = ("numpy", "cupy")
FEW = 4096  # elements that are looked at first


@dataclass
class Kept:
    """A point with its loss: a number, or an array of no axis on a GPU that nobody has waited for."""

    loss: Any
    arrays: list[Any]
    grads: list[Any]

    @classmethod
    def of(cls, loss: Any, x: Sequence[Any], grads: Sequence[Any]) -> Kept:
        """A copy of a point."""
        return cls(loss, [a.copy() for a in x], [None if g is None else g.copy() for g in grads])


def space(array: Any) -> Any:
    """The module whose functions take the array."""
    return np if isinstance(array, np.ndarray) else import_module("cupy")


def real(array: Any) -> Any:
    """The real numbers of an array, as kernels see them."""
    return as_pairs(array) if is_complex(array) else array


def copied(x0: Any) -> Any:
    """The structure of x0 with new arrays in it, which steps may change; a list of numbers is one array, whole numbers are float64.

    Raises DtypeError for what is no array of NumPy or CuPy.
    """
    structure = trees.settled(x0, "x0")
    leaves = list(trees.flatten(structure, "x0"))
    if leaves and all(is_number(leaf) for _, leaf in leaves) and not isinstance(structure, dict):
        structure = np.asarray(structure)
        leaves = [("x0", structure)]
    made = []
    for label, leaf in leaves:
        kind = arrays.kind_of(leaf, label, "use numpy.asarray(...)")
        if kind.name not in LIBRARIES:
            raise DtypeError(
                f"{label}: an array of {kind.name}: expected one of NumPy or CuPy; gpuopt.torch steps tensors"
            )
        made.append(leaf.astype(np.float64) if leaf.dtype.kind in "iu" else kind.clone(leaf))
    return trees.rebuilt(structure, iter(made))


def nearest(x: Any, beside: Mapping[str, Any], l1: float = 0.0) -> Any:
    """The proximal operator of l1, the bounds and the mask: what the end of a step at rate 1 makes of the point."""
    xp = space(x)
    if xp is not np:
        ELSEWHERE.setdefault(xp.ndarray, (_select, xp.sqrt))
    flags = {flag: name in beside for name, flag in BESIDE.items()} | {"sparse": bool(l1)}
    given = {name: beside.get(name) for name in BESIDE} | flags | {"lr": 1, "l1": l1}
    for fragment in (after, limits):
        names = fragment.tree.positional, fragment.tree.scalars, fragment.tree.flags
        taken = dict.fromkeys(chain(*names))
        x = fragment.function(**taken | {name: value for name, value in given.items() if name in taken} | {"p": x})
    return x


def _select(condition: Any, a: Any, b: Any, dtype: Any) -> Any:
    """Of arrays of CuPy, `where` of the language: literals take the dtype of the array that they meet."""
    xp = space(condition)
    found = next((each.dtype for each in (a, b) if hasattr(each, "dtype")), dtype)
    return xp.where(condition, xp.asarray(a, found), xp.asarray(b, found))


def project(p: Parameter) -> None:
    """Bring a parameter between its bounds and prune it by its mask, as a step does."""
    if p.beside:
        x = real(p.array)
        x[...] = nearest(x, p.beside)


def penalty(parameters: Iterable[Parameter], l1: float) -> Any:
    """l1 times the sum of absolute values; of the real and imaginary parts where there are such. On the device of the arrays."""
    return sum(l1 * abs(real(p.array)).sum(dtype=np.float64) for p in parameters)


def optimality(parameters: Sequence[Parameter], point: Kept, l1: float, gtol: float) -> float:
    """The largest element, in absolute value, of x - prox(x - gradient), prox being that of l1 and the bounds: without these, of
    the gradient; with bounds it is the projected gradient of L-BFGS-B. Real and imaginary parts count as two.

    Where a part of a host array is above gtol already, only that is looked at. Waits for a GPU.
    """
    found = 0.0
    for p, array, grad in zip(parameters, point.arrays, point.grads, strict=True):
        if grad is None or not p.view.numel:
            continue
        every = real(array), real(grad), p.beside
        if p.view.device == "cpu" and p.view.numel > FEW:
            x, g, beside = (*(each.flat[:FEW] for each in every[:2]), {n: a.flat[:FEW] for n, a in p.beside.items()})
            found = _larger(found, _residual(x, g, beside, l1))
        if found <= gtol:
            found = _larger(found, _residual(*every, l1))
        if not found <= gtol:
            break
    return found


def _residual(x: Any, g: Any, beside: Mapping[str, Any], l1: float) -> float:
    """The largest element of |x - prox(x - g)|, NaN where one is; what a mask prunes has none."""
    xp = space(x)
    if l1 or {"lower", "upper"} & beside.keys():
        g = x - nearest(x - g, beside, l1)
    if "mask" in beside:
        g = xp.where(beside["mask"], g, g.dtype.type(0))
    return float(xp.maximum(g.max(), -g.min()))


def _larger(a: float, b: float) -> float:
    """The larger of both; NaN if one is."""
    return b if b > a or math.isnan(b) else a


class Best:
    """The best of the points that were offered, in memory of its own. An interruption at any moment leaves a whole point."""

    def __init__(self) -> None:
        self.kept: Kept | None = None
        self._spare: Kept | None = None
        self._fine: Any = True

    def offer(self, loss: Any, x: Sequence[Any], grads: Sequence[Any]) -> None:
        """Keep a point if none before is better; the first one in any case. Nothing is waited for."""
        kept = self.kept
        if kept is None:
            self.kept = Kept.of(loss, x, grads)
        elif on_gpu(loss):
            xp = space(loss)
            self._fine = self._fine & (loss - loss == 0)  # no loss so far was NaN or infinite
            better = (loss <= kept.loss) & self._fine
            chosen = [xp.where(better, a, b) for a, b in zip(x, kept.arrays, strict=True)]
            slopes = [_where(xp, better, g, h) for g, h in zip(grads, kept.grads, strict=True)]
            self.kept = Kept(xp.where(better, loss, kept.loss), chosen, slopes)
        elif -math.inf < loss <= kept.loss:
            self._swap(loss, x, grads)

    def _swap(self, loss: Any, x: Sequence[Any], grads: Sequence[Any]) -> None:
        """Write into the memory of the best point but one, then exchange the two."""
        spare = self._spare
        if spare is None or [g is None for g in spare.grads] != [g is None for g in grads]:
            spare = Kept.of(loss, x, grads)
        else:
            for target, source in zip([*spare.arrays, *spare.grads], [*x, *grads], strict=True):
                if target is not None:
                    target[...] = source
        self._spare, self.kept = self.kept, Kept(loss, spare.arrays, spare.grads)


def on_gpu(loss: Any) -> bool:
    """Whether a loss has to be waited for."""
    return hasattr(loss, "__cuda_array_interface__")


def _where(xp: Any, better: Any, new: Any, old: Any) -> Any:
    return new if new is None or old is None else xp.where(better, new, old)
