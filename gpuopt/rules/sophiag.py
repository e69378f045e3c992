"""SophiaG: the momentum over a clipped estimate of the curvature, which other gradients give from time to time."""

from gpuopt.rules.language import State, minimum, rule, sign


@rule(
    state={"m": "exp_avg", "h": State("h", "hessian", holds="squares", exact=True)},
    title="SophiaG",
    ranges={"rho": "[0, inf)", "bs": "[0, inf)"},
)
def sophiag(p, g, m, h, *, lr=1e-4, beta1=0.965, beta2=0.99, rho=0.04, weight_decay=0.1, bs=5120):
    """SophiaG, Liu et al. 2023, as in the authors' code; bs: elements (tokens, say) in the batch of a step.

    p <- (1 - lr weight_decay) p;  m <- beta1 m + (1 - beta1) g;  p <- p - lr sign(m) min(|m| / (rho bs h + 1e-15), 1).
    opt.update_hessian(grads), every ten steps or so: h <- beta2 h + (1 - beta2) g^2, g of a loss on labels drawn from the model.
    """
    p = p * (1 - lr * weight_decay)
    m = beta1 * m + (1 - beta1) * g
    p = p - lr * sign(m) * minimum(abs(m) / (rho * bs * h + 1e-15), 1)
    return p, m, h


@sophiag.observe
def update_hessian(g, h, *, beta2):
    return beta2 * h + (1 - beta2) * g * g
