"""Adan: adaptive Nesterov momentum."""

from gpuopt.rules.language import State, rule, sqrt, where


@rule(
    state={
        "m": "exp_avg",
        "d": "exp_avg_diff",
        "n": State("n", "exp_avg_sq", holds="squares"),
        "q": "previous_grad",
    },
    title="Adan",
)
def adan(
    p, g, m, d, n, q, *, lr=1e-3, beta1=0.98, beta2=0.92, beta3=0.99, eps=1e-8, weight_decay=0.0, no_prox: bool = False,
    first, step_size, diff_size, inv_sqrt_bias3,
):  # fmt: skip
    """Adan, Xie et al. 2022, with betas as the authors' code has them: the share that is kept.

    c = g - q, 0 at the first step;  m <- beta1 m + (1 - beta1) g;  d <- beta2 d + (1 - beta2) c;
    n <- beta3 n + (1 - beta3)(g + beta2 c)^2;  s = sqrt(n) / sqrt(1 - beta3^t) + eps;
    p <- p - lr / (1 - beta1^t) m / s - lr beta2 / (1 - beta2^t) d / s, then p <- p / (1 + lr weight_decay),
    with no_prox before it p <- (1 - lr weight_decay) p;  q <- g.
    """
    c = where(first != 0, 0, g - q)
    m = beta1 * m + (1 - beta1) * g
    d = beta2 * d + (1 - beta2) * c
    u = g + beta2 * c
    n = beta3 * n + (1 - beta3) * u * u
    s = sqrt(n) * inv_sqrt_bias3 + eps
    if no_prox:
        p = p * (1 - lr * weight_decay)
        p = p - step_size * m / s - diff_size * d / s
    else:
        p = (p - step_size * m / s - diff_size * d / s) / (1 + lr * weight_decay)
    q = g
    return p, m, d, n, q


@adan.prepare
def _(step, *, lr, beta1, beta2, beta3):
    return dict(
        first=1 if step == 1 else 0,
        step_size=lr / (1 - beta1**step),
        diff_size=lr * beta2 / (1 - beta2**step),
        inv_sqrt_bias3=1 / sqrt(1 - beta3**step),
    )
