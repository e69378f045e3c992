"""Adam, as in torch.optim.Adam."""

from gpuopt.rules.language import State, maximum, rule, where
from gpuopt.rules.parts import adam_moments, adam_moved, debiased


@rule(
    state={
        "m": "exp_avg",
        "v": State("v", "exp_avg_sq", holds="squares"),
        "w": State("w", "max_exp_avg_sq", holds="sizes", when="amsgrad"),
    },
    title="Adam",
)
def adam(
    p, g, m, v, w, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad: bool = False,
    decoupled_weight_decay: bool = False, step_size, inv_sqrt_bias2,
):  # fmt: skip
    """Adam, Kingma & Ba 2015; amsgrad, Reddi, Kale & Kumar 2018.

    g <- g + weight_decay p, decoupled: p <- p (1 - lr weight_decay), Loshchilov & Hutter 2019;
    m <- m + (1 - beta1)(g - m);  v <- beta2 v + (1 - beta2) g^2;  amsgrad: w <- max(w, v);
    p <- p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps).
    """
    if decoupled_weight_decay:
        p = p * (1 - lr * weight_decay)
    else:
        g = where(weight_decay != 0, g + weight_decay * p, g)
    m, v = adam_moments(m, v, g, beta1, beta2)
    d = v
    if amsgrad:
        w = maximum(w, v)
        d = w
    p = adam_moved(p, m, d, eps, step_size, inv_sqrt_bias2)
    return p, m, v, w


@adam.prepare
def _(step, *, lr, beta1, beta2):
    step_size, inv_sqrt_bias2 = debiased(step, lr, beta1, beta2)
    return dict(step_size=step_size, inv_sqrt_bias2=inv_sqrt_bias2)
