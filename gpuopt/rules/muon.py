"""Muon for matrices, as in torch.optim.Muon, and AdamW for all else."""

from gpuopt.rules.language import State, orthogonalize
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


@with_adamw(State("b", "momentum_buffer", when="matrix"))
def muon(
    p, g, b, m, v, *, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov: bool = True, ns_coefficients: Coefficients = "keller",
    ns_steps: Steps = None, adjust_lr_fn: Scaling = None, adamw_beta1=0.9, adamw_beta2=0.95, adamw_eps=1e-8, matrix: bool,
    step_size, inverse,
):  # fmt: skip
    """Muon, Jordan et al. 2024: the momentum of a matrix with its singular values brought near 1, O(.).

    b <- b + (1 - momentum)(g - b);  u = g + momentum (b - g) (nesterov) or b;  p <- (1 - lr weight_decay) p;  p <- p - lr s O(u).
    s is by adjust_lr_fn, see `parts.matrix_scale`; ns_coefficients and ns_steps are those of O, see `gpuopt.linalg`.
    Vectors, and tensors of a group with matrix = False, are stepped by AdamW.
    """
    if matrix:
        u, b = momentum_of(g, b, momentum, nesterov=nesterov)
        s = matrix_scale(p, adjust_lr_fn=adjust_lr_fn)
        p = p * (1 - lr * weight_decay) - lr * s * orthogonalize(u, ns_coefficients, ns_steps)
    else:
        p, m, v = adamw_step(p, g, m, v, lr, weight_decay, adamw_beta1, adamw_beta2, adamw_eps, step_size, inverse)
    return p, b, m, v


muon.prepare(rest_prepared)
