"""The command line: `gpuopt demo`, `gpuopt info`, `gpuopt show RULE`, `gpuopt bench`.

Started by the console script `gpuopt`. Only parses arguments and prints: what a command does lives in the module it
imports when it runs. Errors that gpuopt raises on purpose become one line on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import gpuopt

BACKENDS = "auto, numpy, numba, cuda, cupy or numba-cuda"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (`argv`: the process's arguments) and return its exit code: 0, or 2 after a GpuoptError.

    Wrong arguments end in SystemExit(2), as argparse does it.
    """
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except gpuopt.GpuoptError as error:
        print(f"gpuopt: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `gpuopt show adamw | head` closed the pipe; keep the exit quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parser() -> argparse.ArgumentParser:
    """The argument parser; each command stores its function as `command`."""
    top = argparse.ArgumentParser(prog="gpuopt", description="GPU-accelerated optimizers.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"gpuopt {gpuopt.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="train on two real data sets and save a plot", allow_abbrev=False)
    demo.add_argument("--optimizer", default="adamw", help="trains the digits classifier (adamw)")
    demo.add_argument("--backend", help=f"{BACKENDS} (GPUOPT_BACKEND if that is set, else auto)")
    demo.add_argument("--dtype", default="float32", help="of the parameters: float64, float32, float16 or bfloat16")
    demo.add_argument("--lr", type=float, help="learning rate for the digits (one tuned for the optimizer)")
    demo.add_argument("--out", default=".", metavar="DIR", help="folder for gpuopt-demo.png (the current one)")
    demo.add_argument("--quick", action="store_true", help="a fraction of the work")
    demo.add_argument("--seed", type=int, default=0, help="of initial weights and minibatches (0)")
    demo.set_defaults(command=run_demo)

    info = commands.add_parser("info", help="versions, backends and why they are unusable, devices")
    info.set_defaults(command=run_info)

    show = commands.add_parser("show", help="print the generated source of a rule's kernel", allow_abbrev=False)
    show.add_argument("rule", help="an optimizer's name, such as adamw")
    show.add_argument("--backend", default="cuda", help="cuda, cupy, numba-cuda, numba or numpy (cuda)")
    show.add_argument("--param-dtype", default="float32", help="float64, float32, float16 or bfloat16 (float32)")
    show.add_argument("--set", action="append", default=[], type=option, metavar="NAME=VALUE", help="an option of it")
    show.set_defaults(command=run_show)

    bench = commands.add_parser(
        "bench", help="measure; arguments go to the benchmarks", add_help=False, prefix_chars="\0"
    )
    bench.add_argument("arguments", nargs=argparse.REMAINDER)
    bench.set_defaults(command=run_bench)
    return top


def option(text: str) -> tuple[str, Any]:
    """`name=value` as a pair; the value a Python literal (`0.9`, `True`, `(0.9, 0.99)`), else the text itself."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    if value.lower() in ("true", "false", "none"):
        value = value.capitalize()
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def run_demo(arguments: argparse.Namespace) -> int:
    """`gpuopt demo`: see `gpuopt.demos.run`."""
    from gpuopt import demos

    demos.run(
        arguments.optimizer,
        backend=arguments.backend,
        dtype=arguments.dtype,
        out=arguments.out,
        lr=arguments.lr,
        quick=arguments.quick,
        seed=arguments.seed,
    )
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    """`gpuopt info`: see `gpuopt.info.lines`."""
    from gpuopt.info import lines

    for line in lines():
        print(line)
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """`gpuopt show`: see `gpuopt.kernel_source`."""
    source = gpuopt.kernel_source(
        arguments.rule, backend=arguments.backend, param_dtype=arguments.param_dtype, **dict(arguments.set)
    )
    print(source)
    return 0


def run_bench(arguments: argparse.Namespace) -> int:
    """`gpuopt bench`: hand the rest of the line to `gpuopt.bench.main`."""
    try:
        bench = import_module("gpuopt.bench")
    except ModuleNotFoundError as error:
        if error.name != "gpuopt.bench":
            raise
        raise gpuopt.GpuoptError(
            "the benchmarks are not part of this install; run the scripts in benchmarks/ from a checkout"
        ) from None
    return int(bench.main(arguments.arguments))


if __name__ == "__main__":
    raise SystemExit(main())
