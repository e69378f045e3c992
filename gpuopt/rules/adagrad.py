"""Adagrad, as in torch.optim.Adagrad."""

from gpuopt.rules.language import State, rule, sqrt, where


@rule(state={"a": State("a", "sum", holds="squares", init="initial_accumulator_value")}, title="Adagrad")
def adagrad(p, g, a, *, lr=1e-2, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10, rate):
    """Adagrad, Duchi, Hazan & Singer 2011.

    g <- g + weight_decay p;  a <- a + g^2;  p <- p - lr / (1 + (t-1) lr_decay) g / (sqrt(a) + eps).
    """
    g = where(weight_decay != 0, g + weight_decay * p, g)
    a = a + g * g
    p = p - rate * g / (sqrt(a) + eps)
    return p, a


@adagrad.prepare
def _(step, *, lr, lr_decay):
    return dict(rate=lr / (1 + (step - 1) * lr_decay))
