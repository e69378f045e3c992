"""Gradient descent on accumulated gradients with a decaying rate."""

from gpuopt.rules.language import State, rule


@rule(state={"v": State("v", "velocity")}, title="DGD")
def dgd(p, g, v, *, lr, rate):
    """Accumulated gradient with decaying rate: v <- v + g;  p <- p - a v;  a <- a lr_decay, starting at a = lr.

    The sum v is never damped: it is momentum with coefficient 1.
    """
    v = v + g
    p = p - rate * v
    return p, v


@dgd.prepare
def _(step, *, lr, lr_decay=0.9):
    return dict(rate=lr * lr_decay ** (step - 1))
