"""Adam-atan2: Adam with the arctangent in the place of the division, so that there is no eps."""

from gpuopt.rules.language import State, maximum, minimum, rule, sqrt, where


@rule(state={"m": "exp_avg", "v": State("v", "exp_avg_sq", holds="squares")}, title="AdamAtan2")
def adamatan2(p, g, m, v, *, lr=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0, a=1.27, b=1.0, inv_bias1, inv_bias2):
    """AdamAtan2, Everett et al. 2024, with the factors of lucidrains' adam-atan2-pytorch.

    p <- (1 - lr weight_decay) p;  m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;
    p <- p - lr a atan2(m / (1 - beta1^t), b sqrt(v / (1 - beta2^t))).
    The arctangent is exactly rounded operations alone, the same everywhere, to a few ulp: of the smaller over the larger, its angle
    halved three times by q <- q / (1 + sqrt(1 + q^2)), and the first nine terms of its series.
    """
    p = p * (1 - lr * weight_decay)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    n = abs(m) * inv_bias1
    d = sqrt(v * (b * b * inv_bias2))
    q = where(n == d, where(d != 0, 1, 0), minimum(n, d) / maximum(n, d))
    q = q / (1 + sqrt(1 + q * q))
    q = q / (1 + sqrt(1 + q * q))
    q = q / (1 + sqrt(1 + q * q))
    x = q * q
    s = 1 / 11 - x * (1 / 13 - x * (1 / 15 - x / 17))
    s = 1 - x * (1 / 3 - x * (1 / 5 - x * (1 / 7 - x * (1 / 9 - x * s))))
    s = 8 * q * s
    s = where(n > d, 1.5707963267948966 - s, s)
    p = p - lr * a * where(m < 0, -s, s)
    return p, m, v


@adamatan2.prepare
def _(step, *, beta1, beta2):
    return dict(inv_bias1=1 / (1 - beta1**step), inv_bias2=1 / (1 - beta2**step))
