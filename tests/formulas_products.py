"""Formulas of rules whose products keep states of their own: projections, choices, factors; as those of `formulas_matrices`, for
`cases`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from formulas import Array, Betas, States, average
from formulas_matrices import VECTORS, adamw, matrices, newton_schulz, scale
from gpuopt.formats import philox


def normals(s: States, t: int, shape: tuple[int, ...]) -> Array:
    """Box & Muller 1958, in the complex plane, of the library's random words."""
    count = int(np.prod(shape))
    seed, tensor, stream = 0, s["_number"], 254
    u = philox.words(seed, tensor, t, stream, 0, count + count % 2).reshape(-1, 2) / 2**32  # type: ignore[arg-type]
    z = np.sqrt(-2 * np.log(u[:, 0] + 2**-32)) * np.exp(2j * np.pi * u[:, 1])
    return z.view(np.float64)[:count].reshape(shape)


def apollo(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-3, betas: Betas = (0.9, 0.999), eps: float = 1e-6,
    weight_decay: float = 0.0, rank: int = 256, scale: float = 1.0, scale_type: str = "channel", update_proj_gap: int = 200,
    norm_growth: float = 1.01, matrix: bool = True,
) -> None:  # fmt: skip
    """Zhu et al. 2024, the authors' code, on every matrix of a tensor, but for a rank no larger than the shorter side."""
    if p.ndim < 2 or not matrix:
        adamw(t, p, g, s, lr, weight_decay, betas, eps)
        return
    count, rows, columns = matrices(p)
    batch, tall = (p.shape[:-2] if p.ndim < 4 else ()), rows >= columns
    low, short = min(rank, rows, columns), min(rows, columns)
    states = {"projection": (low, short), "update_length": (1, 1)}
    states |= dict.fromkeys(("projected_avg", "projected_avg_sq"), (rows, low) if tall else (low, columns))
    of = {key: s.setdefault(key, np.zeros((*batch, *shape), p.dtype)) for key, shape in states.items()}
    if (t - 1) % update_proj_gap == 0:
        of["projection"][...] = normals(s, t, of["projection"].shape) / np.sqrt(max(low, 1))
    for k in range(count):
        own, grad = p.reshape(count, rows, columns)[k], g.reshape(count, rows, columns)[k]
        projection, length, m, v = (of[key].reshape(count, *shape)[k] for key, shape in states.items())
        r = grad @ projection.T if tall else projection @ grad
        average(m, betas[0], r)
        average(v, betas[1], r, r)
        u, axis = m / (np.sqrt(v) + eps), None if scale_type == "tensor" else int(tall)
        factor = np.linalg.norm(u, axis=axis) / (np.linalg.norm(r, axis=axis) + 1e-8)
        scaled = grad * (factor[:, None] if tall and axis is not None else factor)
        size = np.linalg.norm(scaled)
        limiter = max(size / (length[0, 0] + 1e-8), norm_growth) / norm_growth if length[0, 0] else 1.0
        length[...] = size / limiter
        own -= lr * np.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) * np.sqrt(scale) * scaled / limiter
        own *= 1 - lr * weight_decay


def dion2(
    t: int, p: Array, g: Array, s: States, *, lr: float = 0.01, weight_decay: float = 0.01, fraction: float = 0.25,
    ef_decay: float = 0.95, ns_coefficients: str = "polar_express", ns_steps: int | None = None,
    adjust_lr_fn: str = "rms_to_rms", adamw_betas: Betas = (0.9, 0.95), adamw_eps: float = 1e-8, matrix: bool = True,
) -> None:  # fmt: skip
    """Ahn et al. 2025, the authors' code, on every matrix; the momentum before its decay and what was chosen are told."""
    if p.ndim < 2 or not matrix:
        adamw(t, p, g, s, lr, weight_decay, adamw_betas, adamw_eps)
    if p.ndim < 2 or not matrix or not p.size:
        return
    decayed: Any = s.setdefault("_decayed", np.zeros_like(p))
    decayed += g
    s["momentum_buffer"][...] = decayed
    p *= 1 - lr * weight_decay
    count, rows, columns = matrices(p)
    told = [s["chosen_rows"].reshape(count, rows), s["chosen_columns"].reshape(count, columns)]
    both = decayed.reshape(count, rows, columns), p.reshape(count, rows, columns), *told
    for b, own, of_rows, of_columns in zip(*both, strict=True):
        tall = rows > columns
        lines, chosen, other = (b.T, of_columns, of_rows) if tall else (b, of_rows, of_columns)
        most = np.lexsort((np.arange(len(lines)), -np.abs(lines).sum(1)))[: max(1, math.ceil(fraction * len(lines)))]
        u = newton_schulz(lines[most], ns_coefficients, ns_steps)
        lines[most] *= ef_decay
        (own.T if tall else own)[most] -= lr * scale(p, adjust_lr_fn) * u
        chosen[...], other[...] = 0, 1
        chosen[most] = 1


def triangular_step(q: Array, a: Array, w: Array, precond_lr: float) -> Array:
    """What is taken off a factor by the author's `_update_precond`; a, w: the side's axis first."""
    first, second = a @ a.T, w @ w.T
    if q.ndim < 2:
        first, second = np.diag(first), np.diag(second)
        return precond_lr * (first - second) * q / (first + second).max()
    both = first + second
    x = both[:, np.argmax((both * both).sum(0))] @ both
    bound = np.linalg.norm(both @ (x / np.linalg.norm(x)))
    return np.triu(precond_lr * (first - second)) / bound @ q


def kron(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0,
    precond_lr: float = 0.1, precond_init_scale: float = 1.0, max_size_triangular: int = 8192, max_prob: float = 1.0,
    min_prob: float = 0.03, prob_decay: float = 0.001, flat_start: int = 500, adamw_betas: Betas = (0.9, 0.95),
    adamw_eps: float = 1e-8, matrix: bool = True,
) -> None:  # fmt: skip
    """Li 2024, kron_torch 0.3.3, on every matrix, with random numbers of the library, and noise in the update alone."""
    if p.ndim < 2 or not matrix:
        adamw(t, p, g, s, lr, weight_decay, adamw_betas, adamw_eps)
        return
    count, *sides = matrices(p)
    batch = p.shape[:-2] if p.ndim < 4 else ()
    kept = []
    for side, n in zip(("left", "right"), sides, strict=True):
        few = n if n <= max_size_triangular else 1
        q = s.setdefault(f"factor_{side}", np.zeros((*batch, few, n), p.dtype))
        if t == 1:
            q[...] = np.sqrt(precond_init_scale) * (np.eye(n) if few == n else 1.0)
        kept.append(q.reshape(count, few, n) if p.size else q)
    average(s["momentum_buffer"], momentum, g)
    seed, tensor, stream = 0, s["_number"], 253
    update, balance = philox.words(seed, tensor, t, stream, 0, 2) / 2**32  # type: ignore[arg-type]
    due = update < min(max_prob, max(min_prob, max_prob * np.exp(-prob_decay * (t - 1 - flat_start))))
    noise = normals(s, t, p.shape).reshape(count, *sides)
    for k in range(count):
        own = p.reshape(count, *sides)[k]
        d = s["momentum_buffer"].reshape(count, *sides)[k] / (1 - momentum**t)
        left, right = (q[k][0] if len(q[k]) < q.shape[-1] else q[k] for q in kept)
        if due and balance < 0.01:
            sizes = [abs(q).max() for q in (left, right)]
            for q, size in zip((left, right), sizes, strict=True):
                q *= np.sqrt(sizes[0] * sizes[1]) / size
        full = [np.diag(q) if q.ndim < 2 else q for q in (left, right)]
        if due:
            v = noise[k]
            damped = d + np.sqrt(np.finfo(np.float32).eps) * abs(d).mean() * v
            a, w = full[0] @ damped @ full[1].T, np.linalg.inv(full[0]).T @ v @ np.linalg.inv(full[1])
            left -= triangular_step(left, a, w, precond_lr)
            right -= triangular_step(right, a.T, w.T, precond_lr)
            full = [np.diag(q) if q.ndim < 2 else q for q in (left, right)]
        u = full[0].T @ full[0] @ d @ full[1].T @ full[1]
        u *= min(1.0, 1.1 / (np.sqrt((u * u).mean()) + 1e-12))
        own -= lr * (u + weight_decay * own)


OF_PRODUCTS: dict[str, tuple[Callable[..., None], Sequence[str]]] = {
    "APOLLO": (apollo, VECTORS),
    "Kron": (kron, ("momentum_buffer matrix", *VECTORS)),
    "Dion2": (dion2, ("momentum_buffer matrix", "chosen_rows row", "chosen_columns column", *VECTORS)),
}
