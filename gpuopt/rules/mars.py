"""MARS: AdamW or Lion on gradients whose variance is reduced by those of the step before."""

from typing import Literal

from gpuopt.rules.language import State, maximum, rule, sign, sqrt, tensor_sum


@rule(
    state={
        "m": "exp_avg",
        "v": State("v", "exp_avg_sq", holds="squares", when="mars_type == 'mars-adamw'"),
        "w": State("w", "max_exp_avg_sq", holds="sizes", when="amsgrad"),
        "q": "last_grad",
    },
    title="MARS",
)
def mars(
    p, g, m, v, w, q, *, lr=3e-3, beta1=0.95, beta2=0.99, eps=1e-8, weight_decay=0.0, amsgrad: bool = False, gamma=0.025,
    mars_type: Literal["mars-adamw", "mars-lion"] = "mars-adamw", mix, inv_bias1, inv_sqrt_bias2,
):  # fmt: skip
    """MARS, Yuan et al. 2024, on every tensor; the authors step what is no matrix with AdamW by default.

    c = g + gamma beta1 / (1 - beta1) (g - q), q the gradient of the step before, 0 at first;  c <- c / max(1, |c|);
    m <- beta1 m + (1 - beta1) c;  mars-adamw: v <- beta2 v + (1 - beta2) c^2, amsgrad: w <- max(w, v),
    u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps), mars-lion: u = sign(m);  p <- p - lr (u + weight_decay p).
    """
    c = g + mix * (g - q)
    c = c / maximum(1, sqrt(tensor_sum(c * c)))
    m = beta1 * m + (1 - beta1) * c
    if mars_type == "mars-adamw":
        v = beta2 * v + (1 - beta2) * c * c
        d = v
        if amsgrad:
            w = maximum(w, v)
            d = w
        u = m * inv_bias1 / (sqrt(d) * inv_sqrt_bias2 + eps)
    else:
        u = sign(m)
    p = p - lr * (u + weight_decay * p)
    q = g
    return p, m, v, w, q


@mars.prepare
def _(step, *, beta1, beta2, gamma):
    return dict(
        mix=gamma * (beta1 / (1 - beta1)), inv_bias1=1 / (1 - beta1**step), inv_sqrt_bias2=1 / sqrt(1 - beta2**step)
    )


@mars.require
def _(*, amsgrad, mars_type):
    return "amsgrad with mars_type 'mars-lion': expected one of them" if amsgrad and mars_type == "mars-lion" else None
