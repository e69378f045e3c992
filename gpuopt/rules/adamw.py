"""AdamW, as in torch.optim.AdamW."""

from gpuopt.rules.language import State, maximum, rule
from gpuopt.rules.parts import adam_moments, adam_moved, debiased


@rule(
    state={
        "m": "exp_avg",
        "v": State("v", "exp_avg_sq", holds="squares"),
        "w": State("w", "max_exp_avg_sq", holds="sizes", when="amsgrad"),
    },
    title="AdamW",
)
def adamw(
    p, g, m, v, w, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=1e-2, amsgrad: bool = False,
    step_size, inv_sqrt_bias2,
):  # fmt: skip
    """AdamW, Loshchilov & Hutter 2019: Adam with the decay taken from the parameter, not from the gradient.

    p <- (1 - lr weight_decay) p;  m <- m + (1 - beta1)(g - m);  v <- beta2 v + (1 - beta2) g^2;  amsgrad: w <- max(w, v);
    p <- p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps).
    """
    p = p * (1 - lr * weight_decay)
    m, v = adam_moments(m, v, g, beta1, beta2)
    d = v
    if amsgrad:
        w = maximum(w, v)
        d = w
    p = adam_moved(p, m, d, eps, step_size, inv_sqrt_bias2)
    return p, m, v, w


@adamw.prepare
def _(step, *, lr, beta1, beta2):
    step_size, inv_sqrt_bias2 = debiased(step, lr, beta1, beta2)
    return dict(step_size=step_size, inv_sqrt_bias2=inv_sqrt_bias2)
