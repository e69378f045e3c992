"""A two-layer network on plain arrays that classifies scikit-learn's digits, trained with any optimizer by name.

Called by `gpuopt/demos/__init__.py`. The network and its gradient are plain NumPy or CuPy code; gpuopt is met only in
`gpuopt.create` and `opt.step`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

import gpuopt
from gpuopt.demos.arrays import compute_type
from gpuopt.spaces import one_blas_thread, to_host

Array = np.ndarray[Any, Any]

HIDDEN, BATCH = 256, 64
EPOCHS, QUICK_EPOCHS = 30, 6
CHECK = 3  # steps between two looks at the test images
SPLIT_SEED = 1  # which fifth of the images is kept for the test

# Tuned on this problem: options and whether the rate follows a half cosine to zero (DGD decays its rate by itself).
# An optimizer without a row here trains with its own defaults.
TUNED: dict[str, tuple[dict[str, Any], bool]] = {
    "gd": ({"lr": 1.0}, True),
    "sgd": ({"lr": 0.2, "momentum": 0.9}, True),
    "dgd": ({"lr": 0.01, "lr_decay": 0.99}, False),
    "adagrad": ({"lr": 0.03}, True),
    "rmsprop": ({"lr": 0.003}, True),
    "adam": ({"lr": 0.003}, True),
    "adamw": ({"lr": 0.003}, True),
    "lion": ({"lr": 0.0007}, True),
    "adadelta": ({"lr": 3.0}, True),
    "adamax": ({"lr": 0.01}, True),
    "radam": ({"lr": 0.01}, True),
    "signsgd": ({"lr": 0.001}, True),
    "signum": ({"lr": 0.001}, True),
    "tiger": ({"lr": 0.001}, True),
    "ademamix": ({"lr": 0.003}, True),
    "adan": ({"lr": 0.01}, True),
    "adabelief": ({"lr": 0.003}, True),
    "adopt": ({"lr": 0.003}, True),
    "laprop": ({"lr": 0.003}, True),
    "grams": ({"lr": 0.003}, True),
    "yogi": ({"lr": 0.01}, True),
    "nadam": ({"lr": 0.003}, True),
    "asgd": ({"lr": 1.0}, True),
    "rprop": ({"lr": 0.0003, "step_sizes": (1e-6, 0.001)}, False),
    "qhadam": ({"lr": 0.003}, True),
    "focus": ({"lr": 0.001}, True),
    "madgrad": ({"lr": 0.003}, True),
    "adamatan2": ({"lr": 0.003}, True),
    "schedulefreesgd": ({"lr": 1.0}, False),
    "schedulefreeadamw": ({"lr": 0.01}, False),
    "schedulefreeradam": ({"lr": 0.01}, False),
    "sophiag": ({"lr": 0.001}, True),
    "adafactor": ({"lr": 0.03}, True),
    "adafactort5": ({"lr": 5.0}, True),
    "came": ({"lr": 0.003}, True),
    "stableadamw": ({"lr": 0.003}, True),
    "adamp": ({"lr": 0.003}, True),
}


@dataclass(frozen=True)
class Training:
    """One run: mean training loss and test accuracy after each epoch, and how it was run.

    batch_losses: of every minibatch, before its step. checks: (steps taken, test accuracy), a few in each epoch.
    """

    optimizer: str
    settings: str
    losses: list[float]
    accuracies: list[float]
    batch_losses: list[float]
    checks: list[tuple[int, float]]
    seconds: float
    backend: str
    shape: str

    @property
    def accuracy(self) -> float:
        """Share of the test images classified correctly after the last epoch."""
        return self.accuracies[-1]


def load() -> tuple[Array, Array, Array, Array]:
    """The digits data: training images (1437, 64), test images (360, 64), then their labels 0..9 in the same order.

    Images are float64, grey values over 16, less the mean of the training images.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    train, test, y_train, y_test = train_test_split(x / 16, y, test_size=0.2, random_state=SPLIT_SEED, stratify=y)
    centre = train.mean(0)
    return train - centre, test - centre, y_train, y_test


def initial_weights(xp: Any, dtype: np.dtype[Any], rng: np.random.Generator) -> dict[str, Any]:
    """Weights of variance 2 / inputs (He et al. 2015) for the ReLU layer, 1 / inputs for the last, biases zero."""
    w1 = rng.normal(0, math.sqrt(2 / 64), (64, HIDDEN))
    w2 = rng.normal(0, math.sqrt(1 / HIDDEN), (HIDDEN, 10))
    host = {"w1": w1, "b1": np.zeros(HIDDEN), "w2": w2, "b2": np.zeros(10)}
    return {name: xp.asarray(value.astype(dtype)) for name, value in host.items()}


def logits(params: dict[str, Any], x: Any, xp: Any) -> tuple[Any, Any]:
    """Hidden activations (n, 256) and logits (n, 10) of images x (n, 64), in the dtype of x."""
    w = {name: value.astype(x.dtype) for name, value in params.items()}
    hidden = xp.maximum(x @ w["w1"] + w["b1"], 0)
    return hidden, hidden @ w["w2"] + w["b2"]


def loss_and_gradients(params: dict[str, Any], x: Any, labels: Any, xp: Any) -> tuple[Any, dict[str, Any]]:
    """Mean cross-entropy over the n images (a 0-d array) and its gradients, each of the dtype of its parameter."""
    hidden, z = logits(params, x, xp)
    z = z - z.max(axis=1, keepdims=True)
    log_p = z - xp.log(xp.exp(z).sum(axis=1, keepdims=True))
    rows = xp.arange(x.shape[0])
    loss = -log_p[rows, labels].mean()
    dz = xp.exp(log_p)
    dz[rows, labels] -= 1
    dz /= x.shape[0]
    dh = (dz @ params["w2"].astype(x.dtype).T) * (hidden > 0)
    grads = {"w1": x.T @ dh, "b1": dh.sum(axis=0), "w2": hidden.T @ dz, "b2": dz.sum(axis=0)}
    return loss, {name: grad.astype(params[name].dtype) for name, grad in grads.items()}


def accuracy(params: dict[str, Any], x: Any, labels: Any, xp: Any) -> float:
    """Share of the images x (n, 64) whose greatest logit is their label's."""
    return float((logits(params, x, xp)[1].argmax(axis=1) == labels).mean())


def settings_for(optimizer: str, lr: float | None, total: int) -> tuple[dict[str, Any], str]:
    """Options for `gpuopt.create` (the rate a function of the steps taken, if scheduled) and the same in words."""
    tuned, scheduled = TUNED.get(optimizer.lower(), ({}, False))
    options: dict[str, Any] = dict(tuned)
    if lr is not None:
        options["lr"] = lr
    words = (
        ", ".join(f"{k} {v:g}" if isinstance(v, (int, float)) else f"{k} {v}" for k, v in options.items())
        or "default options"
    )
    if scheduled:
        peak = float(options["lr"])
        options["lr"] = lambda step: peak * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))
        words += ", falling along a half cosine"
    return options, words


def train(
    optimizer: str,
    xp: Any,
    backend: str | None,
    dtype: np.dtype[Any],
    *,
    lr: float | None = None,
    quick: bool = False,
    seed: int = 0,
) -> Training:
    """Train on minibatches of 64 in the namespace `xp` (numpy or cupy), testing a few times in every epoch."""
    compute = compute_type(dtype)
    images, test_images, labels, test_labels = load()
    data = (xp.asarray(images.astype(compute)), xp.asarray(labels))
    test = (xp.asarray(test_images.astype(compute)), xp.asarray(test_labels))
    epochs, batches = QUICK_EPOCHS if quick else EPOCHS, math.ceil(len(labels) / BATCH)
    options, words = settings_for(optimizer, lr, epochs * batches)
    rng = np.random.default_rng(seed)
    params = initial_weights(xp, dtype, rng)
    opt = gpuopt.create(optimizer, params, backend=backend, **options)
    begin = time.perf_counter()
    with one_blas_thread():
        losses, checks = run_epochs(opt, params, data, test, epochs, rng, xp)
    seconds = time.perf_counter() - begin
    return Training(
        optimizer=optimizer,
        settings=words,
        losses=[float(np.mean(losses[k * batches : (k + 1) * batches])) for k in range(epochs)],
        accuracies=[share for step, share in checks if step and step % batches == 0],
        batch_losses=losses,
        checks=checks,
        seconds=seconds,
        backend=opt.backend,
        shape=f"{len(labels)} images to train on, {len(test_labels)} to test",
    )


def run_epochs(
    opt: Any, params: dict[str, Any], data: Any, test: Any, epochs: int, rng: np.random.Generator, xp: Any
) -> tuple[list[float], list[tuple[int, float]]]:
    """Visit the images once an epoch in random order; the losses of all minibatches, and (steps, test accuracy) as they come."""
    from tqdm import tqdm

    (x, y), batches, losses = data, math.ceil(len(data[1]) / BATCH), []
    checks = [(0, accuracy(params, test[0], test[1], xp))]
    for epoch in tqdm(range(epochs), unit="epoch", desc="digits", leave=False):
        order = xp.asarray(rng.permutation(len(y)))
        for k in range(batches):
            rows = order[k * BATCH : (k + 1) * BATCH]
            loss, grads = loss_and_gradients(params, x[rows], y[rows], xp)
            opt.step(grads)
            losses.append(loss)
            if k + 1 == batches or (k + 1) % CHECK == 0:
                checks.append((epoch * batches + k + 1, accuracy(params, test[0], test[1], xp)))
    return [float(to_host(loss)) for loss in losses], checks
