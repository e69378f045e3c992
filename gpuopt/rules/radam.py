"""RAdam, as in torch.optim.RAdam."""

from gpuopt.rules.language import State, rule, sqrt, where


@rule(state={"m": "exp_avg", "v": State("v", "exp_avg_sq", holds="squares")}, title="RAdam")
def radam(
    p, g, m, v, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, decoupled_weight_decay: bool = False,
    step_size, rectified,
):  # fmt: skip
    """RAdam, Liu et al. 2020: Adam whose step is scaled by how well the variance is known, and is momentum's until it is.

    g <- g + weight_decay p, decoupled: p <- p (1 - lr weight_decay);  m <- m + (1 - beta1)(g - m);
    v <- beta2 v + (1 - beta2) g^2;  rho = rho_inf - 2 t beta2^t / (1 - beta2^t), rho_inf = 2 / (1 - beta2) - 1;
    rho > 5: p <- p - lr / (1 - beta1^t) r sqrt(1 - beta2^t) m / (sqrt(v) + eps), else p <- p - lr / (1 - beta1^t) m,
    r^2 = (rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho).
    """
    if decoupled_weight_decay:
        p = p * (1 - lr * weight_decay)
    else:
        g = where(weight_decay != 0, g + weight_decay * p, g)
    m = m + (g - m) * (1 - beta1)
    v = beta2 * v + (1 - beta2) * g * g
    p = p - step_size * m * where(rectified > 0, rectified / (sqrt(v) + eps), 1)
    return p, m, v


@radam.prepare
def _(step, *, lr, beta1, beta2):
    bias2 = 1 - beta2**step
    most = 2 / (1 - beta2) - 1
    rho = most - 2 * step * beta2**step / bias2
    ratio = (rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho) if rho > 5 else 0.0
    return dict(step_size=lr / (1 - beta1**step), rectified=sqrt(ratio * bias2))
