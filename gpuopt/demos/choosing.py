"""The report's first chapters: which rate, which batch size, which optimizer. Called by `search.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuopt import training
from gpuopt.demos.report import Section
from gpuopt.demos.setting import BATCH, Setting

COMPARED = ("adamw", "sgd", "lion")
RANGE_STEPS, WARM_PASSES = 100, 3
RATES = tuple(np.geomspace(3e-4, 0.3, 7).tolist())


def rate(setting: Setting) -> Section:
    """The range test of AdamW on the digits' network."""
    rows = list(setting.batches(10))
    found = training.lr_range_test(
        setting.network(), lambda p, step: setting.loss(p, rows[step % len(rows)]), "adamw", num_steps=RANGE_STEPS,
        backend=setting.backend,
    )  # fmt: skip
    return Section(
        "Which learning rate",
        "Too low, and training crawls; too high, and it diverges. The range test raises the rate a little with every step and "
        "watches the loss: between where it falls fastest and where it is least lies the rate to train with (Smith 2017).",
        f"AdamW on the digits: train at a rate of {found.advised:.2g}. The loss falls fastest at {found.steepest:.2g} and is least "
        f"at {found.lowest:.2g}.",
        'found = gpuopt.training.lr_range_test(params, loss, "adamw")  # loss(params, step) -> (loss, gradients)\n'
        'print(found.advised)\nfound.plot("rates.png")',
        [("Loss over the learning rate, with the advised one marked", found.figure())],
    )


def batch(setting: Setting) -> Section:
    """Throughput and noise, behind a few passes of training: at the very start gradients agree."""
    from gpuopt import create

    params = setting.network()
    opt = create("adamw", params, lr=0.003, backend=setting.backend)
    for rows in setting.batches(WARM_PASSES):
        opt.step(setting.loss(params, rows)[1])
    found = training.find_batch_size(
        params, setting.loss, len(setting.images[2]), "adamw", repeats=3 if setting.quick else 10, backend=setting.backend,
        random_state=setting.seed,
    )  # fmt: skip
    best = next(row for row in found.rows if row.size == found.advised)
    rows = [["batch", "ms a step", "images a second", "time to train"]]
    rows += [
        [str(r.size), f"{1e3 * r.seconds:.2f}", f"{r.throughput:,.0f}", f"{r.relative_time:.2f} x"] for r in found.rows
    ]
    return Section(
        "Which batch size",
        "Large batches use the machine better; beyond the gradient noise scale they no longer save steps. The size with the least "
        "time to train weighs both (McCandlish et al. 2018).",
        f"The noise scale is {found.noise_scale:.0f} images after {WARM_PASSES} passes; batches of {found.advised} reach a loss "
        f"soonest on this machine, at {best.throughput:,.0f} images a second.",
        "found = gpuopt.training.find_batch_size(params, loss, len(x))  # loss(params, rows) -> (loss, gradients)\n"
        "print(found.table())",
        [("Throughput, and relative time to train, over the batch size", found.figure())],
        rows,
    )


def optimizer(setting: Setting) -> Section:
    """Cross-validated on the digits."""
    x, _, y, _ = setting.images
    options: dict[str, Any] = {"batch_size": BATCH, "backend": setting.backend}
    found = training.compare(
        (x, y), COMPARED, setting.passes(12), cv=3, rates=RATES[1::2] if setting.quick else RATES,
        random_state=setting.seed, **options,
    )  # fmt: skip
    rows = [["optimizer", found.rate, found.metric, "+/-", "seconds"]]
    rows += [
        [c.optimizer, f"{c.lr:.2g}", f"{c.score:.4f}", f"{c.error:.4f}", f"{c.seconds:.2f}"] for c in found.contenders
    ]
    return Section(
        "Which optimizer",
        "Each gets the rate that suits it best, by successive halving, and is then cross-validated on the same folds; those whose "
        "difference from the winner is within two of its own standard errors count as tied.",
        found.advice,
        'found = gpuopt.training.compare((x, y), ["adamw", "sgd", "lion"], 12)  # passes over the data\n'
        "print(found.table())",
        [("Cross-validated accuracy of each optimizer", found.figure())],
        rows,
    )
