"""Signum: the sign of the momentum."""

from gpuopt.rules.language import rule, sign


@rule(state={"m": "momentum_buffer"}, title="Signum", ranges={"momentum": "[0, 1)"})
def signum(p, g, m, *, lr=1e-3, momentum=0.9, weight_decay=0.0):
    """Signum, Bernstein et al. 2018: signSGD with momentum, the decay taken from the parameter.

    p <- (1 - lr weight_decay) p;  m <- momentum m + (1 - momentum) g;  p <- p - lr sign(m).
    """
    p = p * (1 - lr * weight_decay)
    m = momentum * m + (1 - momentum) * g
    p = p - lr * sign(m)
    return p, m
