"""NovoGrad: Adam with one second moment a tensor, and momentum of gradients that are normalised by it."""

from gpuopt.rules.language import State, maximum, rule, sqrt, tensor_sum, where


@rule(
    state={
        "m": "exp_avg",
        "v": State("v", "exp_avg_sq", shape="scalar"),
        "w": State("w", "max_exp_avg_sq", when="amsgrad", shape="scalar"),
    },
    title="NovoGrad",
)
def novograd(
    p, g, m, v, w, *, lr=1e-3, beta1=0.95, beta2=0.98, eps=1e-8, weight_decay=0.0, grad_averaging: bool = False,
    amsgrad: bool = False,
):  # fmt: skip
    """NovoGrad, Ginsburg et al. 2019, with the names and defaults of NVIDIA's code.

    q = |g|^2;  v <- beta2 v + (1 - beta2) q, v = q where it is 0 yet: one number a tensor;  amsgrad: w <- max(w, v);
    u = g / (sqrt(v) + eps) + weight_decay p, times 1 - beta1 with grad_averaging;  m <- beta1 m + u;  p <- p - lr m.
    """
    q = tensor_sum(g * g)
    v = where(v == 0, q, beta2 * v + (1 - beta2) * q)
    d = v
    if amsgrad:
        w = maximum(w, v)
        d = w
    u = g / (sqrt(d) + eps) + weight_decay * p
    if grad_averaging:
        u = u * (1 - beta1)
    m = beta1 * m + u
    p = p - lr * m
    return p, m, v, w
