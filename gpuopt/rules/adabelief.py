"""AdaBelief: the variance of the gradient around its average."""

from gpuopt.rules.language import State, rule, sqrt


@rule(state={"m": "exp_avg", "s": State("s", "exp_avg_var", holds="squares")}, title="AdaBelief")
def adabelief(p, g, m, s, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-16, weight_decay=0.0, step_size, inv_sqrt_bias2):
    """AdaBelief, Zhuang et al. 2020, algorithm 2, with the decay taken from the parameter as in the authors' code; without that
    code's rectification.

    p <- (1 - lr weight_decay) p;  m <- beta1 m + (1 - beta1) g;  s <- beta2 s + (1 - beta2)(g - m)^2 + eps;
    p <- p - lr / (1 - beta1^t) m / (sqrt(s) / sqrt(1 - beta2^t) + eps).
    """
    p = p * (1 - lr * weight_decay)
    m = beta1 * m + (1 - beta1) * g
    r = g - m
    s = beta2 * s + (1 - beta2) * r * r + eps
    p = p - step_size * m / (sqrt(s) * inv_sqrt_bias2 + eps)
    return p, m, s


@adabelief.prepare
def _(step, *, lr, beta1, beta2):
    return dict(step_size=lr / (1 - beta1**step), inv_sqrt_bias2=1 / sqrt(1 - beta2**step))
