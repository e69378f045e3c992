"""The report's chapters on the weights themselves: pruned, in 8 bits, averaged. Called by `search.py`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpuopt import create, drawing, training
from gpuopt.demos.report import Section
from gpuopt.demos.setting import BATCH, Setting

SPARSITY = 0.9
RATE = 0.003
HIGH = 1.0  # the rate of the training whose weights are averaged


def steps_of_a_pass(setting: Setting) -> int:
    """Batches in all training images."""
    return math.ceil(len(setting.images[2]) / BATCH)


def trained(setting: Setting, passes: int, sparsity: float) -> tuple[list[float], list[float]]:
    """(accuracy, share of weights at zero) after each pass, pruned between the second and the eighth tenth of training."""
    each, params = steps_of_a_pass(setting), setting.network()
    pruning = training.MagnitudePruning(params, sparsity, passes * each // 5, 4 * passes * each // 5)
    opt = create("adamw", params, lr=RATE, mask=pruning.mask, backend=setting.backend)
    accuracies, shares = [], []
    for step, rows in enumerate(setting.batches(passes), 1):
        opt.step(setting.loss(params, rows)[1])
        pruning.step()
        if step % each == 0:
            accuracies.append(setting.accuracy(params))
            shares.append(pruning.sparsity)
    return accuracies, shares


def pruning(setting: Setting) -> Section:
    """Nine of ten weights to zero while training, beside a training without."""
    passes = setting.passes(30)
    (dense, _), (pruned, shares) = trained(setting, passes, 0.0), trained(setting, passes, SPARSITY)
    figure = drawing.figure(9.6, 3.6)
    left, right = figure.subplots(1, 2)
    at = np.arange(1, passes + 1)
    left.plot(at, 100 * np.array(shares), color=drawing.STRONG[1], linewidth=1.8)
    left.set(xlabel="pass", ylabel="weights at zero, %", ylim=(0, 100))
    drawing.whole(left.xaxis)
    drawing.plain(left, "The share follows a cubic schedule")
    right.plot(at, 100 * np.array(dense), color=drawing.STRONG[0], linewidth=1.8, label="dense")
    right.plot(at, 100 * np.array(pruned), color=drawing.STRONG[1], linewidth=1.8, label="pruned")
    drawing.whole(right.xaxis)
    right.set(xlabel="pass", ylabel="test images right, %", ylim=(min(90.0, 100 * min(pruned)), 100))
    right.legend(frameon=False, fontsize=drawing.SMALL)
    drawing.plain(right, "Accuracy with and without")
    return Section(
        "Fewer weights",
        "The least weights are set to zero while training goes on, more of them from time to time (Zhu & Gupta 2017). The mask "
        "is read inside the optimizer's own pass over the weights, so keeping them at zero costs no further pass.",
        f"With {100 * shares[-1]:.0f} % of the weights at zero the network gets {100 * pruned[-1]:.1f} % of the test images "
        f"right, without pruning {100 * dense[-1]:.1f} %.",
        "pruning = gpuopt.training.MagnitudePruning(params, 0.9, begin_step=100, end_step=500)\n"
        "opt = gpuopt.AdamW(params, lr=0.003, mask=pruning.mask)\n"
        "for x, y in batches:\n    opt.step(gradients(params, x, y))\n    pruning.step()",
        [("Share of weights at zero, and accuracy, over passes", figure)],
    )


def int8(setting: Setting) -> Section:
    """A fitted classifier's weights in 8 bits."""
    _, test, _, labels = setting.images
    fitted = setting.fitted
    small = training.quantize(fitted)
    before, after = (100 * model.score(test, labels) for model in (fitted, small))
    many, few = sum(w.nbytes for w in fitted.coefs_), sum(q.nbytes for q in small.quantized_coefs_)
    codes = np.concatenate([np.ravel(q.codes) for q in small.quantized_coefs_])
    figure = drawing.figure(7.2, 2.8)
    axes = figure.subplots()
    axes.hist(codes, bins=np.arange(-127.5, 128.5, 5), color=drawing.STRONG[0])
    axes.set(xlabel="code", ylabel="weights")
    drawing.plain(axes, "The weights as whole numbers from -127 to 127")
    return Section(
        "Smaller weights",
        "A trained network is kept in 8 bits: each output channel has one scale, its greatest weight over 127, so nothing is "
        "cut off and every weight is at most half a scale away from what it was. No training is needed.",
        f"{many / few:.1f} times fewer bytes ({few:,} in place of {many:,}); {after:.2f} % of the test images right, "
        f"{before:.2f} % before.",
        "small = gpuopt.training.quantize(classifier)  # or arrays, or a torch model",
        [("Histogram of the 8-bit codes", figure)],
        [
            ["weights", "bytes", "test images right"],
            ["float32", f"{many:,}", f"{before:.2f} %"],
            ["int8", f"{few:,}", f"{after:.2f} %"],
        ],
    )


def averaging(setting: Setting) -> Section:
    """The mean of the weights along a training at a high constant rate."""
    passes, each, params = setting.passes(12), steps_of_a_pass(setting), setting.network()
    swa = training.StochasticWeightAverage(params, start=passes * each // 3)
    opt = create("sgd", params, lr=HIGH, momentum=0.9, backend=setting.backend)
    last: list[tuple[float, float]] = []
    mean: list[tuple[float, float]] = []
    for step, rows in enumerate(setting.batches(passes), 1):
        opt.step(setting.loss(params, rows)[1])
        swa.update()
        if step % (each // 3) == 0:
            last.append((step / each, test_loss(setting, params)))
            if swa.count:
                mean.append((step / each, test_loss(setting, swa.averaged_params())))
    figure = drawing.figure(7.2, 3.4)
    axes = figure.subplots()
    axes.plot(*zip(*last, strict=True), color=drawing.GREY, linewidth=1.2, label="weights of the step")
    axes.plot(*zip(*mean, strict=True), color=drawing.STRONG[0], linewidth=2, label="their average")
    axes.set(yscale="log", xlabel="pass", ylabel="loss on the test images")
    drawing.whole(axes.xaxis)
    drawing.written_out(axes.yaxis)
    axes.legend(frameon=False, fontsize=drawing.SMALL)
    drawing.plain(axes, "Stochastic weight averaging")
    right = [100 * setting.accuracy(p) for p in (params, swa.averaged_params())]
    return Section(
        "Averaged weights",
        "At a constant rate the weights wander around a good place, and their mean is nearer to it (Izmailov et al. 2018). It "
        f"pays at high rates: here SGD trains at {HIGH:g}, twice the rate at which no average is needed.",
        f"Loss on the test images at the end: {last[-1][1]:.3f} with the last weights ({right[0]:.1f} % right), "
        f"{mean[-1][1]:.3f} with the average ({right[1]:.1f} % right).",
        "swa = gpuopt.training.StochasticWeightAverage(params, start=300)\n"
        "for x, y in batches:\n    opt.step(gradients(params, x, y))\n    swa.update()\n"
        "with swa.averaged():\n    evaluate(params)",
        [("Test loss of the weights and of their average over passes", figure)],
    )


def test_loss(setting: Setting, params: Any) -> float:
    """On the test images."""
    from gpuopt.demos.digits import loss_and_gradients

    _, test, _, labels = setting.images
    return float(loss_and_gradients(params, test, labels, np)[0])
