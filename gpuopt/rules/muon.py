"""Muon, as torch.optim.Muon has it for matrices."""

from typing import Literal

from gpuopt.rules.language import State, columns, maximum, orthogonalize, rows, rule, sqrt


@rule(state={"b": State("b", "momentum_buffer")})
def muon(
    p, g, b, *, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov: bool = True,
    ns_coefficients: Literal["keller", "polar_express", "cubic5", "cans", "aol", "deepseek"] = "keller",
    ns_steps: Literal[None, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12] = None,
    adjust_lr_fn: Literal[None, "original", "match_rms_adamw", "rms_to_rms"] = None,
):  # fmt: skip
    """Muon, Jordan et al. 2024: the momentum of a matrix with all singular values brought near 1.

    b <- b + (1 - momentum) (g - b);  u = g + momentum (b - g) (nesterov) or b;  p <- (1 - lr weight_decay) p - lr s O(u).
    """
    b = b + (g - b) * (1 - momentum)
    if nesterov:
        u = g + (b - g) * momentum
    else:
        u = b
    o = orthogonalize(u, ns_coefficients, ns_steps)
    if adjust_lr_fn == "match_rms_adamw":
        s = 0.2 * sqrt(maximum(rows(p), columns(p)))
    elif adjust_lr_fn == "rms_to_rms":
        s = sqrt(rows(p) / columns(p))
    else:
        s = sqrt(maximum(1, rows(p) / columns(p)))
    p = p * (1 - lr * weight_decay) - lr * s * o
    return p, b
