"""SPlus: signs in the eigenbases of Shampoo for matrices, signs for all else."""

from gpuopt.rules.language import State, columns, from_bases, learn_bases, rows, rule, sign, to_bases, where
from gpuopt.rules.parts import OF_SIDES, is_multiple, sides


@rule(
    state=(State("m", "momentum"), *sides("q", "basis")),
    title="SPlus",
    flatten="convolutions",
    rest="sign",
    ranges={"nonstandard_constant": "[0, inf)", **OF_SIDES},
)
def splus(
    p, g, m, q_left, q_right, gram_left, gram_right, *, lr=0.1, weight_decay=0.01, beta1=0.9, beta2=0.999,
    precondition_frequency=100, max_precond_dim=10000, nonstandard_constant=0.001, matrix: bool, left: bool, right: bool,
    renewal, gain,
):  # fmt: skip
    """SPlus, Frans, Levine & Abbeel 2025: the signs of a momentum in the eigenvectors L, R of averages of g g' and g' g.

    m <- beta1 m + (1 - beta1) g;  u = L sign(L' m R) R';  p <- p - lr s u;  p <- (1 - lr s weight_decay) p;  averages have the
    beta beta2. s = 2 / (rows + columns) of a matrix, as in the paper (the authors' torch code has a quarter of that),
    nonstandard_constant of one with a side longer than max_precond_dim, which has no eigenvectors, of vectors, and of tensors
    of a group with matrix = False; the latter two have u = sign(m), as all have in the first step. Eigenvectors are found
    behind the first step and every precondition_frequency steps. The authors evaluate an average of the parameters:
    averaged_params(), with ema_decay = 0.999.
    """
    m = m + (g - m) * (1 - beta1)
    if matrix:
        _ = learn_bases(g, q_left, q_right, gram_left, gram_right, renewal, gain)
        u = from_bases(sign(to_bases(m, q_left, q_right)), q_left, q_right)
    else:
        u = sign(m)
    if left and right:
        a = lr * 2 / (rows(p) + columns(p))
    else:
        a = lr * nonstandard_constant
    p = (p - a * u) * (1 - a * weight_decay)
    return p, m


@splus.prepare
def _(step, *, beta2, precondition_frequency):
    known = step - 1
    due = is_multiple(known, precondition_frequency)
    renewal = where(known == 1, 2, where(known > 0, 2 * due, 0))
    return dict(renewal=renewal, gain=1 - beta2)
