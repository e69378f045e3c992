"""Authors' formulas in NumPy float64, for the optimizers that torch has not: each read from the paper or the authors' code, in
its order of operations, not from the rule. Used by `cases`; those that optax has are held against it in `test_oracle`.

`formula(step, p, g, states, **options)` changes `p` and `states` in place; those of rules that sum are in `formulas_sums`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
States = dict[str, Array]
Betas = tuple[float, ...]
SHARES = ("weight_max()", "weight_share()")


def decayed(p: Array, g: Array, weight_decay: float) -> Array:
    """The gradient with the decay that is coupled to it."""
    return np.asarray(g + weight_decay * p if weight_decay else g)


def average(state: Array, keep: float, *new: Array) -> Array:
    """An exponential moving average of a product, in place; multiplied in the order of torch's `addcmul_`, as authors have it."""
    state[...] = keep * state + prod(new, start=1 - keep)
    return state


def gd(t: int, p: Array, g: Array, s: States, *, lr: float, weight_decay: float = 0.0) -> None:
    """Gradient descent: p <- p - lr g, the decay in the gradient as in torch's SGD."""
    p -= lr * decayed(p, g, weight_decay)


def dgd(t: int, p: Array, g: Array, s: States, *, lr: float, lr_decay: float = 0.9, weight_decay: float = 0.0) -> None:
    """v <- v + g;  p <- p - a v;  a <- a lr_decay, a = lr at the first step; the decay in the gradient."""
    s["velocity"][...] += decayed(p, g, weight_decay)
    p -= lr * lr_decay ** (t - 1) * s["velocity"]


def lion(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-4, betas: Betas = (0.9, 0.99), weight_decay: float = 0.0
) -> None:
    """Chen et al. 2023, algorithm 2, with the decay before the step."""
    m = s["exp_avg"]
    update = np.sign(betas[0] * m + (1 - betas[0]) * g)
    p *= 1 - lr * weight_decay
    p -= lr * update
    average(m, betas[1], g)


def signsgd(t: int, p: Array, g: Array, s: States, *, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
    """Bernstein et al. 2018, algorithm 1, with one worker."""
    p -= lr * (np.sign(g) + weight_decay * p)


def signum(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0
) -> None:
    """Bernstein et al. 2018, algorithm 2: x <- x - d (sign(m) + lambda x)."""
    p -= lr * (np.sign(average(s["momentum_buffer"], momentum, g)) + weight_decay * p)


def tiger(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-3, beta: float = 0.965, weight_decay: float = 0.01
) -> None:
    """Su 2023: theta <- theta - eta (sign(m) + lambda theta)."""
    p -= lr * (np.sign(average(s["exp_avg"], beta, g)) + weight_decay * p)


def ademamix(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-3, betas: Betas = (0.9, 0.999, 0.9999), alpha: float = 2.0,
    alpha_warmup: int = 0, beta3_warmup: int = 0, eps: float = 1e-8, weight_decay: float = 0.0,
) -> None:  # fmt: skip
    """Pagliardini et al. 2024: the schedulers of appendix A.1 and algorithm 1."""
    beta1, beta2, beta3 = betas
    if t < alpha_warmup:
        alpha = t / alpha_warmup * alpha
    if t < beta3_warmup:

        def steps(beta: float) -> float:
            return math.log(0.5) / math.log(beta + 1e-8) - 1

        a = t / beta3_warmup
        beta3 = math.pow(0.5, 1 / ((1 - a) * steps(beta1) + a * steps(beta3) + 1))
    fast, slow, square = s["exp_avg_fast"], s["exp_avg_slow"], s["exp_avg_sq"]
    average(fast, beta1, g)
    average(slow, beta3, g)
    average(square, beta2, g, g)
    denom = np.sqrt(square) / math.sqrt(1 - beta2**t) + eps
    update = (fast / (1 - beta1**t) + alpha * slow) / denom
    p -= lr * (update + weight_decay * p)


def adan(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-3, betas: Betas = (0.98, 0.92, 0.99), eps: float = 1e-8,
    weight_decay: float = 0.0, no_prox: bool = False,
) -> None:  # fmt: skip
    """Xie et al. 2022, the authors' single-tensor code."""
    beta1, beta2, beta3 = betas
    previous = s["previous_grad"]
    if t == 1:
        previous[...] = g
    diff = g - previous
    m = average(s["exp_avg"], beta1, g)
    d = average(s["exp_avg_diff"], beta2, diff)
    u = diff * beta2 + g
    n = average(s["exp_avg_sq"], beta3, u, u)
    denom = np.sqrt(n) / math.sqrt(1 - beta3**t) + eps
    if no_prox:
        p *= 1 - lr * weight_decay
    p -= lr / (1 - beta1**t) * (m / denom)
    p -= lr * beta2 / (1 - beta2**t) * (d / denom)
    if not no_prox:
        p /= 1 + lr * weight_decay
    previous[...] = g


def adabelief(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-16,
    weight_decay: float = 0.0,
) -> None:  # fmt: skip
    """Zhuang et al. 2020, algorithm 2, with decoupled decay."""
    p *= 1 - lr * weight_decay
    m = average(s["exp_avg"], betas[0], g)
    v = average(s["exp_avg_var"], betas[1], g - m, g - m)
    v += eps
    p -= lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v) / math.sqrt(1 - betas[1] ** t) + eps)


def adopt(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-3, betas: Betas = (0.9, 0.9999), eps: float = 1e-6,
    weight_decay: float = 0.0, decouple: bool = False,
) -> None:  # fmt: skip
    """Taniguchi et al. 2024, algorithm 2 with c_t = t^(1/4), in the authors' order."""
    if not decouple:
        g = decayed(p, g, weight_decay)
    m, v = s["exp_avg"], s["exp_avg_sq"]
    if t == 1:
        v[...] = g * g
        return
    if decouple:
        p -= lr * weight_decay * p
    clip = (t - 1) ** 0.25
    average(m, betas[0], np.clip(g / np.maximum(np.sqrt(v), eps), -clip, clip))
    p -= lr * m
    average(v, betas[1], g, g)


def laprop(
    t: int, p: Array, g: Array, s: States, *, lr: float = 4e-4, betas: Betas = (0.9, 0.999), eps: float = 1e-15,
    weight_decay: float = 0.0,
) -> None:  # fmt: skip
    """Ziyin et al. 2020, algorithm 1: mu collects normalised gradients, and is corrected when it is used."""
    v = average(s["exp_avg_sq"], betas[1], g, g)
    m = average(s["exp_avg"], betas[0], g / (np.sqrt(v) / math.sqrt(1 - betas[1] ** t) + eps))
    p -= lr * weight_decay * p + lr * m / (1 - betas[0] ** t)


def grams(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> None:  # fmt: skip
    """Cao et al. 2024, the authors' code: the correction is in the rate."""
    m = average(s["exp_avg"], betas[0], g)
    denom = np.sqrt(average(s["exp_avg_sq"], betas[1], g, g)) + eps
    rate = lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
    p -= lr * weight_decay * p
    p -= rate * np.sign(g) * np.abs(m / denom)


def yogi(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-2, betas: Betas = (0.9, 0.999), eps: float = 1e-3,
    weight_decay: float = 0.0, initial_accumulator_value: float = 1e-6,
) -> None:  # fmt: skip
    """Zaheer et al. 2018, algorithm 2, with the first values and corrections of the authors' code."""
    if t == 1:
        for key in ("exp_avg", "exp_avg_sq"):
            s[key][...] = initial_accumulator_value
    p *= 1 - lr * weight_decay
    m, v = average(s["exp_avg"], betas[0], g), s["exp_avg_sq"]
    v -= (1 - betas[1]) * np.sign(v - g**2) * g**2
    p -= lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v) / math.sqrt(1 - betas[1] ** t) + eps)


def qhadam(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-3, betas: Betas = (0.9, 0.999), nus: Betas = (1.0, 1.0),
    eps: float = 1e-8, weight_decay: float = 0.0, decouple_weight_decay: bool = False,
) -> None:  # fmt: skip
    """Ma & Yarats 2018, algorithm 1: averages debiased by the sum of their weights, as the authors' code keeps it."""
    if decouple_weight_decay:
        p *= 1 - lr * weight_decay
    else:
        g = decayed(p, g, weight_decay)
    averages = []
    for key, beta, new in (("exp_avg", betas[0], g), ("exp_avg_sq", betas[1], g * g)):
        kept = 1 - 1 / sum(beta**k for k in range(t))
        s[key][...] = kept * s[key] + (1 - kept) * new
        averages.append(s[key])
    p -= lr * (nus[0] * averages[0] + (1 - nus[0]) * g) / (np.sqrt(nus[1] * averages[1] + (1 - nus[1]) * g * g) + eps)


def focus(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-2, betas: Betas = (0.9, 0.999), gamma: float = 0.1,
    weight_decay: float = 0.0,
) -> None:  # fmt: skip
    """Liu et al. 2025, algorithm 1: the average of the parameters with its first value p, which is no average with 0."""
    m, mean = average(s["exp_avg"], betas[0], g), s["pbar"]
    weights = sum(betas[1] ** k for k in range(t))  # the newest parameter has weight 1, the one before beta2 ...
    mean += (p - mean) / weights
    p -= lr * weight_decay * mean
    p -= lr * np.sign(m) + lr * gamma * np.sign(p - mean)


def madgrad(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-2, momentum: float = 0.9, weight_decay: float = 0.0,
    eps: float = 1e-6, decouple_decay: bool = False,
) -> None:  # fmt: skip
    """Defazio & Jelassi 2021, algorithm 1, with the rates and decays of the authors' code."""
    lr = lr + eps if lr else lr
    if not decouple_decay:
        g = decayed(p, g, weight_decay)
    size = lr * math.sqrt(t)
    s["grad_sum_sq"][...] += size * g * g
    s["s"][...] += size * g
    rms = np.cbrt(s["grad_sum_sq"]) + eps
    z = s["x0"] - s["s"] / np.where(rms == 0, np.inf, rms)
    decay = lr * weight_decay * p if decouple_decay else 0.0
    p *= momentum
    p += (1 - momentum) * z - decay


def adamatan2(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-4, betas: Betas = (0.9, 0.99), weight_decay: float = 0.0,
    a: float = 1.27, b: float = 1.0,
) -> None:  # fmt: skip
    """Everett et al. 2024, as lucidrains has it."""
    m, v = average(s["exp_avg"], betas[0], g), average(s["exp_avg_sq"], betas[1], g, g)
    p *= 1 - lr * weight_decay
    p -= lr * a * np.arctan2(m / (1 - betas[0] ** t), np.sqrt(v * (b * b / (1 - betas[1] ** t))))


def schedule_free(
    t: int, p: Array, u: Array, s: States, rate: float, kept: float, r: float, weight_lr_power: float
) -> None:
    """Defazio et al. 2024, algorithm 1 with x, y and z written out: z is stepped, x is the weighted average of all z, and the
    parameter is y, between both. The average is by the sum of the weights, and `weight_share` what the last one is of it.
    """
    z, h, c = s["z"], s["weight_max"], s["weight_share"]
    x = p + (1 - 1 / kept) * (z - p)
    total = float((t - 1) ** r * h / c) if c > 0 else 0.0
    h[...] = max(float(h), rate**weight_lr_power)
    weight = t**r * float(h)
    c[...] = weight / (total + weight) if total + weight else 0.0
    z -= rate * u
    p[...] = z + kept * (x + c * (z - x) - z)


def schedulefreesgd(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1.0, momentum: float = 0.9, weight_decay: float = 0.0,
    warmup_steps: int = 0, r: float = 0.0, weight_lr_power: float = 2.0,
) -> None:  # fmt: skip
    """Defazio et al. 2024."""
    if t == 1:
        s["z"][...] = p
    rate = lr * (t / warmup_steps if t < warmup_steps else 1.0)
    schedule_free(t, p, decayed(p, g, weight_decay), s, rate, momentum, r, weight_lr_power)


def schedulefreeadamw(
    t: int, p: Array, g: Array, s: States, *, lr: float = 2.5e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
    weight_decay: float = 0.0, warmup_steps: int = 0, r: float = 0.0, weight_lr_power: float = 2.0,
) -> None:  # fmt: skip
    """Defazio et al. 2024, with the decay at y."""
    if t == 1:
        s["z"][...] = p
    v = average(s["exp_avg_sq"], betas[1], g, g)
    u = decayed(p, g / (np.sqrt(v / (1 - betas[1] ** t)) + eps), weight_decay)
    rate = lr * (t / warmup_steps if t < warmup_steps else 1.0)
    schedule_free(t, p, u, s, rate, betas[0], r, weight_lr_power)


def schedulefreeradam(
    t: int, p: Array, g: Array, s: States, *, lr: float = 2.5e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-8,
    weight_decay: float = 0.0, r: float = 0.0, weight_lr_power: float = 2.0, silent_sgd_phase: bool = True,
) -> None:  # fmt: skip
    """The same with RAdam's rectification in the place of a warm-up, as the schedulefree package has it."""
    if t == 1:
        s["z"][...] = p
    power = betas[1] ** t
    v = average(s["exp_avg_sq"], betas[1], g, g)
    most = 2 / (1 - betas[1]) - 1
    rho = most - 2 * t * power / (1 - power)
    u, factor = g, 0.0 if silent_sgd_phase else 1.0
    if rho > 4:
        u = g / (np.sqrt(v / (1 - power)) + eps)
        factor = math.sqrt((rho - 4) / (most - 4) * (rho - 2) / (most - 2) * most / rho)
    schedule_free(t, p, decayed(p, u, weight_decay), s, lr * factor, betas[0], r, weight_lr_power)


def sophiag(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-4, betas: Betas = (0.965, 0.99), rho: float = 0.04,
    weight_decay: float = 0.1, bs: int = 5120,
) -> None:  # fmt: skip
    """Liu et al. 2023, the authors' code; the estimate of the curvature is the caller's."""
    p *= 1 - lr * weight_decay
    m = average(s["exp_avg"], betas[0], g)
    ratio = np.minimum(np.abs(m) / (rho * bs * s["hessian"] + 1e-15), 1)
    p -= lr * np.sign(m) * ratio


# Class name -> formula, and the names of its states; one of which a tensor has one number ends with "()", one that begins as the
# parameter with " start".
FORMULAS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "GD": (gd, ()),
    "DGD": (dgd, ("velocity",)),
    "Lion": (lion, ("exp_avg",)),
    "SignSGD": (signsgd, ()),
    "Signum": (signum, ("momentum_buffer",)),
    "Tiger": (tiger, ("exp_avg",)),
    "AdEMAMix": (ademamix, ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq")),
    "Adan": (adan, ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad")),
    "AdaBelief": (adabelief, ("exp_avg", "exp_avg_var")),
    "ADOPT": (adopt, ("exp_avg", "exp_avg_sq")),
    "LaProp": (laprop, ("exp_avg", "exp_avg_sq")),
    "Grams": (grams, ("exp_avg", "exp_avg_sq")),
    "Yogi": (yogi, ("exp_avg", "exp_avg_sq")),
    "QHAdam": (qhadam, ("exp_avg", "exp_avg_sq")),
    "FOCUS": (focus, ("exp_avg", "pbar")),
    "MADGRAD": (madgrad, ("grad_sum_sq", "s", "x0 start")),
    "AdamAtan2": (adamatan2, ("exp_avg", "exp_avg_sq")),
    "ScheduleFreeSGD": (schedulefreesgd, ("z", *SHARES)),
    "ScheduleFreeAdamW": (schedulefreeadamw, ("z", "exp_avg_sq", *SHARES)),
    "ScheduleFreeRAdam": (schedulefreeradam, ("z", "exp_avg_sq", *SHARES)),
    "SophiaG": (sophiag, ("exp_avg", "hessian")),
}
