"""MADGRAD: dual averaging with the cube root of the sum of squares."""

from gpuopt.rules.language import State, rule, sqrt, where


@rule(
    state={
        "v": State("v", "grad_sum_sq", holds="squares"),
        "s": "s",
        "x": State("x", "x0", init="parameter", readonly=True, exact=True),
    },
    title="MADGRAD",
    ranges={"momentum": "[0, 1)"},
)
def madgrad(
    p, g, v, s, x, *, lr=1e-2, momentum=0.9, weight_decay=0.0, eps=1e-6, decouple_decay: bool = False,
    size, shrink,
):  # fmt: skip
    """MADGRAD, Defazio & Jelassi 2021, as in the authors' code, whose rate is lr + eps, r below.

    x: p before the first step;  g <- g + weight_decay p;  v <- v + r sqrt(t) g^2;  s <- s + r sqrt(t) g;
    p <- momentum p + (1 - momentum)(x - s / (v^(1/3) + eps)); with decouple_decay p <- p - r weight_decay p, p that of before.
    The cube root is exactly rounded operations alone, the same everywhere, to an ulp: v^(1/4 + 1/16 + ... + 1/4096), which is
    within 6 % of it for every float64, and four of Newton's steps.
    """
    if not decouple_decay:
        g = where(weight_decay != 0, g + weight_decay * p, g)
    v = v + size * g * g
    s = s + size * g
    r1 = sqrt(sqrt(v))
    r2 = sqrt(sqrt(r1))
    r3 = sqrt(sqrt(r2))
    r4 = sqrt(sqrt(r3))
    r5 = sqrt(sqrt(r4))
    y = r1 * r2 * r3 * r4 * r5 * sqrt(sqrt(r5))
    y = y - (y - v / (y * y)) / 3
    y = y - (y - v / (y * y)) / 3
    y = y - (y - v / (y * y)) / 3
    y = y - (y - v / (y * y)) / 3
    d = where(y == y, y, v) + eps  # of 0 and infinity
    z = x - where(d != 0, s / d, 0)
    old = p
    p = where(z == p, p, momentum * p + (1 - momentum) * z)
    if decouple_decay:
        p = p - shrink * old
    return p, v, s


@madgrad.prepare
def _(step, *, lr, eps, weight_decay):
    rate = lr + eps if lr != 0 else 0.0
    return dict(size=rate * sqrt(step), shrink=rate * weight_decay)
