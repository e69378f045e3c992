"""NAdam, as in torch.optim.NAdam."""

from gpuopt.rules.language import State, rule, sqrt, where


@rule(
    state={
        "k": State("k", "mu_product", init=1.0, shape="scalar"),
        "m": "exp_avg",
        "v": State("v", "exp_avg_sq", holds="squares"),
    },
    title="NAdam",
    ranges={"momentum_decay": "[0, inf)"},
)
def nadam(
    p, g, k, m, v, *, lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, momentum_decay=4e-3,
    decoupled_weight_decay: bool = False, mu, next_mu, inv_bias2,
):  # fmt: skip
    """NAdam, Dozat 2016: Adam with Nesterov's momentum, which grows from step to step.

    g <- g + weight_decay p, decoupled: p <- p (1 - lr weight_decay);  m <- m + (1 - beta1)(g - m);
    v <- beta2 v + (1 - beta2) g^2;  mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2);  k <- k mu_t;
    p <- p - lr ((1 - mu_t) / (1 - k) g + mu_(t+1) / (1 - k mu_(t+1)) m) / (sqrt(v / (1 - beta2^t)) + eps).
    0.96^x is a real power, which a GPU that decides on steps itself gives to an ulp.
    """
    if decoupled_weight_decay:
        p = p * (1 - lr * weight_decay)
    else:
        g = where(weight_decay != 0, g + weight_decay * p, g)
    m = m + (g - m) * (1 - beta1)
    v = beta2 * v + (1 - beta2) * g * g
    k = k * mu
    d = sqrt(v * inv_bias2) + eps
    p = p - lr * (1 - mu) / (1 - k) * g / d - lr * next_mu / (1 - k * next_mu) * m / d
    return p, k, m, v


@nadam.prepare
def _(step, *, beta1, beta2, momentum_decay):
    return dict(
        mu=beta1 * (1 - 0.5 * 0.96 ** (step * momentum_decay)),
        next_mu=beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * momentum_decay)),
        inv_bias2=1 / (1 - beta2**step),
    )
