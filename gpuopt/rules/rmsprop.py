"""RMSprop, as in torch.optim.RMSprop."""

from gpuopt.rules.language import State, rule, sqrt


@rule(
    state={
        "v": "square_avg",
        "b": State("b", "momentum_buffer", when="has_momentum"),
        "a": State("a", "grad_avg", when="centered"),
    },
    title="RMSprop",
)
def rmsprop(
    p, g, v, b, a, *, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered: bool = False,
    has_momentum: bool,
):  # fmt: skip
    """RMSprop, Hinton 2012; centered variant, Graves 2013.

    g <- g + weight_decay p;  v <- alpha v + (1 - alpha) g^2;  centered: a <- alpha a + (1 - alpha) g, q = v - a^2;
    x = g / (sqrt(q) + eps);  momentum: b <- momentum b + x, p <- p - lr b.
    """
    g = g + weight_decay * p
    v = alpha * v + (1 - alpha) * (g * g)
    q = v
    if centered:
        a = a + (g - a) * (1 - alpha)
        q = v - a * a
    x = g / (sqrt(q) + eps)
    if has_momentum:
        b = momentum * b + x
        x = b
    p = p - lr * x
    return p, v, b, a
