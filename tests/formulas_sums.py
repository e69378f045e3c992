"""Formulas of rules that look at a whole tensor, its rows and columns, or at all tensors, as those of `formulas`: from the paper or
the authors' code and not from the rule. Used by `cases`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from formulas import Array, Betas, States, average


def lars(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1.0, momentum: float = 0.0, dampening: float = 0.0,
    weight_decay: float = 0.0, nesterov: bool = False, trust_coeff: float = 1e-3, eps: float = 1e-8,
    trust_clip: bool = False, always_adapt: bool = False,
) -> None:  # fmt: skip
    """You et al. 2017, in the order of timm: the local rate scales gradient and decay, then momentum."""
    if weight_decay != 0 or always_adapt:
        of_p, of_g, ratio = np.linalg.norm(p), np.linalg.norm(g), 1.0
        if of_p > 0 and of_g > 0:
            ratio = trust_coeff * of_p / (of_g + of_p * weight_decay + eps)
        if trust_clip:
            ratio = min(ratio / lr, 1.0)
        g = (g + weight_decay * p) * ratio
    if momentum:
        b = s["momentum_buffer"]
        b[...] = g if t == 1 else momentum * b + (1 - dampening) * g
        g = g + momentum * b if nesterov else b
    p -= lr * g


def novograd(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-3, betas: Betas = (0.95, 0.98), eps: float = 1e-8,
    weight_decay: float = 0.0, grad_averaging: bool = False, amsgrad: bool = False,
) -> None:  # fmt: skip
    """Ginsburg et al. 2019, NVIDIA's code: the second moment begins as the first gradient's square that is not 0."""
    m, v = s["exp_avg"], s["exp_avg_sq"]
    square = np.sum(g * g)
    v[...] = square if v == 0 else betas[1] * v + (1 - betas[1]) * square
    if amsgrad:
        s["max_exp_avg_sq"][...] = v = np.maximum(s["max_exp_avg_sq"], v)
    update = g / (np.sqrt(v) + eps) + weight_decay * p
    m[...] = betas[0] * m + update * (1 - betas[0] if grad_averaging else 1)
    p -= lr * m


def stableadamw(
    t: int, p: Array, g: Array, s: States, *, lr: float, betas: Betas = (0.9, 0.99), weight_decay: float = 1e-2,
    eps: float = 1e-6,
) -> None:  # fmt: skip
    """Wortsman et al. 2023, algorithm 2, with averages that are corrected as they are made."""
    keep1, keep2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in betas)
    m = average(s["exp_avg"], keep1, g)
    v = average(s["exp_avg_sq"], keep2, g, g)
    rms = math.sqrt((g * g / np.maximum(v, eps**2)).sum() / max(1, g.size))
    rate = lr / max(1.0, rms)
    p -= rate * weight_decay * p
    p -= rate * (m / (np.sqrt(v) + eps))


def adammini(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:  # fmt: skip
    """Zhang et al. 2024, the branch of the authors' code for a tensor that is one block."""
    if not g.size:
        return
    p *= 1 - lr * weight_decay
    m = average(s["m"], betas[0], g)
    v = average(s["vmean"], betas[1], np.array((g * g).sum() / g.size))
    h = np.sqrt(v) / math.sqrt(1 - betas[1] ** t) + eps
    p -= lr * m * (1 / (1 - betas[0] ** t) / h)


def along(x: Array, axis: int) -> Array:
    return x.mean(axis=axis, keepdims=True)


def adafactor(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-2, beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3), d: float = 1.0, weight_decay: float = 0.0,
) -> None:  # fmt: skip
    """Shazeer & Stern 2018, algorithms 4 and 5, as torch has them; torch divides by zero for a tensor without elements."""
    if not g.size:
        return
    eps1, beta2 = np.finfo(p.dtype).eps if eps[0] is None else eps[0], 1 - t**beta2_decay
    rate = max(eps[1], math.sqrt(along(p.ravel() ** 2, 0).item())) * min(lr, t**-0.5)
    p *= 1 - lr * weight_decay
    if g.ndim > 1:
        r, c = (average(s[key], beta2, along(g * g, axis)) for key, axis in (("row_var", -1), ("col_var", -2)))
        v = r @ c / np.maximum(along(r, -2), eps1)
    else:
        v = average(s["variance"], beta2, g, g)
    update = g / np.maximum(np.sqrt(v), eps1)
    p -= rate * update / max(1.0, math.sqrt((update * update).mean()) / d)


def factored(s: States, kind: str, beta: float, x: Array) -> Array:
    """1 / sqrt of the average of x, from one number a row and one a column where x has them."""
    if x.ndim < 2:
        return 1 / np.sqrt(average(s[f"exp_avg_{kind}"], beta, x))
    r, c = (average(s[f"exp_avg_{kind}_{name}"], beta, along(x, axis)) for name, axis in (("row", -1), ("col", -2)))
    return np.sqrt(along(r, -2)) / np.sqrt(r @ c)


def adafactort5(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1.0, eps: Betas = (1e-30, 1e-3), clip_threshold: float = 1.0,
    decay_rate: float = -0.8, momentum: float = 0.0, weight_decay: float = 0.0, scale_parameter: bool = True,
    relative_step: bool = True, warmup_init: bool = False,
) -> None:  # fmt: skip
    """The same as transformers has it; lr is a factor of its relative step."""
    if not g.size:
        return
    rate = lr * min(1e-6 * t if warmup_init else 1e-2, t**-0.5) if relative_step else lr
    if scale_parameter:
        rate *= max(eps[1], math.sqrt(np.mean(p * p)))
    update = g * factored(s, "sq", 1 - t**decay_rate, g * g + eps[0])
    update *= rate / max(1.0, math.sqrt(np.mean(update * update)) / clip_threshold)
    if momentum:
        update = average(s["exp_avg"], momentum, update)
    p -= rate * weight_decay * p
    p -= update


def came(
    t: int, p: Array, g: Array, s: States, *, lr: float = 2e-4, betas: Betas = (0.9, 0.999, 0.9999),
    eps: Betas = (1e-30, 1e-16), clip_threshold: float = 1.0, weight_decay: float = 0.0,
) -> None:  # fmt: skip
    """Luo et al. 2023, algorithm 2, with the epsilons, and no confidence for vectors, of the authors' code."""
    if not g.size:
        return
    update = g * factored(s, "sq", betas[1], g * g + eps[0])
    update /= max(1.0, math.sqrt(np.mean(update * update)) / clip_threshold)
    m = average(s["exp_avg"], betas[0], update)
    trust = factored(s, "res", betas[2], (update - m) ** 2 + eps[1]) if g.ndim > 1 else 1.0
    p -= lr * weight_decay * p
    p -= lr * m * trust


def adamp(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
    weight_decay: float = 0.0, delta: float = 0.1, wd_ratio: float = 0.1, nesterov: bool = False,
) -> None:  # fmt: skip
    """Heo et al. 2021, algorithm 2 as in the authors' code: by channel, else by layer, else as Adam."""
    m, v = average(s["exp_avg"], betas[0], g), average(s["exp_avg_sq"], betas[1], g, g)
    u = (betas[0] * m + (1 - betas[0]) * g if nesterov else m) / (np.sqrt(v) / math.sqrt(1 - betas[1] ** t) + eps)
    for rows in (p.shape[0], 1) if p.ndim > 1 and p.size else ():
        w, h = p.reshape(rows, -1), g.reshape(rows, -1)
        of_w, of_h = np.linalg.norm(w, axis=1), np.linalg.norm(h, axis=1)
        cosine = np.abs((w * h).sum(1)) / (np.maximum(of_w, eps) * np.maximum(of_h, eps))
        if cosine.max() < delta / math.sqrt(w.shape[1]):
            unit = w / (of_w + eps)[:, None]
            u = u - (unit * (unit * u.reshape(rows, -1)).sum(1, keepdims=True)).reshape(p.shape)
            weight_decay *= wd_ratio
            break
    p *= 1 - lr * weight_decay
    p -= lr / (1 - betas[0] ** t) * u


def mars(
    t: int, p: Array, g: Array, s: States, *, lr: float = 3e-3, betas: Betas = (0.95, 0.99), eps: float = 1e-8,
    weight_decay: float = 0.0, amsgrad: bool = False, gamma: float = 0.025, mars_type: str = "mars-adamw",
) -> None:  # fmt: skip
    """Yuan et al. 2024, algorithm 1 with the instances of algorithms 2 and 3, in the approximate form."""
    beta1, beta2 = betas
    c = g + gamma * (beta1 / (1 - beta1)) * (g - s["last_grad"])
    norm = np.linalg.norm(c)
    if norm > 1:
        c = c / norm
    m = average(s["exp_avg"], beta1, c)
    if mars_type == "mars-adamw":
        v = average(s["exp_avg_sq"], beta2, c, c)
        if amsgrad:
            s["max_exp_avg_sq"][...] = v = np.maximum(s["max_exp_avg_sq"], v)
        update = m / ((np.sqrt(v) / math.sqrt(1 - beta2**t) + eps) * (1 - beta1**t))
    else:
        update = np.sign(m)
    p -= lr * (weight_decay * p + update)
    s["last_grad"][...] = g


def lamb(
    t: Sequence[int], p: Sequence[Array], g: Sequence[Array], s: Sequence[States], *, lr: float = 1e-3,
    bias_correction: bool = True, betas: Betas = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.01,
    grad_averaging: bool = True, max_grad_norm: float | None = 1.0, trust_clip: bool = False, always_adapt: bool = False,
) -> None:  # fmt: skip
    """You et al. 2020, algorithm 2, with the clipping and the options of apex and timm."""
    norm = math.sqrt(sum(float(np.sum(each * each)) for each in g))
    clip = max(norm / max_grad_norm, 1.0) if max_grad_norm else 1.0
    for t_k, p_k, g_k, s_k in zip(t, p, g, s, strict=True):
        g_k, m, v = g_k / clip, s_k["exp_avg"], s_k["exp_avg_sq"]
        m[...] = betas[0] * m + (1 - betas[0] if grad_averaging else 1.0) * g_k
        average(v, betas[1], g_k, g_k)
        bias1, bias2 = (1 - b**t_k if bias_correction else 1.0 for b in betas)
        update = m / bias1 / (np.sqrt(v) / math.sqrt(bias2) + eps)
        if weight_decay != 0:
            update = update + weight_decay * p_k
        if weight_decay != 0 or always_adapt:
            of_p, of_u = np.linalg.norm(p_k), np.linalg.norm(update)
            ratio = of_p / of_u if of_p > 0 and of_u > 0 else 1.0
            update = update * (min(ratio, 1.0) if trust_clip else ratio)
        p_k -= lr * update


def prodigy(
    t: Sequence[int], p: Sequence[Array], g: Sequence[Array], s: Sequence[States], *, lr: float = 1.0,
    betas: Betas = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0, decouple: bool = True,
    use_bias_correction: bool = False, safeguard_warmup: bool = False, d0: float = 1e-6, d_coef: float = 1.0,
    growth_rate: float = math.inf,
) -> None:  # fmt: skip
    """Mishchenko & Defazio 2024, algorithm 4, in the order of the authors' code; what all tensors share is the first one's."""
    first, (beta1, beta2) = s[0], betas
    if t[0] == 1:
        first["d"][...] = first["d_max"][...] = d0
    d, beta3 = float(first["d"]), math.sqrt(beta2)
    rate = d * lr * (math.sqrt(1 - beta2 ** t[0]) / (1 - beta1 ** t[0]) if use_bias_correction else 1)
    if not decouple:
        g = [g_k + weight_decay * p_k for g_k, p_k in zip(g, p, strict=True)]
    delta = denominator = 0.0
    for p_k, g_k, s_k in zip(p, g, s, strict=True):
        delta += d / d0 * rate * float(np.sum(g_k * (s_k["p0"] - p_k)))
        average(s_k["exp_avg"], beta1, d * g_k)
        average(s_k["exp_avg_sq"], beta2, d * g_k, d * g_k)
        s_k["s"][...] = beta3 * s_k["s"] + d / d0 * (d if safeguard_warmup else rate) * g_k
        denominator += float(np.abs(s_k["s"]).sum())
    if denominator == 0:
        return
    first["d_numerator"][...] = beta3 * first["d_numerator"] + delta
    found = d_coef * float(first["d_numerator"]) / denominator
    d = max(d, found) if d == d0 else d
    first["d_max"][...] = max(float(first["d_max"]), found)
    first["d"][...] = d = min(float(first["d_max"]), d * growth_rate)
    for p_k, s_k in zip(p, s, strict=True):
        p_k -= rate * weight_decay * p_k if decouple else 0
        p_k -= rate * s_k["exp_avg"] / (np.sqrt(s_k["exp_avg_sq"]) + d * eps)
        s_k |= {key: first[key] for key in ("d", "d_max", "d_numerator")}


# As FORMULAS; what a tensor has of each row or column, or only with fewer than two axes, ends with " row", " column" or " flat".
OF_SUMS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "LARS": (lars, ("momentum_buffer",)),
    "NovoGrad": (novograd, ("exp_avg", "exp_avg_sq()", "max_exp_avg_sq()")),
    "StableAdamW": (stableadamw, ("exp_avg", "exp_avg_sq")),
    "AdamP": (adamp, ("exp_avg", "exp_avg_sq")),
    "AdamMini": (adammini, ("m", "vmean()")),
    "Adafactor": (adafactor, ("row_var row", "col_var column", "variance flat")),
    "AdafactorT5": (
        adafactort5,
        ("exp_avg", "exp_avg_sq_row row", "exp_avg_sq_col column", "exp_avg_sq flat"),
    ),
    "CAME": (
        came,
        (
            *("exp_avg", "exp_avg_sq_row row", "exp_avg_sq_col column", "exp_avg_sq flat"),
            *("exp_avg_res_row row", "exp_avg_res_col column"),
        ),
    ),
    "MARS": (mars, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "last_grad")),
}

# The same of those that look at all tensors at once, `formula(steps, params, grads, states, **options)`: those with a gradient.
TOGETHER: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "LAMB": (lamb, ("exp_avg", "exp_avg_sq")),
    "Prodigy": (prodigy, ("exp_avg", "exp_avg_sq", "s", "p0 start", "d()", "d_max()", "d_numerator()")),
}
