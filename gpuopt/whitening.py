"""Gradients whitened by Kronecker factors that are learned by steps on the group of triangular matrices: Li 2024, PSGD.

Called by `launch.products` for what rules ask of whole matrices, on arrays of NumPy, CuPy or torch. A factor is upper triangular,
[matrices, n, n], or the diagonal of one, [matrices, 1, n]. Knows no rule, optimizer or kernel.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np

from gpuopt.draws import Draw
from gpuopt.linalg import largest, library, library_of, numbers

TINY = float(np.finfo(np.float32).tiny)
DAMPING = math.sqrt(np.finfo(np.float32).eps)  # of the noise that keeps factors of low ranks apart, in means of |g|
BALANCED = 0.01  # the chance that an update gives both factors the same size before it
LONGEST = 1.1  # root mean square of a result
LEAF = 32  # rows of a triangular system that are solved one by one


def whiten(
    g: Any, left: Any, right: Any, count: float, chance: float, precond_lr: float, init_scale: float, draw: Draw
) -> Any:
    """left' left g right' right of gradients [matrices, rows, columns], in place, of a root mean square of 1.1 at most, behind an
    update of both factors, which is made with this chance.

    count: of the step, from 1 on. Factors of zeros become the identity times sqrt(init_scale).
    """
    with np.errstate(all="ignore"):
        for q in (left, right):
            begin(q, math.sqrt(init_scale))
        update, balance = draw.uniforms(int(count), 2)
        if update < chance:
            if balance < BALANCED:
                level(left, right)
            learn(g, left, right, precond_lr, draw.normals(int(count), g))
        made = across(left, across(left, g), back=True)
        made = along(along(made, right), right, back=True)
        sizes = (made * made).sum((1, 2)) / (g.shape[1] * g.shape[2])
        g[...] = made * (LONGEST / (sizes**0.5 + 1e-12)).clip(None, 1.0)[:, None, None]
    return g


def begin(q: Any, scale: float) -> None:
    """Put this where there are zeros on the diagonal."""
    diagonal = q.reshape(len(q), -1)[:, :: q.shape[2] + 1 if triangular(q) else 1]
    diagonal[diagonal == 0] = scale


def level(left: Any, right: Any) -> None:
    """Give both factors of every matrix the same largest element, their product the same."""
    sizes = [largest(abs(q).reshape(len(q), -1)) for q in (left, right)]
    ratio = (sizes[1] / sizes[0]) ** 0.5
    left *= ratio[:, None, None]
    right /= ratio[:, None, None]


def learn(g: Any, left: Any, right: Any, precond_lr: float, noise: Any) -> None:
    """A step of both factors by gradients and normal numbers, as many of these."""
    v = g * 0
    v[...] = noise
    damped = g + v * (DAMPING * abs(g).sum((1, 2)) / (g.shape[1] * g.shape[2]))[:, None, None]
    a = along(across(left, damped), right)
    b = divided(left, v)
    b = divided(right, b.swapaxes(1, 2)).swapaxes(1, 2)
    for q, tall in ((left, False), (right, True)):
        if not triangular(q):
            first, second = ((x * x).sum(1 if tall else 2)[:, None, :] for x in (a, b))
            q -= q * (first - second) * precond_lr / largest(first + second)[:, :, None].clip(TINY)
            continue
        multiply, square = library_of(g).product, library_of(g).square
        first, second = square(a, tall=tall), square(b, tall=tall)
        step = import_module(library(q)).triu(first - second) * precond_lr
        q -= multiply(step / spectral(first + second)[:, None, None].clip(TINY), q)


def spectral(x: Any) -> Any:
    """A lower bound of the largest eigenvalue of symmetric matrices, by two products from their longest column: [matrices]."""
    sizes = largest(abs(x).reshape(len(x), -1))[:, None, None]
    x = x / sizes.clip(TINY)
    longest = x[numbers(x, len(x)), :, (x * x).sum(1).argmax(1)][:, :, None]
    multiply = library_of(x).product
    ahead = multiply(x, longest)
    ahead = ahead / ((ahead * ahead).sum((1, 2)) ** 0.5)[:, None, None].clip(TINY)
    ahead = multiply(x, ahead)
    return (ahead * ahead).sum((1, 2)) ** 0.5 * sizes[:, 0, 0]


def triangular(q: Any) -> bool:
    """Whether these are whole factors, and not diagonals of some."""
    return bool(q.shape[1] == q.shape[2])


def across(q: Any, x: Any, back: bool = False) -> Any:
    """q x, or q' x."""
    if not triangular(q):
        return x * q.swapaxes(1, 2)
    return library_of(x).product(q.swapaxes(1, 2) if back else q, x)


def along(x: Any, q: Any, back: bool = False) -> Any:
    """x q', or x q."""
    return across(q, x.swapaxes(1, 2), back).swapaxes(1, 2)


def divided(q: Any, x: Any) -> Any:
    """The inverse of q' times x."""
    return solved(q.swapaxes(1, 2), x) if triangular(q) else x / q.swapaxes(1, 2)


def solved(lower: Any, x: Any) -> Any:
    """The inverse of lower triangular matrices times x: halves are solved one behind the other, so that most of it is products."""
    n, multiply = lower.shape[1], library_of(x).product
    found = x * 1
    if n > LEAF:
        half = n // 2
        found[:, :half] = solved(lower[:, :half, :half], x[:, :half])
        rest = x[:, half:] - multiply(lower[:, half:, :half], found[:, :half])
        found[:, half:] = solved(lower[:, half:, half:], rest)
        return found
    for k in range(n):
        if k:
            found[:, k : k + 1] -= multiply(lower[:, k : k + 1, :k], found[:, :k])
        found[:, k] /= lower[:, k, k][:, None]
    return found
