"""Formulas of rules that multiply matrices, as those of `formulas`: from the papers and the authors' code and not from the rules;
the iteration is written for one matrix at a time, as they have it. Used by `cases`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from formulas import Array, Betas, States, average

KELLER = [(3.4445, -4.7750, 2.0315)] * 5
POLAR_EXPRESS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]
CUBIC = [
    (3.3656576, -3.3420992, 0.0),
    (2.5744352, -1.4957376, 0.0),
    (2.5368962, -1.4312570, 0.0),
    (2.4418906, -1.2764040, 0.0),
]
CUBIC += [(2.2230472, -0.9630650, 0.0)]
TABLES = {"keller": KELLER, "polar_express": POLAR_EXPRESS, "cubic5": CUBIC, "converging": [(2.0, -1.5, 0.5)] * 12}


def newton_schulz(x: Array, table: str = "keller", steps: int | None = None) -> Array:
    """Jordan et al. 2024 on one matrix, in torch's order: transposed where it is tall, divided by its norm."""
    rows = TABLES[table][:steps] if table != "keller" else [KELLER[0]] * (steps or 5)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    size = np.linalg.norm(x @ x.T) ** 0.5 if table == "converging" else np.sqrt((x * x).sum())
    x = x / (max(float(size), 1e-7) * (1.02 if table == "polar_express" else 1.0))
    for a, b, c in rows:
        y = x @ x.T
        x = a * x + (b * y + c * (y @ y)) @ x
    return x.T if tall else x


def matrices(p: Array) -> tuple[int, int, int]:
    """The shape of a tensor as matrices: convolutions flattened, three axes a batch."""
    return (
        (1, p.shape[0], p[0].size)
        if p.ndim > 3
        else (p.size // (p.shape[-2] * p.shape[-1]) if p.size else 0, *p.shape[-2:])
    )


def orthogonal(x: Array, table: str = "keller", steps: int | None = None) -> Array:
    """The iteration on every matrix of a tensor."""
    made = [newton_schulz(each, table, steps) for each in x.reshape(matrices(x))]
    return np.reshape(made, x.shape)


def direction(g: Array, b: Array, momentum: float, nesterov: bool) -> Array:
    """The momentum of Jordan et al. 2024, and the direction of the step."""
    b[...] = momentum * b + (1 - momentum) * g
    return momentum * b + (1 - momentum) * g if nesterov else b


def scale(p: Array, how: str | None) -> float:
    """What the rate is multiplied with, as torch's `_adjust_lr`."""
    rows, columns = matrices(p)[1:]
    known = {"match_rms_adamw": 0.2 * max(rows, columns) ** 0.5, "rms_to_rms": (rows / columns) ** 0.5, "none": 1.0}
    return known.get(str(how), max(1.0, rows / columns) ** 0.5)


def adamw(t: int, p: Array, g: Array, s: States, lr: float, decay: float, betas: Betas, eps: float) -> None:
    """Loshchilov & Hutter 2019, of vectors."""
    p *= 1 - lr * decay
    m, v = average(s["exp_avg"], betas[0], g), average(s["exp_avg_sq"], betas[1], g, g)
    p -= lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)


def of_matrices(update: Callable[..., Array], decay: float, rate: float) -> Callable[..., None]:
    """A formula of these: update(g, momentum buffer, states, p, **options) is what the rate is multiplied with."""

    def formula(
        t: int, p: Array, g: Array, s: States, *, lr: float = rate, weight_decay: float = decay, momentum: float = 0.95,
        nesterov: bool = True, adamw_betas: Betas = (0.9, 0.95), adamw_eps: float = 1e-8, matrix: bool = True, **own: object,
    ) -> None:  # fmt: skip
        if p.ndim < 2 or not matrix:
            adamw(t, p, g, s, lr, weight_decay, adamw_betas, adamw_eps)
        elif p.size:
            u = direction(g, s["momentum_buffer"], momentum, nesterov)
            found = update(g, u, s, p, momentum, **own)
            p *= 1 - lr * weight_decay
            p -= lr * found

    return formula


def iterate(u: Array, ns_coefficients: str = "keller", ns_steps: int | None = None) -> Array:
    return orthogonal(u, ns_coefficients, ns_steps)


def muon(
    g: Array, u: Array, s: States, p: Array, momentum: float, adjust_lr_fn: str | None = None, **ns: object
) -> Array:
    """Jordan et al. 2024."""
    return scale(p, adjust_lr_fn) * iterate(u, **ns)


def normuon(
    g: Array, u: Array, s: States, p: Array, momentum: float, second_momentum: float = 0.95, eps: float = 1e-10,
    adjust_lr_fn: str | None = None, **ns: object,
) -> Array:  # fmt: skip
    """Li et al. 2025, the authors' code."""
    o = iterate(u, **ns).reshape(matrices(p))
    r = s["second_momentum_buffer"].reshape(*o.shape[:2], 1)
    r *= second_momentum
    r += (1 - second_momentum) * (o * o).mean(-1, keepdims=True)
    made = o / (np.sqrt(r) + eps)
    size, new = (np.sqrt((x * x).sum((1, 2), keepdims=True)) for x in (o, made))
    return scale(p, adjust_lr_fn) * (made * (size / (new + eps))).reshape(p.shape)


def adamuon(g: Array, u: Array, s: States, p: Array, momentum: float, eps: float = 1e-8, **ns: object) -> Array:
    """Si et al. 2025, the authors' code."""
    o = iterate(np.sign(u), **ns)
    v = average(s["orthogonal_sq"], momentum, o, o)
    made = (o / (np.sqrt(v) + eps)).reshape(matrices(p))
    size = np.sqrt((made * made).sum((1, 2), keepdims=True))
    scaled = 0.2 * np.sqrt(made[0].size) * made / np.where(size > 0, size, np.inf)
    return scaled.reshape(p.shape)


def muon2(
    g: Array, u: Array, s: States, p: Array, momentum: float, second_momentum: float = 0.95, eps: float = 1e-10,
    adjust_lr_fn: str | None = None, **ns: object,
) -> Array:  # fmt: skip
    """Preprint 2604.09967."""
    v = average(s["grad_sq"], second_momentum, g, g)
    return scale(p, adjust_lr_fn) * iterate(u / (np.sqrt(v) + eps), **ns)


def namo(
    g: Array, u: Array, s: States, p: Array, momentum: float, second_momentum: float = 0.95, eps: float = 1e-8,
    adjust_lr_fn: str | None = None, **ns: object,
) -> Array:  # fmt: skip
    """Preprint 2602.17080."""
    s["grad_norm_sq"][...] = q = second_momentum * s["grad_norm_sq"] + (1 - second_momentum) * (g * g).sum()
    return scale(p, adjust_lr_fn) * np.sqrt((u * u).sum()) / (np.sqrt(q) + eps) * iterate(u, **ns)


def scion(
    t: int, p: Array, g: Array, s: States, *, lr: float = 2**-12, momentum: float = 0.1, scale: float = 50.0,
    unconstrained: bool = False, matrix: bool = True, **ns: object,
) -> None:  # fmt: skip
    """Pethick et al. 2025: spectral norm for matrices, the largest element for all else."""
    b = s["momentum_buffer"]
    b[...] = g if t == 1 else (1 - momentum) * b + momentum * g
    if not p.size:
        return
    if p.ndim < 2 or not matrix:
        step = np.sign(b)
    else:
        rows, columns = matrices(p)[1:]
        step = np.sqrt(rows / columns) * iterate(b, **ns)
    if not unconstrained:
        p *= 1 - lr
    p -= lr * scale * step


class Soap:
    """One matrix in the authors' code, `soap.py`: m and v in the bases, whose columns are sorted whenever they are renewed. order:
    where each column was at first.
    """

    def __init__(self, p: Array, longest: float) -> None:
        self.m, self.v, self.count = np.zeros_like(p), np.zeros_like(p), 0
        self.grams = [np.zeros((n, n), p.dtype) if n <= longest else None for n in p.shape]
        self.q: list[Array | None] = [None, None]
        self.order = [np.arange(n) for n in p.shape]

    def project(self, x: Array, back: bool = False) -> Array:
        left, right = (q if q is None or not back else q.T for q in self.q)
        x = x if left is None else left.T @ x
        return x if right is None else x @ right

    def step(self, g: Array, lr: float, betas: Betas, eps: float, correct_bias: bool) -> Array | float:
        """What is taken off; zero for the first gradient."""
        self.count += 1
        if self.count == 1:
            return 0.0
        x, count = self.project(g), self.count - 1
        self.m = betas[0] * self.m + (1 - betas[0]) * x
        self.v = betas[1] * self.v + (1 - betas[1]) * x**2
        if correct_bias:
            lr = lr * (1 - betas[1] ** count) ** 0.5 / (1 - betas[0] ** count)
        return lr * self.project(self.m / (np.sqrt(self.v) + eps), back=True)

    def gather(self, g: Array, beta: float) -> None:
        for gram, outer in zip(self.grams, (g @ g.T, g.T @ g), strict=True):
            if gram is not None:
                gram += (1 - beta) * (outer - gram)

    def renew(self, frequency: int) -> None:
        """Behind the step: the bases of the next."""
        m = self.project(self.m, back=True)
        for axis, gram in enumerate(self.grams):
            q = self.q[axis]
            if gram is None:
                continue
            if q is None:
                self.q[axis] = np.linalg.eigh(gram)[1]
            elif self.count > 1 and (self.count - 1) % frequency == 0:
                order = np.argsort(-np.diag(q.T @ gram @ q))
                self.v, self.order[axis] = np.take(self.v, order, axis), self.order[axis][order]
                self.q[axis] = np.linalg.qr(gram @ q[:, order])[0]
        self.m = self.project(m)

    def tell(self, s: States, k: int, squares: str = "exp_avg_sq") -> None:
        """The states, their columns where they were at first."""
        there = [np.argsort(order) for order in self.order]
        shape = len(self.m), self.m.shape[1]
        for name, x in (("exp_avg", self.m), (squares, self.v)):
            if name in s:
                s[name].reshape(-1, *shape)[k] = x[np.ix_(*there)]
        for q, gram, back, side, n in zip(self.q, self.grams, there, ("left", "right"), shape, strict=True):
            if gram is not None:
                s[f"gram_{side}"].reshape(-1, n, n)[k] = gram
                s[f"basis_{side}"].reshape(-1, n, n)[k] = np.eye(n) if q is None else q[:, back]


def soap(
    t: int, p: Array, g: Array, s: States, *, lr: float = 3e-3, weight_decay: float = 0.01, betas: Betas = (0.95, 0.95),
    shampoo_beta: float = -1.0, eps: float = 1e-8, precondition_frequency: int = 10, max_precond_dim: int = 10000,
    correct_bias: bool = True, matrix: bool = True,
) -> None:  # fmt: skip
    """Vyas et al. 2024, the authors' code, on every matrix of a tensor; AdamW for vectors."""
    if p.ndim < 2 or not matrix:
        p *= 1 - lr * weight_decay
        m, v = average(s["exp_avg"], betas[0], g), average(s["exp_avg_sq"], betas[1], g, g)
        size = (lr / (1 - betas[0] ** t), 1 - betas[1] ** t) if correct_bias else (lr, 1)
        p -= size[0] * m / (np.sqrt(v / size[1]) + eps)
    parts = zip(p.reshape(matrices(p)), g.reshape(matrices(p)), strict=True) if p.ndim > 1 and matrix else ()
    for k, (own, grad) in enumerate(parts):
        author: Any = s.setdefault(f"_{k}", Soap(own, max_precond_dim))  # type: ignore[arg-type]
        taken = author.step(grad, lr, betas, eps, correct_bias)
        own -= taken
        own *= 1 - lr * weight_decay if t > 1 else 1
        author.gather(grad, betas[1] if shampoo_beta < 0 else shampoo_beta)
        author.tell(s, k)
        author.renew(precondition_frequency)


def soapmuon(
    g: Array, u: Array, s: States, p: Array, momentum: float, second_momentum: float = 0.9, shampoo_beta: float = -1.0,
    eps: float = 1e-8, precondition_frequency: int = 1, max_precond_dim: int = 10000, adjust_lr_fn: str | None = None,
    ns_coefficients: str = "converging", ns_steps: int | None = None,
) -> Array:  # fmt: skip
    """Vyas' scaling before Muon as in record 44 of modded-nanogpt's third track, on every matrix of a tensor."""
    made = np.empty(matrices(p))
    for k, (grad, each) in enumerate(zip(g.reshape(matrices(p)), u.reshape(matrices(p)), strict=True)):
        of: Any = s.setdefault(f"_{k}", Soap(each, max_precond_dim))  # type: ignore[arg-type]
        of.count += 1
        made[k] = each
        if of.count > 1:
            x = of.project(each)
            of.v = second_momentum * of.v + (1 - second_momentum) * x**2
            made[k] = of.project(x / (np.sqrt(of.v) + eps), back=True)
            made[k] *= np.linalg.norm(each) / max(float(np.linalg.norm(made[k])), 1e-10)
        of.gather(grad, second_momentum if shampoo_beta < 0 else shampoo_beta)
        of.tell(s, k, "projected_sq")
        of.renew(precondition_frequency)
    return scale(p, adjust_lr_fn) * orthogonal(made.reshape(p.shape), ns_coefficients, ns_steps)


def splus(
    t: int, p: Array, g: Array, s: States, *, lr: float = 0.1, weight_decay: float = 0.01, betas: Betas = (0.9, 0.999),
    precondition_frequency: int = 100, max_precond_dim: int = 10000, nonstandard_constant: float = 0.001, matrix: bool = True,
) -> None:  # fmt: skip
    """Frans et al. 2025, the authors' code with the rate of the paper, on every matrix; there bases are renewed behind a step."""
    m = average(s["momentum"], betas[0], g)
    u, size = np.sign(m), nonstandard_constant
    if p.ndim > 1 and matrix:
        each = [x.reshape(matrices(p)) for x in (g, m, u)]
        for k, (grad, momentum, made) in enumerate(zip(*each, strict=True)):
            of: Any = s.setdefault(f"_{k}", Soap(grad, max_precond_dim))  # type: ignore[arg-type]
            made[:] = of.project(np.sign(of.project(momentum)), back=True)
            of.gather(grad, betas[1])
            of.tell(s, k)
            if t == 1 or t % precondition_frequency == 0:
                of.q = [None if gram is None else np.linalg.eigh(gram)[1] for gram in of.grams]
        if max(matrices(p)[1:]) <= max_precond_dim:
            size = 2 / sum(matrices(p)[1:])
    p -= lr * size * u
    p *= 1 - lr * size * weight_decay


def shampoo(
    t: int, p: Array, g: Array, s: States, *, lr: float = 1e-3, weight_decay: float = 0.01, betas: Betas = (0.9, 0.999),
    shampoo_beta: float = -1.0, eps: float = 1e-8, exponent: float = 0.25, matrix_eps: float = 1e-12,
    precondition_frequency: int = 10, max_precond_dim: int = 8192, matrix: bool = True,
) -> None:  # fmt: skip
    """Gupta et al. 2018 as Meta's Distributed Shampoo has it, grafted to Adam, every matrix of a tensor a block."""
    if p.ndim < 2 or not matrix:
        adamw(t, p, g, s, lr, weight_decay, betas, eps)
        return
    beta = betas[1] if shampoo_beta < 0 else shampoo_beta
    m, v = average(s["exp_avg"], betas[0], g) / (1 - betas[0] ** t), average(s["exp_avg_sq"], betas[1], g, g)
    grafted = m / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    each = [x.reshape(matrices(p)) for x in (p, g, m, grafted)]
    for k, (own, grad, direction, step) in enumerate(zip(*each, strict=True)):
        for axis, (side, outer) in enumerate((("left", grad @ grad.T), ("right", grad.T @ grad))):
            root, gram = (s[f"{what}_{side}"].reshape(-1, *outer.shape)[k] for what in ("root", "gram"))
            if len(outer) > max_precond_dim:
                continue
            gram += (1 - beta) * (outer - gram)
            if t == 1:
                root[...] = np.eye(len(root))
            if t % precondition_frequency == 0:
                values, q = np.linalg.eigh(gram / (1 - beta**t))
                values = values - min(float(values.min()), 0.0) + matrix_eps
                root[...] = (q / values**exponent) @ q.T
            direction = direction @ root if axis else root @ direction
        size = np.linalg.norm(step) / (np.linalg.norm(direction) + 1e-16)
        own *= 1 - lr * weight_decay
        own -= lr * (size * direction if t >= precondition_frequency else step)


VECTORS = ("exp_avg flat", "exp_avg_sq flat")
ROOTS, OF_SIDES = (
    tuple(f"{what}_{side} {side}" for what in (made, "gram") for side in ("left", "right"))
    for made in ("root", "basis")
)
OF_MATRICES: dict[str, tuple[Callable[..., None], Sequence[str]]] = {
    "Muon": (of_matrices(muon, 0.1, 1e-3), ("momentum_buffer matrix", *VECTORS)),
    "NorMuon": (of_matrices(normuon, 0.1, 0.02), ("momentum_buffer matrix", "second_momentum_buffer row", *VECTORS)),
    "AdaMuon": (of_matrices(adamuon, 0.01, 0.02), ("momentum_buffer matrix", "orthogonal_sq matrix", *VECTORS)),
    "Muon2": (of_matrices(muon2, 0.0125, 0.1), ("momentum_buffer matrix", "grad_sq matrix", *VECTORS)),
    "NAMO": (of_matrices(namo, 0.01, 0.02), ("momentum_buffer matrix", "grad_norm_sq ()", *VECTORS)),
    "Scion": (scion, ("momentum_buffer",)),
    "SOAP": (soap, ("exp_avg", "exp_avg_sq", *OF_SIDES)),
    "Shampoo": (shampoo, ("exp_avg", "exp_avg_sq", *ROOTS)),
    "SPlus": (splus, ("momentum", *OF_SIDES)),
    "SOAPMuon": (
        of_matrices(soapmuon, 0.0, 0.0375),
        ("momentum_buffer matrix", "projected_sq matrix", *OF_SIDES, *VECTORS),
    ),
}
