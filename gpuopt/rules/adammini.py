"""Adam-mini: Adam with one second moment for a block of parameters; here a block is a tensor."""

from gpuopt.rules.language import State, numel, rule, sqrt, tensor_sum


@rule(state={"m": "m", "v": State("v", "vmean", shape="scalar")}, title="AdamMini")
def adammini(
    p, g, m, v, *, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, inv_bias1, inv_sqrt_bias2,
):  # fmt: skip
    """Adam-mini, Zhang et al. 2024, where every tensor is one block, as in the authors' code for all tensors but embeddings (a
    second moment an element: AdamW) and queries and keys (one a head: hold the heads as tensors of their own).

    p <- (1 - lr weight_decay) p;  m <- m + (1 - beta1)(g - m);  v <- beta2 v + (1 - beta2) mean(g^2): one number a tensor;
    p <- p - lr m / (1 - beta1^t) / (sqrt(v) / sqrt(1 - beta2^t) + eps).
    """
    p = p * (1 - lr * weight_decay)
    m = m + (g - m) * (1 - beta1)
    v = beta2 * v + (1 - beta2) * (tensor_sum(g * g) / numel(g))
    p = p - lr * (inv_bias1 / (sqrt(v) * inv_sqrt_bias2 + eps)) * m
    return p, m, v


@adammini.prepare
def _(step, *, beta1, beta2):
    return dict(inv_bias1=1 / (1 - beta1**step), inv_sqrt_bias2=1 / sqrt(1 - beta2**step))
