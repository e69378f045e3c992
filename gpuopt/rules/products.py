"""What a rule asks of whole matrices: operations of the language that the library of the arrays makes, between two passes.

Called by rules, where a backend runs them; what they compute is said in `gpuopt.linalg` and beside it. Knows no library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpuopt.errors import InputError
from gpuopt.rules.primitives import asked_of


def orthogonalize(x: Any, coefficients: Any, steps: Any) -> Any:
    """The matrix (the last two axes) with its singular values brought near 1: by products of matrices alone, `steps` of them by the
    coefficients of this name, see `gpuopt.linalg`. Both are compile-time flags. Needs a tensor of two or more axes.
    """
    return _multiplied("orthogonalize", x, coefficients, steps)


def orthogonalize_largest(x: Any, coefficients: Any, steps: Any, fraction: Any, rows: Any, columns: Any) -> Any:
    """The matrix with this fraction of its rows orthogonalized, of its columns where there are fewer of these, those with the
    largest sums of absolute values, and zeros elsewhere. rows, columns: readonly states of these shapes, which become 1 for what
    was chosen and else 0, for the next step.
    """
    return _multiplied("orthogonalize_largest", x, coefficients, steps, fraction, rows, columns)


def learn_bases(g: Any, q_left: Any, q_right: Any, gram_left: Any, gram_right: Any, renewal: Any, gain: Any) -> Any:
    """The matrix as it is. The bases become eigenvectors of averages of g g' and g' g of gradients before this one, all of them
    where `renewal` is 2, nearer ones where it is 1, and stay where it is 0, see `gpuopt.bases`; then it becomes part of the
    averages, with the weight `gain`. Both are states of the shapes "left" and "right", None where a side has none.
    """
    return _multiplied("learn_bases", g, q_left, q_right, gram_left, gram_right, renewal, gain)


def turn_bases(x: Any, q_left: Any, q_right: Any, gram_left: Any, gram_right: Any, renewal: Any) -> Any:
    """A matrix that lies in the bases, as it lies in them once they are renewed by the averages as they are, as in `learn_bases`:
    what it is in the coordinates of the gradients stays. The averages learn nothing.
    """
    return _multiplied("turn_bases", x, q_left, q_right, gram_left, gram_right, renewal)


def learn_sides(g: Any, gram_left: Any, gram_right: Any, gain: Any) -> Any:
    """The matrix as it is, which becomes part of the averages of g g' and g' g, with the weight `gain`. No bases are renewed."""
    return _multiplied("learn_sides", g, gram_left, gram_right, gain)


def learn_roots(
    g: Any, q_left: Any, q_right: Any, gram_left: Any, gram_right: Any, renewal: Any, gain: Any, scale: Any, exponent: Any, eps: Any
) -> Any:  # fmt: skip
    """The matrix as it is, which first becomes part of the averages, as in `learn_bases`. Then, unless `renewal` is 0, each q
    becomes (scale average + eps)^(-exponent), a symmetric matrix; `from_bases` multiplies with both.
    """
    return _multiplied("learn_roots", g, q_left, q_right, gram_left, gram_right, renewal, gain, scale, exponent, eps)


def scale_by_projection(
    g: Any, scale_type: Any, projection: Any, m: Any, v: Any, length: Any, count: Any, gap: Any, beta1: Any, beta2: Any,
    eps: Any, norm_growth: Any,
) -> Any:  # fmt: skip
    """The matrix g with each column (row, where there are no more columns than rows) scaled by what Adam makes of its projection to
    few dimensions, in whose average m and average of squares v this one then has its part, see `gpuopt.projections`. scale_type: a
    compile-time flag, "channel" or "tensor"; count: of the step; gap: after how many steps the projection is drawn anew; length: of
    the last result, which this one exceeds by norm_growth at most. States of the shapes "projection", "projected" and "matrix".
    """
    given = projection, m, v, length, count, gap, beta1, beta2, eps, norm_growth
    return _multiplied("scale_by_projection", g, scale_type, *given)


def whiten(g: Any, left: Any, right: Any, count: Any, chance: Any, precond_lr: Any, init_scale: Any) -> Any:
    """The matrix left' left g right' right, of a root mean square of 1.1 at most, behind a step of both factors towards those that
    whiten matrices such as g, which is made with this chance, see `gpuopt.whitening`. count: of the step; left, right: states of
    the shapes "left_factor" and "right_factor".
    """
    return _multiplied("whiten", g, left, right, count, chance, precond_lr, init_scale)


def to_bases(x: Any, q_left: Any, q_right: Any) -> Any:
    """The matrix q_left' x q_right, in the bases as they are now."""
    return _multiplied("to_bases", x, q_left, q_right)


def from_bases(x: Any, q_left: Any, q_right: Any) -> Any:
    """The matrix q_left x q_right', the way back from `to_bases`."""
    return _multiplied("from_bases", x, q_left, q_right)


def _multiplied(name: str, x: Any, *given: Any) -> Any:
    multiply = getattr(asked_of(name), "product", None)
    if multiply is None:
        raise InputError(f"{name}: matrices are not multiplied here, where derivatives of a step are asked for")
    return multiply(name, x, *given)


ON_MATRICES: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        orthogonalize,
        orthogonalize_largest,
        learn_bases,
        turn_bases,
        learn_sides,
        learn_roots,
        to_bases,
        from_bases,
        scale_by_projection,
        whiten,
    )
}
