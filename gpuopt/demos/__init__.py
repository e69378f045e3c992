"""`gpuopt demo`: two small problems on real data, a table, one plot, and which backend ran them.

Called by `gpuopt/cli.py` and by the tests. Uses only the public API of gpuopt, and knows nothing of rules or kernels.
`regression.py`, `digits.py` and `training.py` hold the problems, `arrays.py` where their arrays lie, `plot.py` the picture;
`every.py` compares all optimizers; `distributed.py` trains on several processes. `text.py` is a program of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import gpuopt
from gpuopt import spaces
from gpuopt.demos import arrays, deblur, digits, distributed, every, plot, regression
from gpuopt.distributed import communicator
from gpuopt.messages import install, missing

__all__ = ["PLOT_NAME", "DemoResult", "run", "run_all", "run_deblur", "run_distributed", "run_search"]

PLOT_NAME = "gpuopt-demo.png"


@dataclass(frozen=True)
class DemoResult:
    """What one run of the demo found: a curve for each regression, the digits classifier, and where the plot is."""

    curves: list[regression.Curve]
    digits: digits.Training
    plot: Path


def printing(stream: TextIO | None) -> Callable[[str], None]:
    """Prints a line at once, to standard output where no stream is given."""
    return lambda text: print(text, file=sys.stdout if stream is None else stream, flush=True)


def run(
    optimizer: str = "adamw",
    *,
    backend: str | None = None,
    dtype: str = "float32",
    out: str | Path = ".",
    lr: float | None = None,
    quick: bool = False,
    seed: int = 0,
    stream: TextIO | None = None,
) -> DemoResult:
    """Train both problems, print what happened to `stream` (standard output), save `out/gpuopt-demo.png`.

    optimizer: the name of the one that trains the digits classifier; the regression always compares its five.
    backend: as in `gpuopt.create`, None for the default. dtype: of the parameters. lr: learning rate for the digits,
    else a tuned one. quick: a fraction of the work, for tests. seed: of the initial weights and of every minibatch.
    Raises GpuoptError where a package, the backend, the optimizer or the dtype is missing or unknown.
    """
    require_packages()
    space = spaces.choose(backend)
    element = arrays.element_type(dtype)
    probe = gpuopt.create(optimizer, [space.xp.zeros(1, element)], lr=1.0 if lr is None else lr, backend=backend)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    say = printing(stream)
    say(f"gpuopt {gpuopt.__version__}, backend {probe.backend}: {probe.backend_reason}.\n{space.reason}.")
    curves = regression.compare(space.xp, backend, element, quick=quick, seed=seed)
    report_regression(curves, dtype, say)
    training = digits.train(optimizer, space.xp, backend, element, lr=lr, quick=quick, seed=seed)
    report_digits(training, dtype, say)
    path = plot.save(curves, training, folder / PLOT_NAME)
    say(f"\nPlot: {path}")
    return DemoResult(curves, training, path)


def run_all(
    *,
    backend: str | None = None,
    dtype: str = "float32",
    out: str | Path = ".",
    quick: bool = False,
    seed: int = 0,
    stream: TextIO | None = None,
) -> list[every.Outcome]:
    """Every optimizer on the digits, in a narrow valley and on a small transformer; print a table, save
    `out/gpuopt-demo-all.png`. Arguments and what is raised as for `run`; dtype: of the digits' parameters.
    """
    require_packages()
    space, element = spaces.choose(backend), arrays.element_type(dtype)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    found = every.outcomes(gpuopt.optimizers(), space.xp, backend, element, quick=quick, seed=seed)
    say = printing(stream)
    every.report(found, say)
    say(f"Picture: {every.save(found, folder / every.NAME)}")
    return found


def run_search(
    *,
    backend: str | None = None,
    out: str | Path = ".",
    quick: bool = False,
    seed: int = 0,
    stream: TextIO | None = None,
) -> Path:
    """Training practice on data that scikit-learn ships, in twelve chapters: rate, batch size, optimizer, penalties, stopping,
    ensembles, pruning, int8, averaging, and what a model looks at. Save `out/gpuopt-demo-search.html` and return its path.

    Arguments and what is raised as for `run`; everything is in float32.
    """
    require_packages()
    from gpuopt.demos import search
    from gpuopt.demos.setting import Setting

    setting, folder = Setting(quick, seed, backend), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    say = printing(stream)
    say(f"gpuopt {gpuopt.__version__}, backend {setting.backend_name}.")
    with spaces.one_blas_thread():
        found = search.sections(setting, say)
    path = search.save(found, setting, folder)
    say(f"\nReport: {path}")
    return path


def run_deblur(
    *,
    backend: str | None = None,
    dtype: str = "float32",
    out: str | Path = ".",
    lr: float | None = None,
    quick: bool = False,
    seed: int = 0,
    stream: TextIO | None = None,
) -> deblur.Restoration:
    """Restore a blurred photograph by `gpuopt.minimize`, print what it was worth, save `out/gpuopt-demo-deblur.png`.

    Arguments and what is raised as for `run`; dtype: of the pixels; seed: of the noise.
    """
    require_packages()
    space, element = spaces.choose(backend), arrays.element_type(dtype)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    say = printing(stream)
    say(f"A photograph of {deblur.NAME_OF_DATA}, blurred over {deblur.LENGTH:.0f} pixels, with noise; {space.reason}.")
    found = deblur.restore(space.xp, backend, element, lr=lr, quick=quick, seed=seed)
    say(
        f"{found.shape} pixels in three colours, {len(found.losses) - 1} steps in {found.seconds:.1f} s. {found.message}"
    )
    say(f"PSNR against the original: {found.before:.2f} dB blurred, {found.after:.2f} dB restored.")
    say(f"Picture: {deblur.save(found, folder / deblur.NAME)}")
    return found


def run_distributed(
    optimizer: str = "adamw",
    *,
    backend: str | None = None,
    dtype: str = "float32",
    lr: float | None = None,
    quick: bool = False,
    seed: int = 0,
    stream: TextIO | None = None,
) -> list[distributed.Run]:
    """Train the digits classifier on the processes that this one was started with, by mpirun or torchrun, or on it alone: twice,
    with whole states and with divided ones. The first process prints what came of it. Arguments and what is raised as for `run`.
    """
    require_packages()
    comm = communicator()
    space, element = spaces.choose(backend), arrays.element_type(dtype)
    runs = [
        distributed.train(comm, optimizer, shard, space.xp, backend, element, lr=lr, quick=quick, seed=seed)
        for shard in (False, True)
    ]
    say = printing(stream)
    for line in distributed.lines(comm, optimizer, runs) if comm.rank == 0 else ():
        say(line)
    return runs


def report_regression(curves: list[regression.Curve], dtype: str, say: Callable[[str], None]) -> None:
    """Print the table of the first problem."""
    say(f"\n1. Linear regression on the diabetes data ({curves[0].shape}, standardised), {dtype}, {curves[0].backend}")
    say(f"   {'optimizer':<14}{'final loss':>12}{'above the least':>17}{'steps to 1 %':>14}{'us per step':>13}")
    for c in curves:
        reached = "-" if c.steps_to_tolerance is None else str(c.steps_to_tolerance)
        excess = f"{c.losses[-1] / c.least - 1:.2e}"
        say(f"   {c.label:<14}{c.losses[-1]:>12.6f}{excess:>17}{reached:>14}{c.microseconds:>13.1f}")


def report_digits(training: digits.Training, dtype: str, say: Callable[[str], None]) -> None:
    """Print the outcome of the second problem."""
    how = f"{training.optimizer}, {dtype}, {training.backend}"
    say(f"\n2. Two-layer network on the digits data ({training.shape}), {how}")
    say(
        f"   {training.settings}; {len(training.losses)} epochs in {training.seconds:.1f} s; training loss "
        f"{training.losses[-1]:.4f}; test accuracy {training.accuracy:.4f}"
    )


def require_packages() -> None:
    """Raise GpuoptError naming the packages of the `demo` extra that are missing."""
    if lacking := missing("sklearn", "threadpoolctl", "matplotlib", "tqdm"):
        raise gpuopt.GpuoptError(f"the demo needs {', '.join(lacking)}; {install('demo')}")
