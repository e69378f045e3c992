"""APOLLO for matrices: gradients scaled as Adam would in a random space of few dimensions; AdamW for all else."""

import math
from typing import Literal

from gpuopt.rules.language import State, rule, scale_by_projection
from gpuopt.rules.parts import adamw_step, debiased


@rule(
    state=(
        State("projection", "projection", when="matrix", shape="projection", readonly=True),
        State("r", "projected_avg", when="matrix", shape="projected", readonly=True),
        State("q", "projected_avg_sq", when="matrix", shape="projected", readonly=True),
        State("length", "update_length", when="matrix", shape="matrix", readonly=True),
        State("m", "exp_avg", when="not matrix"),
        State("v", "exp_avg_sq", when="not matrix", holds="squares"),
    ),
    title="APOLLO",
    flatten="convolutions",
    rest="AdamW",
    ranges={"rank": "[1, inf)", "scale": "(0, inf)", "update_proj_gap": "[1, inf)", "norm_growth": "[1, inf]"},
)
def apollo(
    p, g, projection, r, q, length, m, v, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.0, rank=256, scale=1.0,
    scale_type: Literal["channel", "tensor"] = "channel", update_proj_gap=200, norm_growth=1.01, matrix: bool,
    count, gain, step_size, inverse,
):  # fmt: skip
    """APOLLO, Zhu et al. 2024: Adam on P g, of rank rows, says how far each column of g goes; see `gpuopt.projections`.

    r <- beta1 r + (1 - beta1) P g;  q <- beta2 q + (1 - beta2)(P g)^2;  s = |r / (sqrt(q) + eps)| / |P g|, of each column, or of
    the matrix with scale_type = "tensor";  u = s g, no longer than norm_growth times the last one;  p <- p - lr a sqrt(scale) u;
    p <- (1 - lr weight_decay) p;  a = sqrt(1 - beta2^t) / (1 - beta1^t). P are normal numbers over sqrt(rank), others after every
    update_proj_gap steps, on the shorter side: where there are no more columns than rows, r is g P' and each row has its scale.
    APOLLO-Mini has rank = 1, scale = 128 and scale_type = "tensor". Vectors, and tensors of a group with matrix = False, are
    stepped by AdamW.
    """
    if matrix:
        u = scale_by_projection(
            g, scale_type, projection, r, q, length, count, update_proj_gap, beta1, beta2, eps, norm_growth
        )
        p = (p - gain * u) * (1 - lr * weight_decay)
    else:
        p, m, v = adamw_step(p, g, m, v, lr, weight_decay, beta1, beta2, eps, step_size, inverse)
    return p, m, v


@apollo.prepare
def _(step, *, lr, beta1, beta2, scale):
    step_size, inverse = debiased(step, lr, beta1, beta2)
    gain = step_size / inverse * math.sqrt(scale)
    return dict(count=step, gain=gain, step_size=step_size, inverse=inverse)


@apollo.require
def _(*, rank):
    if rank % 1 != 0:
        return f"rank = {rank}: expected a whole number"
    return None
