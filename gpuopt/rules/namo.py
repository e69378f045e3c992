"""NAMO for matrices, and AdamW for all else."""

from gpuopt.rules.language import State, orthogonalize, sqrt, tensor_sum
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
    State("q", "grad_norm_sq", when="matrix", shape="scalar"),
    title="NAMO",
)
def namo(
    p, g, b, q, m, v, *, lr=0.02, weight_decay=0.01, momentum=0.95, second_momentum=0.95, nesterov: bool = True,
    ns_coefficients: Coefficients = "keller", ns_steps: Steps = None, adjust_lr_fn: Scaling = None, eps=1e-8,
    adamw_beta1=0.9, adamw_beta2=0.95, adamw_eps=1e-8, matrix: bool,
    step_size, inverse,
):  # fmt: skip
    """NAMO, arXiv February 2026: Muon with a step as long as the momentum is, over the usual length of the gradient.

    u, b as of Muon;  q <- second_momentum q + (1 - second_momentum) |g|^2;
    p <- (1 - lr weight_decay) p;  p <- p - lr s |u| / (sqrt(q) + eps) O(u),
    with norms of the tensor and s as Muon's. Preprint 2602.17080.
    Vectors, and tensors of a group with matrix = False, are stepped by AdamW.
    """
    if matrix:
        u, b = momentum_of(g, b, momentum, nesterov=nesterov)
        q = second_momentum * q + (1 - second_momentum) * tensor_sum(g * g)
        k = sqrt(tensor_sum(u * u)) / (sqrt(q) + eps)
        s = matrix_scale(p, adjust_lr_fn=adjust_lr_fn)
        p = p * (1 - lr * weight_decay) - lr * s * k * orthogonalize(u, ns_coefficients, ns_steps)
    else:
        p, m, v = adamw_step(p, g, m, v, lr, weight_decay, adamw_beta1, adamw_beta2, adamw_eps, step_size, inverse)
    return p, b, q, m, v


namo.prepare(rest_prepared)
