"""Gradient descent on accumulated gradients with a decaying rate."""

from gpuopt.rules.language import State, rule, where


@rule(state={"v": State("v", "velocity")}, title="DGD")
def dgd(p, g, v, *, lr, lr_decay=0.9, weight_decay=0.0, rate):
    """Accumulated gradient, no paper: with a decaying rate, starting at a = lr.

    g <- g + weight_decay p;  v <- v + g;  p <- p - a v;  a <- a lr_decay.
    The sum v is never damped: it is momentum with coefficient 1.
    """
    g = where(weight_decay != 0, g + weight_decay * p, g)
    v = v + g
    p = p - rate * v
    return p, v


@dgd.prepare
def _(step, *, lr, lr_decay):
    return dict(rate=lr * lr_decay ** (step - 1))
