"""Rules of a user's own that ask for sums, with states of one number: what every test of passes runs besides the library's rules.

Used by the tests of bits, kernels, graphs and hosts. Between them they have a sum and a maximum of a tensor, of which a second pass
depends; sums over all tensors at two cuts, beside one of a tensor; sums along rows and columns, at two cuts; and states of one
number, of each tensor, of all, of each row and of each column.
"""

from __future__ import annotations

from typing import Any

import gpuopt
from gpuopt import (
    State,
    column_sum,
    columns,
    global_sum,
    maximum,
    minimum,
    numel,
    row_sum,
    rows,
    rule,
    sqrt,
    tensor_max,
    tensor_sum,
    where,
)


@rule(
    state={"m": "momentum_buffer", "t": State("t", "trust", shape="scalar", init="start")},
    ranges={"start": "[0, inf)"},
)
def trusting(p, g, m, t, *, lr, beta=0.9, eps=1e-6, start=0.5):
    """A trust ratio of the tensor: two cuts, for the length of the step depends on those of parameter and gradient."""
    length = sqrt(tensor_sum(p * p))
    scale = tensor_max(abs(g)) + sqrt(tensor_sum(g * g) / numel(g)) + eps
    m = beta * m + (1 - beta) * (g / scale)
    step = sqrt(tensor_sum(m * m))
    t = beta * t + (1 - beta) * where(step > eps, minimum(length / step, 10.0), 1.0)
    p = p - lr * t * m
    return p, m, t


@rule(
    state={
        "s": "exp_avg",
        "d": State("d", "distance", shape="global", init=0.5),
        "n": State("n", "numerator", shape="global"),
    }
)
def distant(p, g, s, d, n, *, lr, beta=0.75):
    """An estimate of a distance over all tensors: tensors wait for each other at both cuts, once beside a sum of their own."""
    n = beta * n + d * global_sum(g * (g - p))
    s = beta * s + d * g
    d = maximum(d, n / (global_sum(abs(s)) + 1.0))
    sharp = s / (sqrt(tensor_sum(g * g)) + abs(s))
    p = p - lr * d * sharp / sqrt(1 + global_sum(sharp * sharp))
    return p, s, d, n


@rule(
    state={
        "m": "momentum_buffer",
        "r": State("r", "row_mean", shape="row"),
        "c": State("c", "column_mean", shape="column"),
        "z": State("z", "row_sharpness", shape="row"),
    }
)
def lined(p, g, m, r, c, z, *, lr, beta=0.75):
    """Means along both, a sum of a value of a row, the largest of a column's, then a second cut along rows and one of the tensor;
    matrices alone have them.
    """
    r = beta * r + (1 - beta) * row_sum(abs(g)) / columns(g)
    c = beta * c + (1 - beta) * column_sum(abs(g)) / rows(g)
    level = column_sum(r) / rows(g) + 1e-3
    m = beta * m + g / (sqrt(r / level * c) + 1.0)
    z = row_sum(m * c) / (1 + sqrt(tensor_sum(m * m)) + tensor_max(c))
    p = p - lr * (m + z)
    return p, m, r, c, z


RULES: dict[str, gpuopt.Rule] = {"trusting": trusting, "distant": distant, "lined": lined}
HYPER: dict[str, dict[str, Any]] = {name: {"lr": 0.03} for name in RULES}
