"""Muon^2 for matrices, and AdamW for all else."""

from gpuopt.rules.language import State, orthogonalize, sqrt
from gpuopt.rules.parts import (
    Coefficients,
    Scaling,
    Steps,
    adamw_step,
    matrix_scale,
    momentum_of,
    rest_prepared,
    with_adamw,
)


@with_adamw(State("b", "momentum_buffer", when="matrix"), State("q", "grad_sq", when="matrix", holds="squares"))
def muon2(
    p, g, b, q, m, v, *, lr=0.1, weight_decay=0.0125, momentum=0.95, second_momentum=0.95, nesterov: bool = True,
    ns_coefficients: Coefficients = "keller", ns_steps: Steps = None, adjust_lr_fn: Scaling = None, eps=1e-10,
    adamw_beta1=0.9, adamw_beta2=0.95, adamw_eps=1e-8, matrix: bool,
    step_size, inverse,
):  # fmt: skip
    """Muon^2, arXiv April 2026: Muon on a momentum that is divided by the root of the average of squares, as Adam's.

    u, b as of Muon;  q <- second_momentum q + (1 - second_momentum) g^2;
    p <- (1 - lr weight_decay) p;  p <- p - lr s O(u / (sqrt(q) + eps)), with s as Muon's.
    Preprint 2604.09967.
    Vectors, and tensors of a group with matrix = False, are stepped by AdamW.
    """
    if matrix:
        u, b = momentum_of(g, b, momentum, nesterov=nesterov)
        q = second_momentum * q + (1 - second_momentum) * g * g
        o = orthogonalize(u / (sqrt(q) + eps), ns_coefficients, ns_steps)
        s = matrix_scale(p, adjust_lr_fn=adjust_lr_fn)
        p = p * (1 - lr * weight_decay) - lr * s * o
    else:
        p, m, v = adamw_step(p, g, m, v, lr, weight_decay, adamw_beta1, adamw_beta2, adamw_eps, step_size, inverse)
    return p, b, q, m, v


muon2.prepare(rest_prepared)
