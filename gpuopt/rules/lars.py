"""LARS: SGD whose rate is, tensor by tensor, in proportion to the norm of the tensor over that of its gradient."""

from gpuopt.rules.language import State, minimum, rule, sqrt, tensor_sum, where
from gpuopt.rules.parts import first_undamped, heavy_ball, needed_by_nesterov


@rule(
    state={"b": State("b", "momentum_buffer", when="has_momentum")},
    title="LARS",
    ranges={"trust_coeff": "[0, inf)"},
)
def lars(
    p, g, b, *, lr=1.0, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov: bool = False, trust_coeff=1e-3, eps=1e-8,
    trust_clip: bool = False, always_adapt: bool = False, has_momentum: bool, has_weight_decay: bool, gain,
):  # fmt: skip
    """LARS, You, Gitman & Ginsburg 2017, with the names and defaults of timm.

    r = trust_coeff |p| / (|g| + weight_decay |p| + eps), 1 where |p| or |g| is 0, with trust_clip (LARC) min(r / lr, 1);
    g <- r (g + weight_decay p); then SGD:  b <- momentum b + (1 - dampening) g, b = g at the first step;
    d = g + momentum b (nesterov) or b;  p <- p - lr d. Without weight_decay g stays as it is, unless always_adapt.
    """
    if has_weight_decay or always_adapt:
        size = sqrt(tensor_sum(p * p))
        slope = sqrt(tensor_sum(g * g))
        ratio = trust_coeff * size / (slope + weight_decay * size + eps)
        ratio = where(size > 0, where(slope > 0, ratio, 1), 1)
        if trust_clip:
            ratio = minimum(ratio / lr, 1)
        g = ratio * (g + weight_decay * p)
    if has_momentum:
        g, b = heavy_ball(g, b, momentum, gain, nesterov=nesterov)
    p = p - lr * g
    return p, b


@lars.prepare
def _(step, *, dampening):
    gain = first_undamped(step, dampening)
    return dict(gain=gain)


@lars.require
def _(*, nesterov, momentum, dampening):
    return needed_by_nesterov(nesterov, momentum, dampening)
