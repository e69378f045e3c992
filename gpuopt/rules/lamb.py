"""LAMB: Adam whose step is, tensor by tensor, in proportion to the norm of the tensor."""

from gpuopt.rules.language import State, global_sum, maximum, minimum, rule, sqrt, tensor_sum, where


@rule(state={"m": "exp_avg", "v": State("v", "exp_avg_sq", holds="squares")}, title="LAMB")
def lamb(
    p, g, m, v, *, lr=1e-3, bias_correction: bool = True, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=0.01,
    grad_averaging: bool = True, max_grad_norm=1.0, trust_clip: bool = False, always_adapt: bool = False,
    has_max_grad_norm: bool, has_weight_decay: bool, inv_bias1, inv_sqrt_bias2,
):  # fmt: skip
    """LAMB, You et al. 2020, with the clipping, names and defaults of apex and timm.

    g <- g / max(1, |g| / max_grad_norm), |g| over all tensors, unless that is None;  m <- beta1 m + (1 - beta1) g, without
    grad_averaging m <- beta1 m + g;  v <- beta2 v + (1 - beta2) g^2;
    u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p, without bias_correction both divisors are 1;
    p <- p - lr r u,  r = |p| / |u|, 1 where either is 0; at most 1 with trust_clip. Without weight_decay r is 1 (as for biases,
    which one does not decay), unless always_adapt.
    """
    if has_max_grad_norm:
        g = g / maximum(sqrt(global_sum(g * g)) / max_grad_norm, 1)
    if grad_averaging:
        m = m + (g - m) * (1 - beta1)
    else:
        m = beta1 * m + g
    v = beta2 * v + (1 - beta2) * g * g
    if bias_correction:
        u = m * inv_bias1 / (sqrt(v) * inv_sqrt_bias2 + eps)
    else:
        u = m / (sqrt(v) + eps)
    if has_weight_decay:
        u = u + weight_decay * p
    if has_weight_decay or always_adapt:
        size = sqrt(tensor_sum(p * p))
        change = sqrt(tensor_sum(u * u))
        ratio = where(size > 0, where(change > 0, size / change, 1), 1)
        if trust_clip:
            ratio = minimum(ratio, 1)
        u = u * ratio
    p = p - lr * u
    return p, m, v


@lamb.prepare
def _(step, *, beta1, beta2):
    return dict(inv_bias1=1 / (1 - beta1**step), inv_sqrt_bias2=1 / sqrt(1 - beta2**step))
