"""AdaMuon for matrices, and AdamW for all else."""

from gpuopt.rules.language import State, column_sum, columns, orthogonalize, row_sum, rows, sign, sqrt, where
from gpuopt.rules.parts import Coefficients, Steps, adamw_step, momentum_of, rest_prepared, with_adamw


@with_adamw(
    State("b", "momentum_buffer", when="matrix"),
    State("q", "orthogonal_sq", when="matrix", holds="squares"),
    title="AdaMuon",
)
def adamuon(
    p, g, b, q, m, v, *, lr=0.02, weight_decay=0.01, momentum=0.95, nesterov: bool = True, ns_coefficients: Coefficients = "keller",
    ns_steps: Steps = None, eps=1e-8, adamw_beta1=0.9, adamw_beta2=0.95, adamw_eps=1e-8, matrix: bool,
    step_size, inverse,
):  # fmt: skip
    """AdaMuon, Si et al. 2025: Muon on the signs of its momentum, each element then over the root of the average of its squares.

    u, b as of Muon;  o = O(sign(u));  q <- momentum q + (1 - momentum) o^2;  w = o / (sqrt(q) + eps);
    p <- (1 - lr weight_decay) p;  p <- p - lr 0.2 sqrt(rows columns) w / |w|, the Frobenius norm of the matrix.
    Vectors, and tensors of a group with matrix = False, are stepped by AdamW.
    """
    if matrix:
        u, b = momentum_of(g, b, momentum, nesterov=nesterov)
        o = orthogonalize(sign(u), ns_coefficients, ns_steps)
        q = momentum * q + (1 - momentum) * o * o
        w = o / (sqrt(q) + eps)
        n = sqrt(column_sum(row_sum(w * w)))
        k = where(n > 0, 0.2 * sqrt(rows(p) * columns(p)) / n, 0)
        p = p * (1 - lr * weight_decay) - lr * k * w
    else:
        p, m, v = adamw_step(p, g, m, v, lr, weight_decay, adamw_beta1, adamw_beta2, adamw_eps, step_size, inverse)
    return p, b, q, m, v


adamuon.prepare(rest_prepared)
