"""StableAdamW: AdamW that steps less far where a second moment lags behind its gradients."""

from gpuopt.rules.language import State, maximum, numel, rule, sqrt, tensor_sum


@rule(state={"m": "exp_avg", "v": State("v", "exp_avg_sq", holds="squares")}, title="StableAdamW")
def stableadamw(
    p, g, m, v, *, lr, beta1=0.9, beta2=0.99, weight_decay=1e-2, eps=1e-6, keep1, keep2,
):  # fmt: skip
    """StableAdamW, Wortsman et al. 2023, with the names and defaults of optimi: AdamW with the update clipping of Adafactor.

    b = beta (1 - beta^(t-1)) / (1 - beta^t) for both betas, whose averages need no correction;
    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  r = sqrt(mean(g^2 / max(v, eps^2))), a = lr / max(1, r);
    p <- (1 - a weight_decay) p;  p <- p - a m / (sqrt(v) + eps).
    """
    m = m + (g - m) * (1 - keep1)
    v = keep2 * v + (1 - keep2) * g * g
    rms = sqrt(tensor_sum(g * g / maximum(v, eps * eps)) / numel(g))
    rate = lr / maximum(1, rms)
    p = p * (1 - rate * weight_decay)
    p = p - rate * m / (sqrt(v) + eps)
    return p, m, v


@stableadamw.prepare
def _(step, *, beta1, beta2):
    return dict(
        keep1=(beta1**step - beta1) / (beta1**step - 1),
        keep2=(beta2**step - beta2) / (beta2**step - 1),
    )
