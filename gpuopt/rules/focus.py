"""FOCUS: the sign of the momentum, with a pull towards the average of the parameters."""

from gpuopt.rules.language import State, rule, sign, where


@rule(state={"m": "exp_avg", "a": State("a", "pbar", exact=True)}, title="FOCUS", ranges={"gamma": "[0, 1)"})
def focus(p, g, m, a, *, lr=1e-2, beta1=0.9, beta2=0.999, gamma=0.1, weight_decay=0.0, new):
    """FOCUS, Liu, Liu & Gore 2025.

    m <- beta1 m + (1 - beta1) g;  a <- a + (1 - beta2) / (1 - beta2^t) (p - a);
    p <- p - lr weight_decay a;  p <- p - lr (sign(m) + gamma sign(p - a)).
    The average is kept free of its zero start, so that it equals a parameter that has not moved, and sign(p - a) is 0 there.
    """
    m = beta1 * m + (1 - beta1) * g
    a = where(p == a, a, a + (p - a) * new)
    p = where(weight_decay != 0, p - lr * weight_decay * a, p)
    p = p - lr * where(p == a, sign(m), sign(m) + gamma * sign(p - a))
    return p, m, a


@focus.prepare
def _(step, *, beta2):
    return dict(new=(1 - beta2) / (1 - beta2**step))
