"""Kron for matrices, PSGD with Kronecker factors; AdamW for all else."""

import math

from gpuopt.rules.language import State, whiten
from gpuopt.rules.parts import adamw_step, debiased, with_adamw


@with_adamw(
    State("b", "momentum_buffer", when="matrix"),
    State("q_left", "factor_left", when="matrix", shape="left_factor", readonly=True),
    State("q_right", "factor_right", when="matrix", shape="right_factor", readonly=True),
    ranges={
        "precond_lr": "[0, inf)", "precond_init_scale": "(0, inf)", "max_size_triangular": "[0, inf)", "max_prob": "[0, 1]",
        "min_prob": "[0, 1]", "prob_decay": "[0, inf)", "flat_start": "[0, inf)",
    },
)  # fmt: skip
def kron(
    p, g, b, q_left, q_right, m, v, *, lr=1e-3, momentum=0.9, weight_decay=0.0, precond_lr=0.1, precond_init_scale=1.0,
    max_size_triangular=8192, max_prob=1.0, min_prob=0.03, prob_decay=0.001, flat_start=500,
    adamw_beta1=0.9, adamw_beta2=0.95, adamw_eps=1e-8, matrix: bool, count, chance, unbias, step_size, inverse,
):  # fmt: skip
    """Kron, Li 2024: the momentum of a matrix whitened by triangular factors L and R, PSGD; see `gpuopt.whitening`.

    b <- momentum b + (1 - momentum) g;  d = b / (1 - momentum^t);  u = L' L d R' R, of a root mean square of 1.1 at most;
    p <- (1 - lr weight_decay) p;  p <- p - lr u.
    Before u, with the chance min(max_prob, max(min_prob, max_prob exp(-prob_decay (t - 1 - flat_start)))), of normal numbers n:
    a = L (d + e n) R';  w = L'^-1 n R^-1;  L <- L - precond_lr triu(a a' - w w') L / |a a' + w w'|;  R by a' a and w' w; e is the
    mean of |d| times 0.00035. L and R begin as the identity times sqrt(precond_init_scale); of a side longer than
    max_size_triangular there is the diagonal alone. Vectors, and tensors of a group with matrix = False, are stepped by AdamW.
    """
    if matrix:
        b = b + (g - b) * (1 - momentum)
        u = whiten(b * unbias, q_left, q_right, count, chance, precond_lr, precond_init_scale)
        p = p * (1 - lr * weight_decay) - lr * u
    else:
        p, m, v = adamw_step(p, g, m, v, lr, weight_decay, adamw_beta1, adamw_beta2, adamw_eps, step_size, inverse)
    return p, b, m, v


@kron.prepare
def _(step, *, lr, momentum, max_prob, min_prob, prob_decay, flat_start, adamw_beta1, adamw_beta2):
    known = max_prob * math.exp(min(0.0, prob_decay * (flat_start - step + 1)))
    chance = min(max_prob, max(min_prob, known))
    step_size, inverse = debiased(step, lr, adamw_beta1, adamw_beta2)
    unbias = 1 / (1 - momentum**step)
    return dict(count=step, chance=chance, unbias=unbias, step_size=step_size, inverse=inverse)
