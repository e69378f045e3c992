"""Yogi: a mean square that grows and shrinks by additions."""

from gpuopt.rules.language import State, rule, sign, sqrt


@rule(
    state={
        "m": State("m", "exp_avg", init="initial_accumulator_value"),
        "v": State("v", "exp_avg_sq", holds="squares", init="initial_accumulator_value"),
    },
    title="Yogi",
)
def yogi(
    p, g, m, v, *, lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-3, weight_decay=0.0, initial_accumulator_value=1e-6,
    step_size, inv_sqrt_bias2,
):  # fmt: skip
    """Yogi, Zaheer et al. 2018, with the bias corrections and first values of the authors' code, the decay taken from the
    parameter.

    p <- (1 - lr weight_decay) p;  m <- beta1 m + (1 - beta1) g;  v <- v - (1 - beta2) sign(v - g^2) g^2;
    p <- p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps).
    """
    p = p * (1 - lr * weight_decay)
    m = beta1 * m + (1 - beta1) * g
    s = g * g
    v = v - (1 - beta2) * sign(v - s) * s
    p = p - step_size * m / (sqrt(v) * inv_sqrt_bias2 + eps)
    return p, m, v


@yogi.prepare
def _(step, *, lr, beta1, beta2):
    return dict(step_size=lr / (1 - beta1**step), inv_sqrt_bias2=1 / sqrt(1 - beta2**step))
