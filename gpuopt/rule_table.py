"""The table of optimizers in README.md, derived from the rules themselves: `gpuopt show --table` prints it, a test compares both.

A rule's docstring begins `NAME, AUTHORS YEAR` (or `NAME, no paper`), and the docstring of its file names `torch.optim.X` where
torch has the optimizer. Called by `gpuopt/cli.py`. Knows no rule by name and no torch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from itertools import product

from gpuopt import rules
from gpuopt.compiler.program import Program
from gpuopt.compiler.tree import straight_line
from gpuopt.errors import GpuoptError
from gpuopt.rules.definition import MATRIX
from gpuopt.rules.language import Rule
from gpuopt.source import of_flags, program

HEAD = ("name", "class", "paper", "passes", "states, by their names in `state_dict`", "bytes", "in torch")
# NAME, then the paper: authors and a year, with a second paper for a variant behind a semicolon.
PAPER = re.compile(r"(?P<name>[^,:;]+), (?P<paper>no paper|[^:()]+? \d{4}(; [^:();]+? \d{4})?)(?=[.,:; ]|$)")


def lines() -> Iterator[str]:
    """The table as Markdown, one line after the other."""
    yield row(HEAD)
    yield row(["---"] * len(HEAD)).replace(" ", "")
    for name in rules.NAMES:
        rule = rules.get(name)
        cells = (f"`{name}`", f"`{rule.title}`", paper(rule), passes(rule), states(rule), traffic(rule))
        yield row([*cells, twin(rule)])


def row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def paper(rule: Rule) -> str:
    """Authors and year. Raises GpuoptError for a docstring that begins otherwise."""
    first = " ".join(str(rule.__doc__).partition("\n\n")[0].split())
    found = PAPER.match(first)
    if found is None:
        raise GpuoptError(f"the docstring of the rule {rule.name} begins {first[:60]!r}: expected 'NAME, AUTHORS YEAR'")
    return found["paper"]


def twin(rule: Rule) -> str:
    """What torch calls it, by the docstring of the rule's file; nothing where torch does not have it."""
    found = re.search(r"torch\.optim\.\w+", str(sys.modules[rule.function.__module__].__doc__))
    return f"`{found[0]}`" if found else ""


def states(rule: Rule) -> str:
    """The names of the states, those that depend on an option behind the others."""
    kept = sorted(rule.states, key=lambda state: state.when is not None)
    option = {state.key: (state.when or "").removeprefix("has_") for state in kept}  # a flag `has_x`: x is not 0
    return ", ".join(f"`{key}`" + (f" if `{when}`" if when else "") for key, when in option.items()) or "none"


def passes(rule: Rule) -> str:
    """How often a step goes through the tensors: with the defaults, and at most."""
    return span(rule, lambda made: made.walks)


def traffic(rule: Rule) -> str:
    """Bytes that a step moves for each float32 parameter: with the defaults, and at most."""
    return span(rule, Program.traffic)


def span(rule: Rule, count: Callable[[Program], float]) -> str:
    """A count of the program: with the defaults, and the most that options of the rule's own make of it."""
    made = program(rule)
    usual, most = count(made), max(map(count, variants(rule, made)))
    return str(usual) if usual == most else f"{usual} to {most}"


def variants(rule: Rule, made: Program) -> Iterator[Program]:
    """The programs under every choice of the rule's own flags, for matrices; what only products of matrices take changes none."""
    derived = MATRIX, *rule.definition().sides
    choices = {name: values for name, values in rule.tree.flags.items() if name not in derived}
    seen = set()
    for chosen in product(*choices.values()):
        flags = dict(made.signature.flags) | dict(zip(choices, chosen, strict=True))
        meant = tuple(straight_line(rule.tree.body, flags)), rule.active_states(flags)
        if meant in seen:
            continue
        seen.add(meant)
        yield of_flags(rule, flags, "float32", "float32", {s.name: "float32" for s in rule.states})
