"""Rprop, as in torch.optim.Rprop."""

from gpuopt.rules.language import State, maximum, minimum, rule, where


@rule(
    state={"q": "prev", "h": State("h", "step_size", holds="sizes", init="lr")},
    title="Rprop",
    tuples={"etas": ("etaminus", "etaplus"), "step_sizes": ("smallest", "largest")},
    ranges={"etaminus": "(0, 1)", "etaplus": "(1, inf)"},
)
def rprop(p, g, q, h, *, lr=1e-2, etaminus=0.5, etaplus=1.2, smallest=1e-6, largest=50):
    """Rprop, Riedmiller & Braun 1993: each element has a step size of its own, and only the sign of its gradient counts.

    s = g q;  h <- h etaplus where s > 0, h etaminus where s < 0, within step_sizes;  g <- 0 where s < 0;
    p <- p - h sign(g);  q <- g. The first h is lr. As in torch, a gradient that is NaN moves nothing.
    """
    s = g * q
    h = minimum(maximum(h * where(s > 0, etaplus, where(s < 0, etaminus, 1)), smallest), largest)
    g = where(s < 0, 0, g)
    p = where(g > 0, p - h, where(g < 0, p + h, p))
    q = g
    return p, q, h
