"""RMSprop, as in torch.optim.RMSprop."""

from gpuopt.rules.language import State, rule, sqrt, where


@rule(
    state={
        "v": State("v", "square_avg", holds="squares"),
        "b": State("b", "momentum_buffer", when="has_momentum"),
        "a": State("a", "grad_avg", when="centered"),
    },
    title="RMSprop",
    ranges={"alpha": "[0, 1]"},
)
def rmsprop(
    p, g, v, b, a, *, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered: bool = False,
    has_momentum: bool,
):  # fmt: skip
    """RMSprop, Hinton 2012; centered variant, Graves 2013.

    g <- g + weight_decay p;  v <- alpha v + (1 - alpha) g^2;  centered: a <- alpha a + (1 - alpha) g, q = v - a^2;
    d = sqrt(q) + eps;  p <- p - lr g / d, or with momentum b <- momentum b + g / d, p <- p - lr b.
    """
    g = where(weight_decay != 0, g + weight_decay * p, g)
    v = alpha * v + (1 - alpha) * g * g
    q = v
    if centered:
        a = a + (g - a) * (1 - alpha)
        q = v - a * a
    d = sqrt(q) + eps
    if has_momentum:
        b = momentum * b + g / d
        p = p - lr * b
    else:
        p = p - lr * g / d
    return p, v, b, a
