"""Is a provider's result right? Its parameters after some steps against the same steps in float64.

The float64 side is the rule's own Python function on NumPy arrays, which the tests compare with torch and the authors'
formulas. Called by `measure` before anything is timed: what is fast and wrong must not be reported.
"""

from __future__ import annotations

from functools import cache
from math import prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gpuopt
from gpuopt import rules
from gpuopt.bench import data
from gpuopt.bench.providers import Session
from gpuopt.bench.suites import Case, hyper
from gpuopt.formats.dtypes import numpy_dtype

FACTORS = (-0.5, -0.5, 4.0)  # what gradients are multiplied by between steps: exact, and back at the start after three
WHOLE = 1 << 18  # parameters up to which everything is compared
BLOCK, TENSORS = 4096, 12  # beyond: the head, the middle and the tail of this many tensors
MANY = 1 << 24  # parameters that are too many for temporaries of their size
EXACT, ROUNDED = 1e-4, 0.5  # relative error allowed where states are kept in the compute type, and where they are not
# Of sums in float32: torch's norm of the 38.6 million elements of GPT-2's embedding is 0.27 % too small on a CPU.
SUMS = 5e-3
EPSILON = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

Pick = tuple[int, int, int]  # tensor, start, stop


@cache
def elementwise(optimizer: str) -> bool:
    """Whether a tensor may be compared in parts: halves give the bits of the whole."""
    p = data.values(data.PARAMETERS, 0, 0, 64).astype(np.float64).reshape(8, 8)
    g = data.values(data.GRADIENTS, 0, 0, 64).astype(np.float64).reshape(8, 8)
    whole, halves = p.copy(), [p[:4].copy(), p[4:].copy()]
    for arrays, grads in (([whole], [g]), (halves, [g[:4], g[4:]])):
        opt = gpuopt.create(optimizer, arrays, backend="numpy", **hyper(optimizer))
        opt.step(grads)
    return bool((whole == np.concatenate(halves)).all())


def picks(case: Case) -> list[Pick]:
    """The parts of the tensors that are compared: all of them where one tensor's step depends on every other."""
    sizes = [prod(shape) for shape in case.shapes]
    if sum(sizes) <= WHOLE or rules.get(case.optimizer).joint:
        return [(k, 0, n) for k, n in enumerate(sizes)]
    spread = sorted(set(np.linspace(0, len(sizes) - 1, TENSORS).astype(int).tolist()))
    if not elementwise(case.optimizer):
        smallest = min(range(len(sizes)), key=sizes.__getitem__)
        return [(k, 0, sizes[k]) for k in spread if sizes[k] <= 1 << 22] or [(smallest, 0, sizes[smallest])]
    found: list[Pick] = []
    for k in spread:
        n = sizes[k]
        starts = sorted({0, max(0, n // 2), max(0, n - BLOCK)})
        found += [(k, start, min(n, start + BLOCK)) for start in starts]
    return found


def relative_error(session: Session, case: Case) -> float:
    """Run `case.steps` steps; the norm of the difference to float64 relative to the norm of the change."""
    parts = picks(case)
    before = [session.read(*pick) for pick in parts]
    for k in range(case.steps):
        session.step()
        session.scale(FACTORS[k % len(FACTORS)])
    for k in range(case.steps, -(-case.steps // len(FACTORS)) * len(FACTORS)):
        session.scale(FACTORS[k % len(FACTORS)])
    session.wait()
    after = [session.read(*pick) for pick in parts]
    expected = reference(case, parts, before)
    wrong = [a - e for a, e in zip(after, expected, strict=True)]
    change = [e - b for b, e in zip(before, expected, strict=True)]
    return norm(wrong) / max(norm(change), 1e-300)


def reference(case: Case, parts: list[Pick], before: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """The parameters that float64 arithmetic gives, from the same rounded start and gradients."""
    whole = [prod(case.shapes[k]) == stop - start for k, start, stop in parts]
    shapes = [case.shapes[k] if w else (-1,) for (k, _, _), w in zip(parts, whole, strict=True)]
    params = [b.copy().reshape(shape) for b, shape in zip(before, shapes, strict=True)]
    stored = [data.values(data.GRADIENTS, *pick).astype(numpy_dtype(case.dtype)) for pick in parts]
    grads = [g.astype(np.float64).reshape(shape) for g, shape in zip(stored, shapes, strict=True)]
    # Numba has the bits of NumPy and none of its temporaries, where parameters are many.
    backend = "numpy" if sum(p.size for p in params) <= MANY else "numba"
    opt = gpuopt.create(case.optimizer, params, backend=backend, **hyper(case.optimizer))
    for k in range(case.steps):
        opt.step(grads)
        for g in grads:
            g *= FACTORS[k % len(FACTORS)]
    return [p.reshape(-1) for p in params]


@cache
def change(optimizer: str, steps: int) -> float:
    """How far a parameter moves in so many steps: a root mean square. Not the rate: what that counts differs by optimizer."""
    case, parts = Case("", "", ((64,),), optimizer, "float64", steps=steps), [(0, 0, 64)]
    before = [data.values(data.PARAMETERS, 0, 0, 64).astype(np.float64)]
    moved: NDArray[np.float64] = reference(case, parts, before)[0] - before[0]
    return norm([moved]) / sqrt(moved.size)


def tolerance(case: Case, float32_sums: bool = False) -> float:
    """The relative error allowed: three roundings of a parameter of size 1 a step, that of the state format, and, of a rule with
    sums, that of a provider which makes them in float32.
    """
    exact = case.state_format == "float32"
    rounding = 3 * EPSILON[case.dtype] * sqrt(case.steps) / max(change(case.optimizer, case.steps), 1e-300)
    # Products of matrices magnify what is near 0 a hundredfold, and its rounding with it.
    magnified = rules.get(case.optimizer).definition().multiplies
    sums = SUMS if (float32_sums or magnified) and not elementwise(case.optimizer) else 0.0
    return (EXACT if exact else ROUNDED) + min(rounding, ROUNDED) + sums


def norm(arrays: list[Any]) -> float:
    """The joint 2-norm."""
    return sqrt(sum(float((a * a).sum()) for a in arrays))
