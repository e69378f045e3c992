"""Grams: the size of Adam's step in the direction of the gradient."""

from gpuopt.rules.language import State, rule, sign, sqrt


@rule(state={"m": "exp_avg", "v": State("v", "exp_avg_sq", holds="squares")}, title="Grams")
def grams(p, g, m, v, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.0, step_size):
    """Grams, Cao, Li & Song 2024, in the authors' form: eps is not scaled by the bias correction.

    p <- (1 - lr weight_decay) p;  m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;
    p <- p - lr sqrt(1 - beta2^t) / (1 - beta1^t) sign(g) |m| / (sqrt(v) + eps).
    """
    p = p * (1 - lr * weight_decay)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    p = p - step_size * sign(g) * abs(m) / (sqrt(v) + eps)
    return p, m, v


@grams.prepare
def _(step, *, lr, beta1, beta2):
    return dict(step_size=lr * sqrt(1 - beta2**step) / (1 - beta1**step))
