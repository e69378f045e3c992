"""Lion: the sign of an interpolated momentum."""

from gpuopt.rules.language import rule, sign


@rule(state={"m": "exp_avg"}, title="Lion")
def lion(p, g, m, *, lr=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0):
    """Lion, Chen et al. 2023 ("Symbolic discovery of optimization algorithms").

    p <- (1 - lr weight_decay) p;  p <- p - lr sign(beta1 m + (1 - beta1) g);  m <- beta2 m + (1 - beta2) g.
    """
    p = p * (1 - lr * weight_decay)
    p = p - lr * sign(beta1 * m + (1 - beta1) * g)
    m = beta2 * m + (1 - beta2) * g
    return p, m
