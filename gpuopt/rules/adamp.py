"""AdamP: Adam, whose step does not lengthen weights of which only the direction counts."""

from gpuopt.rules.language import State, column_sum, columns, maximum, numel, row_sum, rule, sqrt, tensor_max, where


@rule(
    state={"m": "exp_avg", "v": State("v", "exp_avg_sq", holds="squares")},
    title="AdamP",
    ranges=dict.fromkeys(("delta", "wd_ratio"), "[0, inf)"),
    flatten=True,
)
def adamp(
    p, g, m, v, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, delta=0.1, wd_ratio=0.1,
    nesterov: bool = False, matrix: bool, inv_bias1, inv_bias2,
):  # fmt: skip
    """AdamP, Heo et al. 2021: of a tensor of two or more axes, whose rows are its channels, the step is made at a right angle to p.

    m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;  u = m / (sqrt(v / (1 - beta2^t)) + eps), or with nesterov
    (beta1 m + (1 - beta1) g) / ...;  if |cos(g, p)| < delta / sqrt(columns) in every row, u <- u - p^ (p^ u) with p^ = p / |p| row
    by row; else if |cos(g, p)| < delta / sqrt(n) of the whole tensor, the same of that; then weight_decay is wd_ratio times itself.
    p <- (1 - lr weight_decay) p;  p <- p - lr u / (1 - beta1^t).
    """
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    u = m
    if nesterov:
        u = beta1 * m + (1 - beta1) * g
    u = u / (sqrt(v * inv_bias2) + eps)
    decay = weight_decay
    if matrix:
        pp = row_sum(p * p)
        gg = row_sum(g * g)
        pg = row_sum(p * g)
        pu = row_sum(p * u)
        r = sqrt(pp) + eps
        t = sqrt(column_sum(pp)) + eps
        likeness = abs(pg) / (maximum(sqrt(pp), eps) * maximum(sqrt(gg), eps))
        of_all = abs(column_sum(pg)) / (maximum(sqrt(column_sum(pp)), eps) * maximum(sqrt(column_sum(gg)), eps))
        free = where(tensor_max(likeness) < delta / sqrt(columns(p)), 1, 0)
        free_of_all = where(of_all < delta / sqrt(numel(p)), 1 - free, 0)
        u = u - p * (where(free != 0, pu / r / r, 0) + where(free_of_all != 0, column_sum(pu) / t / t, 0))
        decay = weight_decay * where(free + free_of_all != 0, wd_ratio, 1)
    p = p * (1 - lr * decay)
    p = p - lr * inv_bias1 * u
    return p, m, v


@adamp.prepare
def _(step, *, beta1, beta2):
    return dict(inv_bias1=1 / (1 - beta1**step), inv_bias2=1 / (1 - beta2**step))
