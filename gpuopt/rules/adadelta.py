"""Adadelta, as in torch.optim.Adadelta."""

from gpuopt.rules.language import State, rule, sqrt, where


@rule(
    state={
        "v": State("v", "square_avg", holds="squares"),
        "u": State("u", "acc_delta", holds="squares"),
    },
    title="Adadelta",
    ranges={"rho": "[0, 1]"},
)
def adadelta(p, g, v, u, *, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0):
    """Adadelta, Zeiler 2012: steps in units of the steps before.

    g <- g + weight_decay p;  v <- rho v + (1 - rho) g^2;  d = sqrt(u + eps) / sqrt(v + eps) g;
    u <- rho u + (1 - rho) d^2;  p <- p - lr d.
    """
    g = where(weight_decay != 0, g + weight_decay * p, g)
    v = rho * v + (1 - rho) * g * g
    d = sqrt(u + eps) / sqrt(v + eps) * g
    u = rho * u + (1 - rho) * d * d
    p = p - lr * d
    return p, v, u
