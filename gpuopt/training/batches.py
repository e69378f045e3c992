"""The batch size: how fast examples go through against how noisy their mean gradient is. McCandlish et al. 2018.

Called by users as `gpuopt.training.find_batch_size`. Knows what is trained only through `problem`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuopt import drawing
from gpuopt.errors import InputError, entry
from gpuopt.messages import abbreviated
from gpuopt.optim.hyper import check_whole
from gpuopt.training.problem import ArrayProblem, ModelProblem, trained

POWERS = range(3, 13)  # batch sizes that are tried by default, as powers of 2: 8 to 4096


@dataclass(frozen=True)
class BatchSize:
    """One row of the table: examples in a batch, seconds of one step, examples a second, and the time to train relative to the
    best size.
    """

    size: int
    seconds: float
    throughput: float
    relative_time: float


@dataclass(frozen=True)
class BatchSizes:
    """What was found: a row for each size, ascending; noise_scale: the simple noise scale in examples, inf where no gradient was
    left in the noise; advised: the size to train with.
    """

    rows: tuple[BatchSize, ...]
    noise_scale: float
    advised: int

    def table(self) -> str:
        """The rows as text."""
        lines = [f"{'batch':>8}{'ms a step':>12}{'examples/s':>14}{'time to train':>15}"]
        lines += [
            f"{r.size:>8}{1e3 * r.seconds:>12.3f}{r.throughput:>14.0f}{r.relative_time:>14.2f}x" for r in self.rows
        ]
        return "\n".join([*lines, f"gradient noise scale {self.noise_scale:.0f} examples; train with {self.advised}"])

    def figure(self) -> Any:
        """Throughput, and time to train, over the batch size; a matplotlib Figure."""
        made = drawing.figure(9.6, 3.6)
        left, right = made.subplots(1, 2)
        sizes = [r.size for r in self.rows]
        left.plot(sizes, [r.throughput for r in self.rows], "o-", color=drawing.STRONG[0], markersize=4)
        right.plot(sizes, [r.relative_time for r in self.rows], "o-", color=drawing.STRONG[2], markersize=4)
        for axes, title, label in (
            (left, "Throughput", "examples a second"),
            (right, f"Time to train: least at {self.advised}", "relative to the least"),
        ):
            axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel=label)
            for axis in (axes.xaxis, axes.yaxis):
                drawing.written_out(axis)
            if sizes[0] <= self.noise_scale <= sizes[-1]:
                axes.axvline(self.noise_scale, color=drawing.GREY, linestyle=(0, (4, 3)), linewidth=1)
            drawing.plain(axes, title)
        right.axvline(self.advised, color=drawing.STRONG[1], linewidth=1.5)
        return made

    def plot(self, path: str | Path) -> Path:
        """Save the figure as PNG and return its path."""
        return drawing.save(self.figure(), Path(path))


@entry
def find_batch_size(
    params: Any,
    loss: Callable[[Any, Any], Any],
    num_examples: int,
    optimizer: Any = "sgd",
    *,
    sizes: Sequence[int] | None = None,
    repeats: int = 10,
    random_state: int = 0,
    **options: Any,
) -> BatchSizes:
    """Measure steps of several batch sizes and the noise of their gradients where the parameters are; advise a size.

    params: arrays in any container, with `loss(params, rows) -> (mean loss, gradients)` of the examples with these numbers, an
    int64 NumPy array (size,); or a torch.nn.Module, with `loss(model, rows) -> tensor of one element`. num_examples: how many there
    are; rows are drawn from 0 to this with replacement. optimizer, options: whose steps are timed too. sizes: that are tried (8,
    16, ... 4096, as far as there are examples). repeats: batches of each (10). random_state: of the rows.

    Simple noise scale: B = S / G, with the estimates without bias from the squared norms of mean gradients at the least size b and
    the greatest size B that were tried, G = (B |g_B|^2 - b |g_b|^2) / (B - b) and S = (|g_b|^2 - |g_B|^2) / (1/b - 1/B), each
    averaged over `repeats` batches. To reach a loss takes 1 + B / size times the least number of steps, hence the advised size is
    the one with the least (1 + B / size) * seconds of a step. The noise scale grows while training: ask again later. Parameters,
    and a model's buffers, gradients and modes, are put back bit for bit.

    Source: McCandlish, Kaplan, Amodei et al. 2018, An empirical model of large-batch training. Raises InputError naming the
    argument.
    """
    examples, times = check_whole("num_examples", num_examples, 2), check_whole("repeats", repeats, 1)
    tried = checked_sizes(sizes, examples)
    rng = np.random.default_rng(check_whole("random_state", random_state, 0))
    problem = trained(params, loss)
    norms, seconds = [], []
    with problem.restored():
        opt = problem.optimizer(optimizer, 0.0, options)
        for size in tried:
            rows = [rng.integers(0, examples, size) for _ in range(times + 1)]
            squares, taken = measured(problem, opt, rows)
            norms.append(squares)
            seconds.append(taken)
    if not all(map(math.isfinite, norms)):
        raise InputError(f"loss: squared norms of gradients {norms}: expected finite ones where the parameters are")
    noise = noise_scale(tried[0], norms[0], tried[-1], norms[-1])
    costs = [
        taken * (1 / size if math.isinf(noise) else 1 + noise / size)
        for size, taken in zip(tried, seconds, strict=True)
    ]
    rows_ = zip(tried, seconds, costs, strict=True)
    table = tuple(BatchSize(size, taken, size / taken, cost / min(costs)) for size, taken, cost in rows_)
    return BatchSizes(table, noise, tried[int(np.argmin(costs))])


def checked_sizes(sizes: Any, examples: int) -> list[int]:
    """At least two sizes, ascending. Raises InputError naming what is none."""
    if sizes is None:
        found = [2**k for k in POWERS if 2**k <= examples]
        return found if len(found) > 1 else [1, examples]
    if isinstance(sizes, (str, bytes)) or not hasattr(sizes, "__iter__"):
        raise InputError(f"sizes = {abbreviated(sizes)}: expected batch sizes, such as (16, 64, 256)")
    found = sorted({check_whole(f"sizes[{k}]", size, 1) for k, size in enumerate(sizes)})
    if len(found) < 2:
        raise InputError(f"sizes = {abbreviated(sizes)}: expected at least two different ones")
    return found


def measured(problem: ArrayProblem | ModelProblem, opt: Any, batches: Sequence[Any]) -> tuple[float, float]:
    """(mean squared norm of the gradients, least seconds of a gradient and its step) over these batches but the first."""
    squares, taken = [], []
    for rows in batches:
        begin = time.perf_counter()
        _, gradients = problem.evaluate(rows)  # which waits for the device to read the loss
        problem.step(opt, gradients)
        taken.append(time.perf_counter() - begin)
        squares.append(problem.squared_norm(gradients))
    return float(np.mean(squares[1:])), min(taken[1:])


def noise_scale(small: int, of_small: float, large: int, of_large: float) -> float:
    """The simple noise scale from the mean squared norms of gradients of two batch sizes; inf where noise is all there is."""
    signal = (large * of_large - small * of_small) / (large - small)
    noise = (of_small - of_large) / (1 / small - 1 / large)
    return max(noise, 0.0) / signal if signal > 0 else math.inf
