"""Matrices in the eigenvectors of what gradients have in common along their rows and along their columns: Vyas et al. 2024, SOAP.

Called by `launch.products` for what rules ask of whole matrices, on arrays of NumPy, CuPy or torch. Bases q and averages ("grams")
are square matrices [matrices, n, n], None where a side has none. Knows no rule, optimizer or kernel.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from gpuopt.linalg import library, library_of

TURNED, ANEW = 1, 2  # what is done to bases, see `learn_bases`


def learn_bases(g: Any, q_left: Any, q_right: Any, gram_left: Any, gram_right: Any, renewal: float, gain: float) -> Any:
    """Renew the bases by the averages as they are, in place, then bring gradients [matrices, rows, columns] into the averages of
    g g' and g' g, with this gain. Gives the gradients, as they are.

    renewal: TURNED by one power iteration, see `renew`; ANEW, all eigenvectors; of any other number the bases stay.
    """
    turn_sides(q_left, q_right, gram_left, gram_right, renewal)
    return learn_sides(g, gram_left, gram_right, gain)


def turn_bases(x: Any, q_left: Any, q_right: Any, gram_left: Any, gram_right: Any, renewal: float) -> Any:
    """Renew the bases as `learn_bases` does, and matrices x [matrices, rows, columns], in place, from the old ones to the new: what
    from_bases makes of them stays. Gives them.
    """
    if renewal in (TURNED, ANEW):
        from_bases(x, q_left, q_right)
        turn_sides(q_left, q_right, gram_left, gram_right, renewal)
        to_bases(x, q_left, q_right)
    return x


def learn_sides(g: Any, gram_left: Any, gram_right: Any, gain: float) -> Any:
    """Bring gradients [matrices, rows, columns] into the averages of g g' and g' g, in place, with this gain. Gives the gradients,
    as they are.
    """
    with np.errstate(all="ignore"):
        for gram, tall in ((gram_left, False), (gram_right, True)):
            if gram is not None:
                library_of(g).follow(gram, g, gain, tall)
    return g


def turn_sides(q_left: Any, q_right: Any, gram_left: Any, gram_right: Any, renewal: float) -> None:
    """Renew the basis of each side by its average, in place; renewal: see `learn_bases`."""
    with np.errstate(all="ignore"):
        for q, gram in ((q_left, gram_left), (q_right, gram_right)):
            if q is not None and renewal == ANEW:
                q[...] = eigenvectors(gram)
            elif q is not None and renewal == TURNED:
                renew(q, gram)


def learn_roots(
    g: Any, q_left: Any, q_right: Any, gram_left: Any, gram_right: Any, renewal: float, gain: float, scale: float, exponent: float,
    eps: float,
) -> Any:  # fmt: skip
    """Bring gradients into the averages, as `learn_bases` does, then, unless renewal is 0, let each q be
    (scale average + eps)^(-exponent). An eigenvalue below 0, of rounding, lifts all, as in Meta's Distributed Shampoo. Gives the
    gradients, as they are.
    """
    learn_sides(g, gram_left, gram_right, gain)
    with np.errstate(all="ignore"):
        for q, gram in ((q_left, gram_left), (q_right, gram_right)):
            if q is not None and renewal:
                values, vectors = eigen(gram)
                values = values * scale
                powers = (values - values[:, :1].clip(None, 0) + eps) ** -exponent
                q[...] = library_of(q).product(vectors * powers[:, None, :], vectors.swapaxes(1, 2))
    return g


def to_bases(x: Any, q_left: Any, q_right: Any) -> Any:
    """q_left' x q_right, in the place of x."""
    return between(x, None if q_left is None else q_left.swapaxes(1, 2), q_right)


def from_bases(x: Any, q_left: Any, q_right: Any) -> Any:
    """q_left x q_right', in the place of x."""
    return between(x, q_left, None if q_right is None else q_right.swapaxes(1, 2))


def between(x: Any, left: Any, right: Any) -> Any:
    """left x right, in the place of x; None leaves out that side."""
    product = library_of(x).product
    with np.errstate(all="ignore"):
        made = x * 1 if left is None else product(left, x)
        if right is None:
            x[...] = made
        else:
            product(made, right, out=x)
    return x


def eigenvectors(gram: Any) -> Any:
    """Those of every matrix of a batch as columns, see `eigen`."""
    return eigen(gram)[1]


def eigen(gram: Any) -> tuple[Any, Any]:
    """The eigenvalues of every matrix of a batch, rising, and its eigenvectors as columns; of one that is not finite, NaN, and of
    one that LAPACK gives up, its diagonal and the unit vectors, which later renewals turn.
    """
    made = import_module(library(gram))
    wrong = (gram * 0).sum((1, 2))[:, None, None]  # 0 or NaN
    finite = made.nan_to_num(gram, nan=0.0, posinf=0.0, neginf=0.0)
    try:
        values, vectors = made.linalg.eigh(finite)
        return values + wrong[:, 0], vectors + wrong
    except getattr(made.linalg, "LinAlgError", np.linalg.LinAlgError):
        if len(gram) > 1:
            each = [eigen(gram[k : k + 1]) for k in range(len(gram))]
            return made.concatenate([a for a, _ in each]), made.concatenate([a for _, a in each])
        found = gram * 0
        found.reshape(1, -1)[:, :: gram.shape[1] + 1] += 1
        return (found * gram).sum(2), found


def renew(q: Any, gram: Any) -> None:
    """One power iteration and QR of every basis, in place, columns by falling eigenvalues as q has them now. Every column stays
    where it is: the authors sort them, and the second moments along with them, which changes no update.
    """
    by = library_of(q)
    for basis, ahead in zip(q, by.product(gram, q), strict=True):
        order = (-(basis * ahead).sum(0)).argsort()
        basis[...] = by.columns(by.orthogonal(by.columns(ahead, order)), order.argsort())
