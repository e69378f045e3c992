"""Sign SGD: every parameter moves by the rate."""

from gpuopt.rules.language import rule, sign


@rule(title="SignSGD")
def signsgd(p, g, *, lr=1e-3, weight_decay=0.0):
    """signSGD, Bernstein et al. 2018, with the decay taken from the parameter.

    p <- (1 - lr weight_decay) p;  p <- p - lr sign(g).
    """
    p = p * (1 - lr * weight_decay)
    p = p - lr * sign(g)
    return p
