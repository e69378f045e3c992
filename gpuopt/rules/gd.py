"""Gradient descent."""

from gpuopt.rules.language import rule, where


@rule(title="GD")
def gd(p, g, *, lr, weight_decay=0.0):
    """Gradient descent, Cauchy 1847: g <- g + weight_decay p;  p <- p - lr g."""
    g = where(weight_decay != 0, g + weight_decay * p, g)
    p = p - lr * g
    return p
