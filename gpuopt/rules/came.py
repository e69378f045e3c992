"""CAME: Adafactor with momentum, whose steps are smaller where the momentum is less to be trusted."""

from gpuopt.rules.language import State, column_sum, columns, maximum, numel, row_sum, rows, rule, sqrt, tensor_sum
from gpuopt.rules.parts import over_root


@rule(
    state=(
        State("m", "exp_avg"),
        State("r", "exp_avg_sq_row", shape="row", when="matrix"),
        State("c", "exp_avg_sq_col", shape="column", when="matrix"),
        State("v", "exp_avg_sq", when="not matrix"),
        State("x", "exp_avg_res_row", shape="row", when="matrix"),
        State("y", "exp_avg_res_col", shape="column", when="matrix"),
    ),
    title="CAME",
    tuples={"eps": ("eps1", "eps2")},
    ranges={"clip_threshold": "(0, inf)"},
)
def came(
    p, g, m, r, c, v, x, y, *, lr=2e-4, beta1=0.9, beta2=0.999, beta3=0.9999, eps1=1e-30, eps2=1e-16, clip_threshold=1.0,
    weight_decay=0.0, matrix: bool,
):  # fmt: skip
    """CAME, Luo et al. 2023, with names and defaults of the authors' code (lr: as in its examples).

    r <- beta2 r + (1 - beta2) mean of g^2 + eps1 along the row, c along the column;  u = g / sqrt(r / mean(r) c);
    u <- u / max(1, rms(u) / clip_threshold);  m <- beta1 m + (1 - beta1) u;  x and y: as r and c, of (u - m)^2 + eps2 with beta3;
    p <- (1 - lr weight_decay) p;  p <- p - lr m / sqrt(x / mean(x) y). Of a tensor with fewer than two axes u = g / sqrt(v),
    v as r for each element, and p <- p - lr m.
    """
    if matrix:
        r = beta2 * r + (1 - beta2) * (row_sum(g * g + eps1) / columns(p))
        c = beta2 * c + (1 - beta2) * (column_sum(g * g + eps1) / rows(p))
        u = over_root(g, r, c)
    else:
        v = beta2 * v + (1 - beta2) * (g * g + eps1)
        u = g / sqrt(v)
    u = u * (1 / maximum(sqrt(tensor_sum(u * u) / numel(p)) / clip_threshold, 1))
    m = beta1 * m + (1 - beta1) * u
    n = m
    if matrix:
        e = u - m
        x = beta3 * x + (1 - beta3) * (row_sum(e * e + eps2) / columns(p))
        y = beta3 * y + (1 - beta3) * (column_sum(e * e + eps2) / rows(p))
        n = over_root(m, x, y)
    p = p * (1 - lr * weight_decay) - lr * n
    return p, m, r, c, v, x, y
