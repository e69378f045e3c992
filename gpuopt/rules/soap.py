"""SOAP for matrices: Adam in the eigenbases of Shampoo; AdamW for all else."""

import math

from gpuopt.rules.language import State, from_bases, learn_sides, rule, sqrt, to_bases, turn_bases, where
from gpuopt.rules.parts import OF_SIDES, adamw_step, bases_turned, debiased, gain_of, sides


@rule(
    state=(State("m", "exp_avg"), State("v", "exp_avg_sq", holds="squares"), *sides("q", "basis")),
    title="SOAP",
    flatten="convolutions",
    rest="AdamW",
    ranges={"shampoo_beta": "(-inf, 1)", **OF_SIDES},
)
def soap(
    p, g, m, v, q_left, q_right, gram_left, gram_right, *, lr=3e-3, weight_decay=0.01, beta1=0.95, beta2=0.95, shampoo_beta=-1.0,
    eps=1e-8, precondition_frequency=10, max_precond_dim=10000, correct_bias: bool = True, matrix: bool, left: bool, right: bool,
    begun, renewal, gain, correction, step_size, inverse,
):  # fmt: skip
    """SOAP, Vyas et al. 2024: Adam in the eigenvectors L, R of averages of g g' and g' g, see `gpuopt.bases`.

    x = L' g R;  m <- beta1 m + (1 - beta1) x;  v <- beta2 v + (1 - beta2) x^2;  u = L (m / (sqrt(v) + eps)) R';
    p <- p - lr a u;  p <- (1 - lr weight_decay) p;  a = sqrt(1 - beta2^t) / (1 - beta1^t), or 1 without correct_bias.
    The first gradient makes the bases and no step, and t counts those behind it. A step knows the averages up to the gradient
    before its own; these have the beta shampoo_beta, or beta2 where that is negative. Every precondition_frequency steps the bases
    are renewed, and m, which lies in them, is turned with them; v is not. A side longer than max_precond_dim has none. Vectors, and
    tensors of a group with matrix = False, are stepped by AdamW from the first gradient on.
    """
    if matrix:
        m = turn_bases(m, q_left, q_right, gram_left, gram_right, renewal)
        x = to_bases(learn_sides(g, gram_left, gram_right, gain), q_left, q_right)
        m = m + (x - m) * (begun * (1 - beta1))
        v = v + (x * x - v) * (begun * (1 - beta2))
        u = from_bases(m / (sqrt(v) + eps), q_left, q_right)
        a = lr
        if correct_bias:
            a = lr * correction
        p = where(begun > 0, (p - a * u) * (1 - lr * weight_decay), p)
    elif correct_bias:
        p, m, v = adamw_step(p, g, m, v, lr, weight_decay, beta1, beta2, eps, step_size, inverse)
    else:
        p, m, v = adamw_step(p, g, m, v, lr, weight_decay, beta1, beta2, eps, lr, 1)
    return p, m, v


@soap.prepare
def _(step, *, lr, beta1, beta2, shampoo_beta, precondition_frequency):
    known = step - 1
    begun = 1 if known > 0 else 0
    count = max(known, 1)
    correction = math.sqrt(1 - beta2**count) / (1 - beta1**count)
    step_size, inverse = debiased(step, lr, beta1, beta2)
    gain = gain_of(beta2, shampoo_beta)
    renewal = bases_turned(known, precondition_frequency)
    return dict(begun=begun, renewal=renewal, gain=gain, correction=correction, step_size=step_size, inverse=inverse)
