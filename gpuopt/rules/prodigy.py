"""Prodigy: Adam that finds its own rate."""

from gpuopt.rules.language import State, global_sum, maximum, minimum, rule, sqrt, where


@rule(
    state={
        **{"m": "exp_avg", "v": State("v", "exp_avg_sq", holds="squares"), "s": "s"},
        "start": State("start", "p0", init="parameter", readonly=True, exact=True),
        "d": State("d", "d", init="d0", shape="global"),
        "d_max": State("d_max", "d_max", init="d0", shape="global"),
        "numerator": State("numerator", "d_numerator", shape="global"),
    },
    title="Prodigy",
    ranges={"d0": "(0, inf)", "d_coef": "[0, inf)", "growth_rate": "[1, inf]"},
)
def prodigy(
    p, g, m, v, s, start, d, d_max, numerator, *, lr=1.0, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0,
    decouple: bool = True, use_bias_correction: bool = False, safeguard_warmup: bool = False, d0=1e-6, d_coef=1.0,
    growth_rate=float("inf"), beta3, correction, growth,
):  # fmt: skip
    """Prodigy, Mishchenko & Defazio 2024: d, an estimate of how far the solution is, is the rate; all groups share it, and lr.

    a = d lr, with use_bias_correction times sqrt(1 - beta2^t) / (1 - beta1^t);  b = sqrt(beta2);  p0: p before its first step;
    m <- beta1 m + (1 - beta1) d g;  v <- beta2 v + (1 - beta2) d^2 g^2;  s <- b s + d/d0 a g, with safeguard_warmup d/d0 d g;
    n <- b n + sum(d/d0 a g (p0 - p));  e = d_coef n / sum(|s|), both over all tensors;  d <- max(d, e) if it is still d0;
    d_max <- max(d_max, e);  d <- min(d_max, growth_rate d);  p <- (1 - a weight_decay) p, or, without decouple, g + weight_decay p
    in the place of g;  p <- p - a m / (sqrt(v) + d eps). Nothing moves before a gradient is not 0.
    """
    if not decouple:
        g = g + weight_decay * p
    rate = d * lr * correction
    m = beta1 * m + (d * (1 - beta1)) * g
    v = beta2 * v + (d * d * (1 - beta2)) * g * g
    if safeguard_warmup:
        s = beta3 * s + (d / d0 * d) * g
    else:
        s = beta3 * s + (d / d0 * rate) * g
    total = beta3 * numerator + global_sum((d / d0 * rate) * g * (start - p))
    size = global_sum(abs(s))
    e = where(size > 0, d_coef * total / size, d)
    numerator = where(size > 0, total, numerator)
    rate = where(size > 0, rate, 0)
    d = where(d <= d0 * 1.000001, maximum(d, e), d)  # d0, as float32 holds it
    d_max = maximum(d_max, e)
    d = minimum(d_max, d * growth)
    if decouple:
        p = p * (1 - rate * weight_decay)
    p = p - rate * m / (sqrt(v) + d * eps)
    return p, m, v, s, d, d_max, numerator


@prodigy.prepare
def _(step, *, beta1, beta2, use_bias_correction, growth_rate):
    return dict(
        beta3=sqrt(beta2),
        correction=sqrt(1 - beta2**step) / (1 - beta1**step) if use_bias_correction else 1.0,
        growth=min(growth_rate, 1e300),  # finite, so that it has a derivative
    )
