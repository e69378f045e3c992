"""Adamax, as in torch.optim.Adamax."""

from gpuopt.rules.language import State, maximum, rule, where


@rule(state={"m": "exp_avg", "u": State("u", "exp_inf", holds="squares")}, title="Adamax")
def adamax(p, g, m, u, *, lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, step_size):
    """Adamax, Kingma & Ba 2015, section 7.1: Adam with the largest gradient in place of the mean square.

    g <- g + weight_decay p;  m <- m + (1 - beta1)(g - m);  u <- max(beta2 u, |g| + eps);  p <- p - lr / (1 - beta1^t) m / u.
    """
    g = where(weight_decay != 0, g + weight_decay * p, g)
    m = m + (g - m) * (1 - beta1)
    u = maximum(beta2 * u, abs(g) + eps)
    p = p - step_size * m / u
    return p, m, u


@adamax.prepare
def _(step, *, lr, beta1):
    return dict(step_size=lr / (1 - beta1**step))
