"""SGD with momentum, as in torch.optim.SGD."""

from gpuopt.rules.language import State, rule, where
from gpuopt.rules.parts import first_undamped, heavy_ball, needed_by_nesterov


@rule(state={"b": State("b", "momentum_buffer", when="has_momentum")}, title="SGD")
def sgd(
    p, g, b, *, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov: bool = False,
    has_momentum: bool, gain,
):  # fmt: skip
    """SGD with momentum, Sutskever et al. 2013, in torch's form: the first gradient enters the buffer undamped.

    g <- g + weight_decay p;  b <- momentum b + (1 - dampening) g;  d = g + momentum b (nesterov) or b;  p <- p - lr d.
    """
    g = where(weight_decay != 0, g + weight_decay * p, g)
    if has_momentum:
        g, b = heavy_ball(g, b, momentum, gain, nesterov=nesterov)
    p = p - lr * g
    return p, b


@sgd.prepare
def _(step, *, dampening):
    gain = first_undamped(step, dampening)
    return dict(gain=gain)


@sgd.require
def _(*, nesterov, momentum, dampening):
    return needed_by_nesterov(nesterov, momentum, dampening)
