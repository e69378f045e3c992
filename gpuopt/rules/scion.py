"""Scion: the step of largest gain in a ball, of spectral norm for matrices, of the largest element for all else."""

from gpuopt.rules.language import columns, orthogonalize, rows, rule, sign, sqrt
from gpuopt.rules.parts import Coefficients, Steps


@rule(
    state={"b": "momentum_buffer"},
    flatten="convolutions",
    rest="sign",
    ranges={"momentum": "[0, 1]", "scale": "(0, inf)"},
)
def scion(
    p, g, b, *, lr=2**-12, momentum=0.1, scale=50.0, unconstrained: bool = False, ns_coefficients: Coefficients = "keller",
    ns_steps: Steps = None, matrix: bool, share,
):  # fmt: skip
    """Scion, Pethick et al. 2025: conditional gradients, by the norm of each layer.

    b <- (1 - momentum) b + momentum g, the first gradient whole;  p <- (1 - lr) p, unless unconstrained;  p <- p - lr scale d,
    d = sqrt(rows / columns) O(b) of a matrix, sign(b) of a vector or of a group with matrix = False, which has a scale of its own:
    3000 over its columns for an output layer. O is as Muon's.
    """
    b = b + (g - b) * share
    if matrix:
        d = sqrt(rows(p) / columns(p)) * orthogonalize(b, ns_coefficients, ns_steps)
    else:
        d = sign(b)
    if not unconstrained:
        p = p * (1 - lr)
    p = p - lr * scale * d
    return p, b


@scion.prepare
def _(step, *, momentum):
    return dict(share=1 if step == 1 else momentum)
