"""AdEMAMix: Adam with a second, slow average of the gradients."""

import math

from gpuopt.rules.language import State, rule, sqrt, where


@rule(
    state={"m": "exp_avg_fast", "n": "exp_avg_slow", "v": State("v", "exp_avg_sq", holds="squares")},
    title="AdEMAMix",
    ranges={"alpha": "[0, inf)", "alpha_warmup": "[0, inf)", "beta3_warmup": "[0, inf)"},
)
def ademamix(
    p, g, m, n, v, *, lr=1e-3, beta1=0.9, beta2=0.999, beta3=0.9999, alpha=2.0, alpha_warmup=0.0, beta3_warmup=0.0,
    eps=1e-8, weight_decay=0.0, inv_bias1, inv_sqrt_bias2, slow, mix,
):  # fmt: skip
    """AdEMAMix, Pagliardini, Ablin & Grangier 2024.

    m <- beta1 m + (1 - beta1) g;  n <- b n + (1 - b) g;  v <- beta2 v + (1 - beta2) g^2;
    p <- p - lr ((m / (1 - beta1^t) + a n) / (sqrt(v) / sqrt(1 - beta2^t) + eps) + weight_decay p).
    In the first alpha_warmup steps a grows from 0 to alpha; in the first beta3_warmup steps b grows from beta1 to beta3, evenly
    in its half-life; by exp and log, which a GPU that decides on steps itself gives to an ulp.
    """
    m = beta1 * m + (1 - beta1) * g
    n = slow * n + (1 - slow) * g
    v = beta2 * v + (1 - beta2) * g * g
    u = (m * inv_bias1 + mix * n) / (sqrt(v) * inv_sqrt_bias2 + eps)
    p = p - lr * where(weight_decay != 0, u + weight_decay * p, u)
    return p, m, n, v


@ademamix.prepare
def _(step, *, beta1, beta2, beta3, alpha, alpha_warmup, beta3_warmup):
    mix = alpha * step / alpha_warmup if step < alpha_warmup else alpha
    done = step / beta3_warmup if step < beta3_warmup else 1.0
    half_life = (1 - done) * (math.log(0.5) / math.log(beta1 + 1e-8) - 1) + done * (
        math.log(0.5) / math.log(beta3 + 1e-8) - 1
    )
    slow = math.exp(math.log(0.5) / (half_life + 1)) if step < beta3_warmup else beta3
    return dict(inv_bias1=1 / (1 - beta1**step), inv_sqrt_bias2=1 / sqrt(1 - beta2**step), slow=slow, mix=mix)
