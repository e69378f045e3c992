"""The command line: `gpuopt demo`, `gpuopt info`, `gpuopt show RULE`, `gpuopt memory`, `gpuopt bench`.

Started by the console script `gpuopt` and by `python -m gpuopt`. Only parses arguments and prints: what a command does lives in
the module it imports when it runs. Errors that gpuopt raises on purpose become one line on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import gpuopt
from gpuopt.line import INTERRUPTED, Parser
from gpuopt.messages import one_line

BACKENDS = "auto, numpy, numba, cuda, cupy or numba-cuda"
EXAMPLES = """examples:
  gpuopt demo                              train on two small data sets, in seconds
  gpuopt demo --search                     rates, batch sizes, pruning and more, as one HTML report
  gpuopt info                              what works here, and why not
  gpuopt show                              the optimizers; then the code of one:
  gpuopt show adamw --backend numba
  gpuopt memory 8e9                        bytes of an optimizer in every format
  gpuopt bench --quick                     everything side by side, in a minute

gpuopt COMMAND --help says more of each.
"""
SHOW_HELP = """Prints the code that a backend compiles for an optimizer; without a name, lists the optimizers.

  gpuopt show adam --backend numba --set amsgrad=True --set max_grad_norm=1
  gpuopt show adam --backend cuda --set part=prepare    another kernel than the update: sums, prepare, all_tensors, and of rules
                                                        that sum reduce_1, per_tensor_1 ...
  gpuopt show my_rules:my_rule             a rule of your own, in my_rules.py of this folder
  gpuopt show --table                      papers, states and bytes of every optimizer, as Markdown
"""
OF_THE_LINE = {
    "rule": "it comes first, gpuopt show RULE",
    "backend": "write --backend NAME",
    "param_dtype": "write --param-dtype NAME",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (`argv`: the process's arguments) and return its exit code: 0, or 2 after a GpuoptError.

    Without a command it prints the help. Wrong arguments end in SystemExit(2), as argparse does it.
    """
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.command(arguments) or 0)
    except gpuopt.GpuoptError as error:
        print(f"gpuopt: {one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `gpuopt show adamw | head` closed the pipe; keep the exit quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a folder that cannot be written, a file that is none
        print(f"gpuopt: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ngpuopt: stopped", file=sys.stderr)
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The argument parser; each command stores its function as `command`."""
    raw = argparse.RawDescriptionHelpFormatter
    top = Parser(
        prog="gpuopt",
        description="GPU-accelerated optimizers.",
        epilog=EXAMPLES,
        formatter_class=raw,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"gpuopt {gpuopt.__version__}")
    top.set_defaults(command=lambda arguments: print(top.format_help(), end=""))
    commands = top.add_subparsers(title="commands", metavar="COMMAND")

    demo = commands.add_parser("demo", help="train on two real data sets and save a plot", allow_abbrev=False)
    which = demo.add_mutually_exclusive_group()
    which.add_argument(
        "--optimizer", default="adamw", help="trains the digits classifier (adamw); `gpuopt show` lists them"
    )
    which.add_argument(
        "--all",
        action="store_true",
        help="every optimizer on three problems, a table and gpuopt-demo-all.png, in minutes",
    )
    which.add_argument(
        "--search",
        action="store_true",
        help="training practice in twelve chapters, a report gpuopt-demo-search.html, in a minute",
    )
    which.add_argument(
        "--deblur",
        action="store_true",
        help="restore a blurred photograph by gpuopt.minimize, and gpuopt-demo-deblur.png, in seconds",
    )
    which.add_argument(
        "--distributed",
        action="store_true",
        help="the digits classifier on several processes: mpirun -n 2 gpuopt demo --distributed, or by torchrun",
    )
    demo.add_argument("--backend", help=f"{BACKENDS} (GPUOPT_BACKEND if that is set, else auto)")
    demo.add_argument("--dtype", default="float32", help="of the parameters: float64, float32, float16 or bfloat16")
    demo.add_argument("--lr", type=float, help="learning rate for the digits or --deblur (a tuned one)")
    demo.add_argument("--out", default=".", metavar="DIR", help="folder for gpuopt-demo.png (the current one)")
    demo.add_argument("--quick", action="store_true", help="a fraction of the work")
    demo.add_argument("--seed", type=natural, default=0, help="of initial weights and minibatches (0)")
    demo.set_defaults(command=run_demo)

    info = commands.add_parser("info", help="versions, backends and why they are unusable, devices", allow_abbrev=False)
    info.set_defaults(command=run_info)

    show = commands.add_parser(
        "show", help="list the optimizers, or print the generated code of one", description=SHOW_HELP, formatter_class=raw,
        allow_abbrev=False,
    )  # fmt: skip
    show.add_argument(
        "rule", nargs="?", help="an optimizer's name, or module:rule; lists the names where it is left out"
    )
    show.add_argument("--table", action="store_true", help="the optimizers as the table of README.md")
    show.add_argument("--backend", default="cuda", help="cuda, cupy, numba-cuda, numba or numpy (cuda)")
    show.add_argument("--param-dtype", default="float32", help="float64, float32, float16 or bfloat16 (float32)")
    show.add_argument(
        "--set", action="append", default=[], type=option, metavar="NAME=VALUE", help="an option of it; may be repeated"
    )
    show.set_defaults(command=run_show)

    memory = commands.add_parser(
        "memory", help="bytes of an optimizer in every format, and of other libraries", allow_abbrev=False
    )
    memory.add_argument("parameters", help="how many there are, such as 8e9")
    memory.add_argument("--optimizer", default="adamw", help="one of `gpuopt show` (adamw)")
    memory.add_argument("--all", action="store_true", help="every optimizer, a line each")
    memory.add_argument("--out", metavar="DIR", help="folder for a picture, gpuopt-memory.png (none)")
    memory.set_defaults(command=run_memory)

    bench = commands.add_parser(
        "bench", help="measure; arguments go to the benchmarks", add_help=False, prefix_chars="\0"
    )
    bench.add_argument("arguments", nargs=argparse.REMAINDER)
    bench.set_defaults(command=run_bench)
    return top


def natural(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected 0, 1, 2 ..., got {text!r}")
    return int(text)


def option(text: str) -> tuple[str, Any]:
    """`name=value` as a pair; the value a Python literal (`0.9`, `True`, `(0.9, 0.99)`) or `inf`, else the text itself."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    if name in OF_THE_LINE:
        raise argparse.ArgumentTypeError(f"{name} is no option of an optimizer: {OF_THE_LINE[name]}")
    if value.lower() in ("true", "false", "none"):
        value = value.capitalize()
    for read in (ast.literal_eval, float):
        with suppress(ValueError, SyntaxError):
            return name, read(value)
    return name, value


def run_demo(arguments: argparse.Namespace) -> int:
    """`gpuopt demo`: see `gpuopt.demos.run`, `run_all`, `run_search`, `run_deblur` and `run_distributed`."""
    from gpuopt import demos

    if arguments.search:
        for name, usual in (("lr", None), ("dtype", "float32")):
            if getattr(arguments, name) != usual:
                raise gpuopt.InputError(
                    f"--{name} with --search: expected one of them, since it trains in many ways, in float32"
                )
        demos.run_search(**{k: getattr(arguments, k) for k in ("backend", "out", "quick", "seed")})
        return 0
    common = {k: getattr(arguments, k) for k in ("backend", "dtype", "out", "quick", "seed")}
    if arguments.deblur:
        demos.run_deblur(lr=arguments.lr, **common)
        return 0
    if arguments.distributed:
        demos.run_distributed(lr=arguments.lr, **{k: v for k, v in common.items() if k != "out"})
        return 0
    if arguments.all:
        if arguments.lr is not None:
            raise gpuopt.InputError(
                "--lr with --all: expected one of them, since every optimizer has a rate of its own"
            )
        demos.run_all(**common)
        return 0
    demos.run(arguments.optimizer, lr=arguments.lr, **common)
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    """`gpuopt info`: see `gpuopt.info.lines`."""
    from gpuopt.info import lines

    for line in lines():
        print(line)
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """`gpuopt show`: the names (`gpuopt.lookup.listing`), their table (`gpuopt.rule_table.lines`), or the code of one rule
    (`gpuopt.kernel_source`).
    """
    from gpuopt import lookup

    if arguments.table:
        from gpuopt.rule_table import lines

        print("\n".join(lines()))
        return 0
    if arguments.rule is None:
        print("\n".join(lookup.listing()))
        print("\ngpuopt show NAME prints the code of one; gpuopt show MODULE:RULE that of a rule of your own.")
        return 0
    source = gpuopt.kernel_source(
        lookup.find(arguments.rule), backend=arguments.backend, param_dtype=arguments.param_dtype, **dict(arguments.set)
    )
    print(source)
    return 0


def run_memory(arguments: argparse.Namespace) -> int:
    """`gpuopt memory`: see `gpuopt.memory`."""
    from gpuopt.sizes import everything

    found = gpuopt.memory(arguments.parameters, arguments.optimizer)
    print("\n".join(everything(found.parameters)) if arguments.all else found)
    if arguments.out is not None:
        print(f"the picture is in {found.plot(os.path.join(arguments.out, 'gpuopt-memory.png'))}")
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
