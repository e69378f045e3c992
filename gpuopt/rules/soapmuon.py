"""SOAP-Muon for matrices, a momentum orthogonalized behind the scaling of SOAP, and AdamW for all else."""

from gpuopt.rules.language import State, from_bases, learn_bases, orthogonalize, sqrt, to_bases
from gpuopt.rules.parts import (
    OF_SIDES,
    Coefficients,
    Scaling,
    Steps,
    adamw_step,
    bases_turned,
    debiased,
    gain_of,
    matrix_scale,
    momentum_of,
    sides,
    with_adamw,
)


@with_adamw(
    State("b", "momentum_buffer", when="matrix"), State("w", "projected_sq", when="matrix", holds="squares"),
    *sides("q", "basis"), title="SOAPMuon", ranges={"shampoo_beta": "(-inf, 1)", **OF_SIDES},
)  # fmt: skip
def soapmuon(
    p, g, b, w, q_left, q_right, gram_left, gram_right, m, v, *, lr=0.0375, weight_decay=0.0, momentum=0.95, second_momentum=0.9,
    shampoo_beta=-1.0, nesterov: bool = True, eps=1e-8, precondition_frequency=1, max_precond_dim=10000,
    ns_coefficients: Coefficients = "converging", ns_steps: Steps = None, adjust_lr_fn: Scaling = None, adamw_beta1=0.9,
    adamw_beta2=0.95, adamw_eps=1e-8, matrix: bool, left: bool, right: bool, renewal, gain, share, least, step_size, inverse,
):  # fmt: skip
    """SOAP-Muon, modded-nanogpt June 2026, after a note of Vyas: Muon of a momentum scaled in the eigenvectors L, R of SOAP.

    u, b as of Muon;  x = L' u R;  w <- second_momentum w + (1 - second_momentum) x^2;  y = L (x / (sqrt(w) + eps)) R';
    p <- (1 - lr weight_decay) p;  p <- p - lr s O(y), with s and O as Muon's. The authors give y the norm of u, which O undoes.
    The first gradient makes the bases and a step of Muon. Averages, of the beta shampoo_beta or second_momentum, and bases are
    SOAP's. Vectors, and tensors of a group with matrix = False, are stepped by AdamW.
    """
    if matrix:
        u, b = momentum_of(g, b, momentum, nesterov=nesterov)
        _ = learn_bases(g, q_left, q_right, gram_left, gram_right, renewal, gain)
        x = to_bases(u, q_left, q_right)
        w = w + (x * x - w) * share
        y = x / (sqrt(w) + least)
        o = orthogonalize(from_bases(y, q_left, q_right), ns_coefficients, ns_steps)
        s = matrix_scale(p, adjust_lr_fn=adjust_lr_fn)
        p = p * (1 - lr * weight_decay) - lr * s * o
    else:
        p, m, v = adamw_step(p, g, m, v, lr, weight_decay, adamw_beta1, adamw_beta2, adamw_eps, step_size, inverse)
    return p, b, w, m, v


@soapmuon.prepare
def _(step, *, lr, second_momentum, shampoo_beta, eps, precondition_frequency, adamw_beta1, adamw_beta2):
    known = step - 1
    renewal = bases_turned(known, precondition_frequency)
    gain = gain_of(second_momentum, shampoo_beta)
    share = 1 - second_momentum if known > 0 else 0
    least = eps if known > 0 else 1
    step_size, inverse = debiased(step, lr, adamw_beta1, adamw_beta2)
    return dict(renewal=renewal, gain=gain, share=share, least=least, step_size=step_size, inverse=inverse)
