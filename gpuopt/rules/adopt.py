"""ADOPT: Adam that divides by the mean square of the steps before."""

from gpuopt.rules.language import State, maximum, minimum, rule, sqrt, where


@rule(state={"m": "exp_avg", "v": State("v", "exp_avg_sq", holds="squares")}, title="ADOPT")
def adopt(
    p, g, m, v, *, lr=1e-3, beta1=0.9, beta2=0.9999, eps=1e-6, weight_decay=0.0, decouple: bool = False, first, bound
):
    """ADOPT, Taniguchi et al. 2024, with the authors' clipping. The first step only sets v <- g^2.

    g <- g + weight_decay p, with decouple: p <- (1 - lr weight_decay) p;  u = g / max(sqrt(v), eps), clipped to +-(t - 1)^(1/4);
    m <- m + (1 - beta1)(u - m);  p <- p - lr m;  v <- beta2 v + (1 - beta2) g^2.
    """
    if decouple:
        p = where(first != 0, p, p * (1 - lr * weight_decay))
    else:
        g = where(weight_decay != 0, g + weight_decay * p, g)
    u = minimum(maximum(g / maximum(sqrt(v), eps), -bound), bound)
    m = where(first != 0, m, m + (u - m) * (1 - beta1))
    p = where(first != 0, p, p - lr * m)
    v = where(first != 0, g * g, beta2 * v + (1 - beta2) * g * g)
    return p, m, v


@adopt.prepare
def _(step):
    return dict(first=1 if step == 1 else 0, bound=sqrt(sqrt(step - 1)))
