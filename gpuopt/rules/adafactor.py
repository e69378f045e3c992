"""Adafactor, as in torch.optim.Adafactor."""

from gpuopt.rules.language import (  # fmt: skip
    State,
    column_sum,
    columns,
    epsilon,
    maximum,
    minimum,
    numel,
    row_sum,
    rows,
    rule,
    sqrt,
    tensor_sum,
    where,
)


@rule(
    state=(
        State("r", "row_var", shape="row", when="matrix"),
        State("c", "col_var", shape="column", when="matrix"),
        State("v", "variance", when="not matrix"),
    ),
    tuples={"eps": ("eps1", "eps2")},
    ranges={"beta2_decay": "(-inf, 0]", "d": "[1, inf)"},
)
def adafactor(
    p, g, r, c, v, *, lr=1e-2, beta2_decay=-0.8, eps1=None, eps2=1e-3, d=1.0, weight_decay=0.0, matrix: bool, k, rho,
):  # fmt: skip
    """Adafactor, Shazeer & Stern 2018: second moments of a matrix (the last two axes) as one number a row and one a column.

    k = t^beta2_decay;  a = min(lr, 1 / sqrt(t)) max(rms(p), eps2);  p <- (1 - lr weight_decay) p;
    r <- r + k (mean of g^2 along the row - r);  c <- c + k (mean of g^2 along the column - c);  v = r c / max(mean(r), eps1);
    of a tensor with fewer than two axes v <- v + k (g^2 - v);  u = g / sqrt(max(v, eps1^2));  p <- p - a u / max(1, rms(u) / d).
    eps1 is the machine epsilon of p's dtype if it is None. k is a power that is not whole: a capturable step, which computes it on
    the device, has it to an ulp.
    """
    e = where(eps1 < 1e300, eps1, epsilon(p))  # None is infinite here
    a = maximum(sqrt(tensor_sum(p * p) / numel(p)), eps2) * rho
    p = p * (1 - lr * weight_decay)
    if matrix:
        r = r + (row_sum(g * g) / columns(p) - r) * k
        c = c + (column_sum(g * g) / rows(p) - c) * k
        q = r / maximum(column_sum(r) / rows(p), e) * c
    else:
        v = v + (g * g - v) * k
        q = v
    u = g / sqrt(maximum(q, e * e))
    s = maximum(sqrt(tensor_sum(u * u) / numel(p)) / d, 1)
    p = p - a / s * u
    return p, r, c, v


@adafactor.prepare
def _(step, *, lr, beta2_decay):
    return dict(k=step**beta2_decay, rho=minimum(lr, 1 / sqrt(step)))
