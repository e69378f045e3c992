"""Parts that several rules share: plain functions in the language, whose statements stand where a rule calls them.

Called by rules and by their `prepare`; each is the only place of its arithmetic. Knows no rule by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from gpuopt.rules.declared import IDENTITY
from gpuopt.rules.language import State, column_sum, columns, maximum, rows, rule, sqrt, where

# Of rules that orthogonalize: coefficients and steps of the iteration (`gpuopt.linalg`), and what the rate is multiplied with.
Coefficients: TypeAlias = Literal["keller", "polar_express", "cubic5", "cans", "aol", "deepseek", "converging"]
Steps: TypeAlias = Literal[None, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
Scaling: TypeAlias = Literal[None, "original", "match_rms_adamw", "rms_to_rms", "none"]


def heavy_ball(g: Any, b: Any, momentum: Any, gain: Any, *, nesterov: bool) -> Any:
    """The direction of a step with momentum, and the buffer: Sutskever et al. 2013, in torch's form."""
    b = momentum * b + gain * g
    d = b
    if nesterov:
        d = g + momentum * b
    return d, b


def first_undamped(step: Any, dampening: Any) -> Any:
    """What the first gradient enters the buffer with is 1, whatever the dampening."""
    gain = 1 if step == 1 else 1 - dampening
    return gain


def needed_by_nesterov(nesterov: bool, momentum: float, dampening: float) -> str | None:
    """What is wrong with these options together."""
    if nesterov and (momentum <= 0 or dampening != 0):
        return f"nesterov with momentum {momentum} and dampening {dampening}: expected a momentum and no dampening"
    return None


def over_root(g: Any, r: Any, c: Any) -> Any:
    """g / sqrt(r c / mean(r)), a second moment of one number a row and one a column, as transformers and CAME's authors have it."""
    u = g * (1 / sqrt(r / (column_sum(r) / rows(g)))) * (1 / sqrt(c))
    return u


def averaged_step(
    p: Any, z: Any, u: Any, h: Any, c: Any, kept: Any, rate: Any, peak: Any, growth: Any, before: Any
) -> Any:
    """A step of Defazio et al. 2024 along u: p, between z and the average of all z, and what the average needs, see `weighed`.

    h: the largest rate so far, to the power; c: the share of this step in the average.
    """
    last = before * h
    h = maximum(h, peak)
    weight = growth * h
    total = last / where(c > 0, c, 1) + weight
    c = weight / where(total > 0, total, 1)
    p = where(z == p, p, p + (z - p) * c) + rate * (kept * (1 - c) - 1) * u
    z = z - rate * u
    return p, z, h, c


def weighed(step: Any, rate: Any, r: Any, weight_lr_power: Any) -> Any:
    """What `averaged_step` takes of the step: the weights are step^r max(rates so far)^weight_lr_power."""
    return rate**weight_lr_power, step**r, (step - 1) ** r


def evaluated(p: Any, z: Any, kept: Any) -> Any:
    """The average, of the point that is trained."""
    return p + (z - p) * (1 - 1 / kept)


def resumed(p: Any, z: Any, kept: Any) -> Any:
    """The point that is trained, of the average."""
    return p + (z - p) * (1 - kept)


def adam_moments(m: Any, v: Any, g: Any, beta1: Any, beta2: Any) -> Any:
    """Both averages of Kingma & Ba 2015."""
    m = m + (g - m) * (1 - beta1)
    v = beta2 * v + (1 - beta2) * g * g
    return m, v


def adam_moved(p: Any, m: Any, v: Any, eps: Any, step_size: Any, inverse: Any) -> Any:
    """A parameter behind its step by both averages; step_size, inverse: see `debiased`."""
    p = p - step_size * m / (sqrt(v) * inverse + eps)
    return p


def adamw_step(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    lr: Any,
    weight_decay: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    step_size: Any,
    inverse: Any,
) -> Any:
    """A step of Loshchilov & Hutter 2019; step_size, inverse: see `debiased`."""
    p = p * (1 - lr * weight_decay)
    m, v = adam_moments(m, v, g, beta1, beta2)
    p = adam_moved(p, m, v, eps, step_size, inverse)
    return p, m, v


def debiased(step: Any, lr: Any, beta1: Any, beta2: Any) -> Any:
    """The rate over the bias of the first average, and one over the root of that of the second."""
    return lr / (1 - beta1**step), 1 / sqrt(1 - beta2**step)


def with_adamw(*states: State, title: str | None = None, ranges: Mapping[str, str] = {}) -> Any:
    """The decorator of a rule that steps matrices with these states, under `if matrix:`, and all else by `adamw_step`; its
    `prepare` is `rest_prepared`, or has that in it. ranges: of hyperparameters of its own.
    """
    rest = State("m", "exp_avg", when="not matrix"), State("v", "exp_avg_sq", when="not matrix", holds="squares")
    betas = {"adamw_betas": ("adamw_beta1", "adamw_beta2")}
    return rule(
        state=(*states, *rest),
        title=title,
        flatten="convolutions",
        tuples=betas,
        ranges={"adamw_betas": "[0, 1)", **ranges},
        rest="AdamW",
    )


def rest_prepared(step: Any, *, lr: Any, adamw_beta1: Any, adamw_beta2: Any) -> Any:
    """What `adamw_step` takes of the step."""
    step_size, inverse = debiased(step, lr, adamw_beta1, adamw_beta2)
    return dict(step_size=step_size, inverse=inverse)


def momentum_of(g: Any, b: Any, momentum: Any, *, nesterov: bool) -> Any:
    """The direction of a step with an average of gradients, and the average: as Jordan et al. 2024 have it."""
    b = b + (g - b) * (1 - momentum)
    u = b
    if nesterov:
        u = g + (b - g) * momentum
    return u, b


def matrix_scale(p: Any, *, adjust_lr_fn: Scaling) -> Any:
    """What the rate of an orthogonal update is multiplied with: "original" (or None) sqrt(max(1, rows / columns)), Jordan et al.
    2024; "match_rms_adamw" 0.2 sqrt(max(rows, columns)), Liu et al. 2025; "rms_to_rms" sqrt(rows / columns), Bernstein & Newhouse
    2024; "none" 1.
    """
    if adjust_lr_fn == "match_rms_adamw":
        s = 0.2 * sqrt(maximum(rows(p), columns(p)))
    elif adjust_lr_fn == "rms_to_rms":
        s = sqrt(rows(p) / columns(p))
    elif adjust_lr_fn == "none":
        s = 1
    else:
        s = sqrt(maximum(1, rows(p) / columns(p)))
    return s


# Of rules that have an average of gradients along each side of a matrix, and something made of it now and then.
OF_SIDES = {"precondition_frequency": "[1, inf)", "max_precond_dim": "[0, inf)"}


def sides(name: str, key: str) -> tuple[State, ...]:
    """The states: what is made, under this name and key, of the left side and the right one, and their averages."""

    def state(name: str, key: str, side: str, init: float | str = 0.0) -> State:
        return State(f"{name}_{side}", f"{key}_{side}", when=side, init=init, shape=side, readonly=True)

    both = ("left", "right")
    made = [state(name, key, side, IDENTITY) for side in both]
    return (*made, *(state("gram", "gram", side) for side in both))


def is_multiple(count: Any, of: Any) -> Any:
    """1 where a number of steps is a multiple of another, else 0: a quotient is whole where it survives the addition of 2^52."""
    found = where((count / of + 4503599627370496.0 - 4503599627370496.0) * of == count, 1, 0)
    return found


def bases_turned(known: Any, frequency: Any) -> Any:
    """What `learn_bases` does to bases whose averages know so many gradients: all eigenvectors behind the first one, a power
    iteration behind every so many others.
    """
    due = is_multiple(known - 1, frequency)
    renewal = where(known == 1, 2, where(known > 1, due, 0))
    return renewal


def gain_of(beta2: Any, shampoo_beta: Any) -> Any:
    """How much of a gradient enters averages with a beta of their own, or with beta2 where that is negative."""
    gain = 1 - where(shampoo_beta < 0, beta2, shampoo_beta)
    return gain
