"""LaProp: momentum of normalised gradients."""

from gpuopt.rules.language import State, rule, sqrt


@rule(state={"m": "exp_avg", "v": State("v", "exp_avg_sq", holds="squares")}, title="LaProp")
def laprop(p, g, m, v, *, lr=4e-4, beta1=0.9, beta2=0.999, eps=1e-15, weight_decay=0.0, step_size, inv_sqrt_bias2):
    """LaProp, Ziyin, Wang & Ueda 2020, the decay taken from the parameter.

    p <- (1 - lr weight_decay) p;  v <- beta2 v + (1 - beta2) g^2;
    m <- beta1 m + (1 - beta1) g / (sqrt(v) / sqrt(1 - beta2^t) + eps);  p <- p - lr / (1 - beta1^t) m.
    """
    p = p * (1 - lr * weight_decay)
    v = beta2 * v + (1 - beta2) * g * g
    m = beta1 * m + (1 - beta1) * g / (sqrt(v) * inv_sqrt_bias2 + eps)
    p = p - step_size * m
    return p, m, v


@laprop.prepare
def _(step, *, lr, beta1, beta2):
    return dict(step_size=lr / (1 - beta1**step), inv_sqrt_bias2=1 / sqrt(1 - beta2**step))
