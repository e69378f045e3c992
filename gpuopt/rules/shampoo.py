"""Shampoo for matrices, with the step length of AdamW, which steps all else."""

from gpuopt.rules.language import State, column_sum, from_bases, learn_roots, row_sum, rule, sqrt, where
from gpuopt.rules.parts import OF_SIDES, adam_moments, adamw_step, debiased, gain_of, is_multiple, sides


@rule(
    state=(State("m", "exp_avg"), State("v", "exp_avg_sq", holds="squares"), *sides("q", "root")),
    flatten="convolutions",
    rest="AdamW",
    ranges={"shampoo_beta": "(-inf, 1)", "exponent": "[0, 1]", "matrix_eps": "(0, inf)", **OF_SIDES},
)
def shampoo(
    p, g, m, v, q_left, q_right, gram_left, gram_right, *, lr=1e-3, weight_decay=0.01, beta1=0.9, beta2=0.999, shampoo_beta=-1.0,
    eps=1e-8, exponent=0.25, matrix_eps=1e-12, precondition_frequency=10, max_precond_dim=8192, matrix: bool, left: bool,
    right: bool, begun, renewal, gain, scale, step_size, inverse,
):  # fmt: skip
    """Shampoo, Gupta, Koren & Singer 2018; Shi et al. 2023: a momentum between inverse roots of averages of g g' and g' g, as in
    Meta's Distributed Shampoo, with the length of Adam's step.

    m, v <- as Adam's;  a = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps);  L <- beta L + (1 - beta) g g';  R likewise;
    u = (L / (1 - beta^t) + matrix_eps)^-exponent m (R / (1 - beta^t) + matrix_eps)^-exponent;
    p <- (1 - lr weight_decay) p;  p <- p - lr u |a| / |u|, Frobenius norms of each matrix. beta is shampoo_beta, or beta2 where
    that is negative. Every precondition_frequency steps the roots are found anew; p <- p - lr a before the first time. A side
    longer than max_precond_dim has none. Vectors, and tensors of a group with matrix = False, are stepped by AdamW.
    """
    if matrix:
        m, v = adam_moments(m, v, g, beta1, beta2)
        _ = learn_roots(g, q_left, q_right, gram_left, gram_right, renewal, gain, scale, exponent, matrix_eps)
        u = from_bases(m, q_left, q_right)
        a = m / (sqrt(v) * inverse + eps)
        k = sqrt(column_sum(row_sum(a * a))) / (sqrt(column_sum(row_sum(u * u))) + 1e-16)
        p = p * (1 - lr * weight_decay) - step_size * where(begun > 0, k * u, a)
    else:
        p, m, v = adamw_step(p, g, m, v, lr, weight_decay, beta1, beta2, eps, step_size, inverse)
    return p, m, v


@shampoo.prepare
def _(step, *, lr, beta1, beta2, shampoo_beta, precondition_frequency):
    begun = 1 if step >= precondition_frequency else 0
    renewal = is_multiple(step, precondition_frequency)
    gain = gain_of(beta2, shampoo_beta)
    step_size, inverse = debiased(step, lr, beta1, beta2)
    scale = 1 / (1 - (1 - gain) ** step)
    return dict(begun=begun, renewal=renewal, gain=gain, scale=scale, step_size=step_size, inverse=inverse)
