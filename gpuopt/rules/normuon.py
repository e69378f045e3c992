"""NorMuon for matrices, and AdamW for all else."""

from gpuopt.rules.language import State, column_sum, columns, orthogonalize, row_sum, sqrt
from gpuopt.rules.parts import (
    Coefficients,
    Scaling,
    Steps,
    adamw_step,
    matrix_scale,
    momentum_of,
    rest_prepared,
    with_adamw,
)


@with_adamw(
    State("b", "momentum_buffer", when="matrix"),
    State("r", "second_momentum_buffer", when="matrix", shape="row"),
    title="NorMuon",
)
def normuon(
    p, g, b, r, m, v, *, lr=0.02, weight_decay=0.1, momentum=0.95, second_momentum=0.95, nesterov: bool = True,
    ns_coefficients: Coefficients = "keller", ns_steps: Steps = None, adjust_lr_fn: Scaling = None, eps=1e-10,
    adamw_beta1=0.9, adamw_beta2=0.95, adamw_eps=1e-8, matrix: bool,
    step_size, inverse,
):  # fmt: skip
    """NorMuon, Li et al. 2025: Muon whose rows all move as much as they usually do, by an average of their squares.

    u, b as of Muon;  o = O(u);  r <- r + (1 - second_momentum)(mean of o^2 along the row - r);  w = o / (sqrt(r) + eps);
    w <- w |o| / (|w| + eps), Frobenius norms of the matrix;  p <- (1 - lr weight_decay) p;  p <- p - lr s w, with s as Muon's.
    Vectors, and tensors of a group with matrix = False, are stepped by AdamW.
    """
    if matrix:
        u, b = momentum_of(g, b, momentum, nesterov=nesterov)
        o = orthogonalize(u, ns_coefficients, ns_steps)
        q = row_sum(o * o)
        r = r + (q / columns(p) - r) * (1 - second_momentum)
        d = sqrt(r) + eps
        k = sqrt(column_sum(q)) / (sqrt(column_sum(q / (d * d))) + eps)
        s = matrix_scale(p, adjust_lr_fn=adjust_lr_fn)
        p = p * (1 - lr * weight_decay) - lr * s * k * (o / d)
    else:
        p, m, v = adamw_step(p, g, m, v, lr, weight_decay, adamw_beta1, adamw_beta2, adamw_eps, step_size, inverse)
    return p, b, r, m, v


normuon.prepare(rest_prepared)
