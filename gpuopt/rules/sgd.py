"""SGD with momentum, as in torch.optim.SGD."""

from gpuopt.rules.language import State, rule, where


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
        b = momentum * b + gain * g
        if nesterov:
            g = g + momentum * b
        else:
            g = b
    p = p - lr * g
    return p, b


@sgd.prepare
def _(step, *, dampening):
    return dict(gain=1 if step == 1 else 1 - dampening)


@sgd.require
def _(*, nesterov, momentum, dampening):
    if nesterov and (momentum <= 0 or dampening != 0):
        return f"nesterov with momentum {momentum} and dampening {dampening}: expected a momentum and no dampening"
    return None
