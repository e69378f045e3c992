"""Dion2 for matrices, Muon on the largest of their rows or columns; AdamW for all else."""

from gpuopt.rules.language import State, orthogonalize_largest, where
from gpuopt.rules.parts import Coefficients, Scaling, Steps, adamw_step, matrix_scale, rest_prepared, with_adamw


@with_adamw(
    State("b", "momentum_buffer", when="matrix"),
    State("r", "chosen_rows", when="matrix", shape="row", readonly=True),
    State("c", "chosen_columns", when="matrix", shape="column", readonly=True),
    title="Dion2",
    ranges={"fraction": "(0, 1]", "ef_decay": "[0, 1]"},
)
def dion2(
    p, g, b, r, c, m, v, *, lr=0.01, weight_decay=0.01, fraction=0.25, ef_decay=0.95,
    ns_coefficients: Coefficients = "polar_express", ns_steps: Steps = None, adjust_lr_fn: Scaling = "rms_to_rms",
    adamw_beta1=0.9, adamw_beta2=0.95, adamw_eps=1e-8, matrix: bool,
    step_size, inverse,
):  # fmt: skip
    """Dion2, Ahn et al. 2025: Muon on a fraction of the rows, or of the columns where there are fewer of these.

    b <- b + g;  S are the ceil(fraction n) of n rows with the largest sums of |b|, the first of equal ones;  u = O(b_S), else 0;
    b_S <- ef_decay b_S;  p <- (1 - lr weight_decay) p;  p <- p - lr s u.
    O and s are those of Muon. The momentum is kept as it was before its decay, and S (r, c: 1 where chosen) beside it: the next
    step decays what it reads. Vectors, and tensors of a group with matrix = False, are stepped by AdamW.
    """
    if matrix:
        b = where(r * c > 0, ef_decay * b, b) + g
        u = orthogonalize_largest(b, ns_coefficients, ns_steps, fraction, r, c)
        s = matrix_scale(p, adjust_lr_fn=adjust_lr_fn)
        p = p * (1 - lr * weight_decay) - lr * s * u
    else:
        p, m, v = adamw_step(p, g, m, v, lr, weight_decay, adamw_beta1, adamw_beta2, adamw_eps, step_size, inverse)
    return p, b, m, v


dion2.prepare(rest_prepared)
