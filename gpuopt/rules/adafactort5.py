"""Adafactor in the form that T5 was trained with: the steps of fairseq and transformers, which are not torch's."""

from gpuopt.rules.language import State, column_sum, columns, maximum, numel, row_sum, rows, rule, sqrt, tensor_sum
from gpuopt.rules.parts import over_root


@rule(
    state=(
        State("m", "exp_avg", when="has_momentum"),
        State("r", "exp_avg_sq_row", shape="row", when="matrix"),
        State("c", "exp_avg_sq_col", shape="column", when="matrix"),
        State("v", "exp_avg_sq", when="not matrix"),
    ),
    title="AdafactorT5",
    tuples={"eps": ("eps1", "eps2")},
    ranges={"decay_rate": "(-inf, 0]", "clip_threshold": "(0, inf)", "momentum": "[0, 1)"},
)
def adafactort5(
    p, g, m, r, c, v, *, lr=1.0, eps1=1e-30, eps2=1e-3, clip_threshold=1.0, decay_rate=-0.8, momentum=0.0,
    weight_decay=0.0, scale_parameter: bool = True, relative_step: bool = True, warmup_init: bool = False,
    matrix: bool, has_momentum: bool, k, rate,
):  # fmt: skip
    """Adafactor, Shazeer & Stern 2018, as transformers has it: eps1 is added to g^2, no floor lies under the factored moment, and
    rates are relative unless relative_step is off. `momentum` is its beta1 (None there is 0 here).

    a = lr min(1e-2, 1 / sqrt(t)), with warmup_init 1e-6 t in place of 1e-2, without relative_step lr; with scale_parameter times
    max(rms(p), eps2);  k = t^decay_rate;  r <- r + k (mean of g^2 + eps1 along the row - r), c along the column;
    u = g / sqrt(r / mean(r) c), of a tensor with fewer than two axes g / sqrt(v), v as r;  u <- a u / max(1, rms(u) /
    clip_threshold);  with momentum m <- momentum m + (1 - momentum) u, u <- m;  p <- (1 - a weight_decay) p;  p <- p - u.
    k is a power that is not whole: a capturable step, which computes it on the device, has it to an ulp.
    """
    if scale_parameter:
        a = maximum(sqrt(tensor_sum(p * p) / numel(p)), eps2) * rate
    else:
        a = rate
    if matrix:
        r = r + (row_sum(g * g + eps1) / columns(p) - r) * k
        c = c + (column_sum(g * g + eps1) / rows(p) - c) * k
        u = over_root(g, r, c)
    else:
        v = v + (g * g + eps1 - v) * k
        u = g / sqrt(v)
    u = u * (a / maximum(sqrt(tensor_sum(u * u) / numel(p)) / clip_threshold, 1))
    if has_momentum:
        m = momentum * m + (1 - momentum) * u
        u = m
    p = p * (1 - a * weight_decay) - u
    return p, m, r, c, v


@adafactort5.prepare
def _(step, *, lr, decay_rate, relative_step, warmup_init):
    first = 1e-6 * step if warmup_init else 1e-2
    return dict(k=step**decay_rate, rate=lr * min(first, 1 / sqrt(step)) if relative_step else lr)
