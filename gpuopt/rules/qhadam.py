"""QHAdam: Adam with averages that are mixed with the gradient itself."""

from gpuopt.rules.language import State, rule, sqrt, where


@rule(
    state={"m": "exp_avg", "v": State("v", "exp_avg_sq", holds="squares")},
    title="QHAdam",
    tuples={"nus": ("nu1", "nu2")},
)
def qhadam(
    p, g, m, v, *, lr=1e-3, beta1=0.9, beta2=0.999, nu1=1.0, nu2=1.0, eps=1e-8, weight_decay=0.0,
    decouple_weight_decay: bool = False, new1, new2,
):  # fmt: skip
    """QHAdam, Ma & Yarats 2018, with averages that are free of their zero start, as in the authors' code.

    g <- g + weight_decay p, decoupled: p <- p (1 - lr weight_decay);  m <- m + (1 - beta1) / (1 - beta1^t) (g - m);
    v <- v + (1 - beta2) / (1 - beta2^t) (g^2 - v);
    p <- p - lr (nu1 m + (1 - nu1) g) / (sqrt(nu2 v + (1 - nu2) g^2) + eps).
    """
    if decouple_weight_decay:
        p = p * (1 - lr * weight_decay)
    else:
        g = where(weight_decay != 0, g + weight_decay * p, g)
    m = (1 - new1) * m + new1 * g
    v = (1 - new2) * v + new2 * g * g
    p = p - lr * (nu1 * m + (1 - nu1) * g) / (sqrt(nu2 * v + (1 - nu2) * g * g) + eps)
    return p, m, v


@qhadam.prepare
def _(step, *, beta1, beta2):
    return dict(new1=(1 - beta1) / (1 - beta1**step), new2=(1 - beta2) / (1 - beta2**step))
