"""Every optimizer on two problems besides the digits: Rosenbrock's valley, and a small transformer on text.

Called by `every.py`. Plain NumPy with gradients by hand; gpuopt is met only in `gpuopt.create` and `opt.step`. Rates are those of
`digits.TUNED`, else the documented defaults; gradients are cut to a joint length of 1.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import math
from typing import Any

import numpy as np

import gpuopt
from gpuopt import schedules
from gpuopt.demos import digits

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
WIDTH, CONTEXT, BATCH = 32, 16, 16
STEPS = 60
VALLEY_STEPS, VALLEY_START = 400, (-1.2, 1.0)


# Other than those: too high without a warm-up, too low for so few steps.
RATES = {
    "lars": 0.2,
    "lamb": 0.01,
    "radam": 0.05,
    "schedulefreeradam": 0.05,
    "muon": 0.02,
    "splus": 0.7,
    "kron": 0.03,
}


def options_for(optimizer: str, steps: int) -> dict[str, Any]:
    """Options of `digits.TUNED`, or the documented defaults; a rate that is given falls along a half cosine as there."""
    given, falls = digits.TUNED.get(optimizer, ({}, True))
    options = dict(given) | ({"lr": RATES[optimizer]} if optimizer in RATES else {})
    if "lr" in options and falls:
        options["lr"] = schedules.cosine(options["lr"], steps)
    return options


def cut(gradients: list[Array]) -> list[Array]:
    """Gradients whose joint 2-norm is at most 1."""
    length = math.sqrt(sum(float((g * g).sum()) for g in gradients))
    return [g / max(1.0, length) for g in gradients]


def rosenbrock(p: Array) -> tuple[float, Array]:
    """(1 - x)^2 + 100 (y - x^2)^2, least at (1, 1), and its gradient."""
    x, y = p
    away = y - x * x
    return float((1 - x) ** 2 + 100 * away**2), np.array([-2 * (1 - x) - 400 * x * away, 200 * away])


def rosenbrock_start() -> float:
    """The loss where the valley is entered."""
    return rosenbrock(np.array(VALLEY_START))[0]


def valley(optimizer: str, steps: int = VALLEY_STEPS) -> list[float]:
    """Losses before each step and behind the last one, from (-1.2, 1)."""
    p = np.array(VALLEY_START)
    opt = gpuopt.create(optimizer, [p], backend="numpy", **options_for(optimizer, steps))
    losses = []
    for _ in range(steps):
        loss, gradient = rosenbrock(p)
        losses.append(loss)
        opt.step(cut([gradient]))
    return [*losses, rosenbrock(p)[0]]


def text() -> Array:
    """The Zen of Python, the same in every version of it, as numbers of its characters, from 0 on."""
    with contextlib.redirect_stdout(io.StringIO()):  # the module prints itself
        import this
    raw = np.frombuffer(codecs.decode(this.s, "rot13").encode(), np.uint8)
    return np.unique(raw, return_inverse=True)[1]


def initial(characters: int, rng: np.random.Generator) -> Arrays:
    """Weights of one block with one head: embeddings, attention, a ReLU layer; the last layer is the embedding's."""
    shapes = {
        "embed": (characters, WIDTH),
        "place": (CONTEXT, WIDTH),
        "up": (WIDTH, 2 * WIDTH),
        "down": (2 * WIDTH, WIDTH),
    }
    shapes |= dict.fromkeys(("query", "key", "value", "out"), (WIDTH, WIDTH))
    return {
        n: rng.normal(0, 1 / math.sqrt(s[0] if n not in ("embed", "place") else WIDTH), s) for n, s in shapes.items()
    }


def softmax(z: Array) -> Array:
    """Along the last axis."""
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def loss_and_gradients(w: Arrays, x: Array, target: Array) -> tuple[float, Arrays]:
    """Mean cross-entropy of the next character and its gradients. x, target: numbers of characters [batch, CONTEXT]."""
    later = np.triu(np.full((x.shape[1], x.shape[1]), -1e9), 1)
    h = w["embed"][x] + w["place"][: x.shape[1]]
    q, k, v = h @ w["query"], h @ w["key"], h @ w["value"]
    scale = 1 / math.sqrt(WIDTH)
    look = softmax(q @ k.swapaxes(1, 2) * scale + later)
    seen = look @ v
    a = h + seen @ w["out"]
    inner = np.maximum(a @ w["up"], 0)
    b = a + inner @ w["down"]
    share = softmax(b @ w["embed"].T)
    at = (*np.indices(x.shape), target)
    loss = -float(np.log(share[at]).mean())
    share[at] -= 1
    dz = share / x.size
    db = dz @ w["embed"]
    dinner = (db @ w["down"].T) * (inner > 0)
    da = db + dinner @ w["up"].T
    dseen = da @ w["out"].T
    dlook = dseen @ v.swapaxes(1, 2)
    dlook = look * (dlook - (dlook * look).sum(-1, keepdims=True)) * scale
    dq, dk, dv = dlook @ k, dlook.swapaxes(1, 2) @ q, look.swapaxes(1, 2) @ dseen
    dh = da + dq @ w["query"].T + dk @ w["key"].T + dv @ w["value"].T
    embed = total(dz, b)
    np.add.at(embed, x, dh)
    grads = {"embed": embed, "place": np.zeros_like(w["place"]), "up": total(a, dinner)}
    grads["place"][: x.shape[1]] = dh.sum(0)
    return loss, grads | {
        "down": total(inner, db), "query": total(h, dq), "key": total(h, dk), "value": total(h, dv), "out": total(seen, da),
    }  # fmt: skip


def total(left: Array, right: Array) -> Array:
    """The gradient of a matrix: inputs [batch, place, m] and gradients of outputs [batch, place, n] give [m, n]."""
    return np.asarray(np.tensordot(left, right, ((0, 1), (0, 1))))


def transformer(optimizer: str, steps: int = STEPS, seed: int = 0) -> list[float]:
    """Losses on batches of the text, in float32, one before each step."""
    rng = np.random.default_rng(seed)
    known = text()
    w = {name: value.astype(np.float32) for name, value in initial(int(known.max()) + 1, rng).items()}
    opt = gpuopt.create(optimizer, w, backend="numpy", **options_for(optimizer, steps))
    losses = []
    for _ in range(steps):
        places = rng.integers(0, len(known) - CONTEXT - 1, BATCH)[:, None] + np.arange(CONTEXT)
        loss, grads = loss_and_gradients(w, known[places], known[places + 1])
        losses.append(loss)
        opt.step(dict(zip(w, (g.astype(np.float32) for g in cut([grads[name] for name in w])), strict=True)))
    return losses
