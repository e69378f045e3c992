"""`gpuopt bench`: every optimizer side by side with what else there is, on this machine.

Called by `gpuopt/cli.py`. Reading order: `suites` (what is measured), `providers` (by whom), `measure` (how), `rows` (the
CSV), `plot`, `compare`. Uses only the public API of gpuopt; optimizers and formats are listed by the library.
"""

from __future__ import annotations

import argparse
import os
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from gpuopt.errors import GpuoptError
from gpuopt.line import INTERRUPTED, Parser

DEFAULT_OUT = "gpuopt-bench"

DESCRIPTION = """Measure every optimizer side by side with what else is installed here, and draw it. Without options everything
is measured, which takes an hour or more on a CPU; what is measured is written down case by case, so that it may be stopped."""
QUICK_MINUTES = 0.6  # for the cases of a quick run; with imports and the suite `start` it stays under one


def parser() -> argparse.ArgumentParser:
    """The options."""
    from gpuopt.bench.suites import PROCESS_SUITES, SUITES

    top = Parser(prog="gpuopt bench", description=DESCRIPTION, allow_abbrev=False)
    names = [*SUITES, *PROCESS_SUITES]
    top.add_argument("--suite", action="append", choices=names, help="one suite; may be repeated (all of them)")
    top.add_argument(
        "--device", choices=["cpu", "cuda"], action="append", help="(a GPU first if there is one, then the CPU)"
    )
    top.add_argument("--quick", action="store_true", help="small sizes and few samples: under a minute")
    top.add_argument("--minutes", type=float, help="stop after so many minutes; the most valuable cases come first")
    top.add_argument(
        "--only", help="providers whose names contain one of these texts, a,b,c; gpuopt's fastest backend always runs"
    )
    top.add_argument(
        "--patience", type=float, default=0.0, metavar="S", help="wait up to S s a case for a quiet machine"
    )
    top.add_argument(
        "--case", default="", help="cases whose optimizer and name contain this text, such as gpt2 or `nadam gpt2`"
    )
    top.add_argument(
        "--out", default=DEFAULT_OUT, metavar="DIR", help=f"folder of the CSV and the plots ({DEFAULT_OUT})"
    )
    top.add_argument(
        "--plot", action="store_true", help="only draw the CSV, unless a suite, --quick or --minutes is given too"
    )
    top.add_argument("--compare", metavar="OLD.csv", help="list what became slower; without a suite, only compare")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, draw, compare; the exit code is 1 where --compare found something slower, else 0."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of the GPU's memory
    options = parser().parse_args(argv)
    from gpuopt.bench import compare, report, rows

    path = Path(options.out) / rows.NAME
    only_read = (options.plot or options.compare) and not (options.suite or options.quick or options.minutes)
    if options.compare and not Path(options.compare).exists():
        raise GpuoptError(f"--compare {options.compare}: no such file")
    old = rows.read(Path(options.compare)) if options.compare else []
    if not only_read:
        path.parent.mkdir(
            parents=True, exist_ok=True
        )  # now: an hour of measuring would be lost where it cannot be written
        try:
            measured = run(options, path)
        except KeyboardInterrupt:
            print(f"\nstopped; what was measured until now is in {path}, `--plot` draws it")
            return INTERRUPTED
        print("\n".join(report.lines(measured)))
        print(f"\n{len(measured)} rows added to {path}")
    if options.plot or not only_read:
        show_plots(path, needed=options.plot)
    if options.compare:
        slower = compare.slower(old, rows.read(path))
        print("\n".join(slower) if slower else "nothing became slower beyond noise")
        return 1 if slower else 0
    return 0


def show_plots(path: Path, needed: bool) -> None:
    """Draw the CSV beside it and say where the pictures are, or why there are none. Raises GpuoptError if they are needed."""
    from gpuopt.bench import plot, rows

    try:
        for picture in plot.draw(rows.read(path), path.parent):
            print(f"plot: {picture}")
    except GpuoptError as error:
        if needed:
            raise
        print(f"no plots: {error}")


def run(options: argparse.Namespace, path: Path) -> list[rows.Row]:  # type: ignore[name-defined]  # noqa: F821
    """Measure what was asked for on each device; rows are written as they are made."""
    from gpuopt.bench import machine
    from gpuopt.bench.session import Run

    devices = options.device or (["cuda"] if machine.gpu_usable() else []) + ["cpu"]
    now = datetime.now(UTC)
    identity = (f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}", f"{now:%Y-%m-%d}")
    minutes = options.minutes or (QUICK_MINUTES if options.quick else None)
    deadline = time.monotonic() + 60 * minutes if minutes else None
    made = []
    for device in devices:
        made += Run(options, device, identity, path, deadline).all()
    return made
