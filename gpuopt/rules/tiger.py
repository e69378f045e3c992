"""Tiger: Lion with one beta."""

from gpuopt.rules.language import rule, sign


@rule(state={"m": "exp_avg"}, title="Tiger", ranges={"beta": "[0, 1)"})
def tiger(p, g, m, *, lr=1e-3, beta=0.965, weight_decay=0.01):
    """Tiger, Su 2023 ("Tight-fisted optimizer").

    m <- beta m + (1 - beta) g;  p <- (1 - lr weight_decay) p;  p <- p - lr sign(m).
    """
    m = beta * m + (1 - beta) * g
    p = p * (1 - lr * weight_decay)
    p = p - lr * sign(m)
    return p, m
