"""Gradient descent."""

from gpuopt.rules.language import rule


@rule(title="GD")
def gd(p, g, *, lr):
    """Gradient descent, Cauchy 1847: p <- p - lr g."""
    p = p - lr * g
    return p
