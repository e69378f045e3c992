"""ASGD, as in torch.optim.ASGD."""

from gpuopt.rules.language import State, rule, where


@rule(
    state={
        "eta": State("eta", "eta", init="lr", shape="scalar"),
        "mu": State("mu", "mu", init=1.0, shape="scalar"),
        "a": State("a", "ax", exact=True),
    },
    title="ASGD",
)
def asgd(
    p, g, eta, mu, a, *, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0, next_eta, next_mu
):  # fmt: skip
    """ASGD, Polyak & Juditsky 1992: SGD with a falling rate, and the average of the parameters from step t0 on, in ax.

    g <- g + weight_decay p;  p <- p - eta lambd p;  p <- p - eta g;  a <- a + mu (p - a);
    eta <- lr / (1 + lambd lr t)^alpha, lr at the first step;  mu <- 1 / max(1, t - t0).
    The rate is a real power, which a GPU that decides on steps itself gives to an ulp.
    """
    g = where(weight_decay != 0, g + weight_decay * p, g)
    p = p * (1 - lambd * eta)
    p = p - eta * g
    a = where(p == a, p, a + (p - a) * mu)
    eta = next_eta
    mu = next_mu
    return p, eta, mu, a


@asgd.prepare
def _(step, *, lr, lambd, alpha, t0):
    return dict(next_eta=lr / (1 + lambd * lr * step) ** alpha, next_mu=1 / max(1, step - t0))
