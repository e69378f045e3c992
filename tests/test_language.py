"""What the rule language refuses, and how: a SyntaxError that names file, line and the remedy, where the rule is defined."""

from __future__ import annotations

import importlib.util
import linecache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import gpuopt
from samples import HOST_BACKENDS

PREAMBLE = [
    "from typing import Literal",
    "import numpy as np",
    "import gpuopt",
    "from gpuopt import maximum, minimum, rule, sign, sqrt, where",
    "BETA = 0.9",
]
SIGNATURE = "def mine(p, g, m, *, lr, flag: bool = False, mode: Literal['a', 'b'] = 'a'):"
GOOD = ["m = m + g", "p = p - lr * m", "return p, m"]

# One forbidden statement each, and a word of the message; it replaces the first statement of a rule that is otherwise good.
STATEMENTS = {
    "p -= lr * g": "write `x = x + y`",
    "m *= g": "augmented assignment",
    "p = p - lr * g ** 2": "powers belong in `prepare`",
    "p = p - lr * g % 2": "is not part of the rule language",
    "p = p - lr * g // 2": "is not part of the rule language",
    "p = p @ g": "is not part of the rule language",
    "p = np.exp(g)": "is not part of the rule language",
    "p = np.where(g > 0, p, g)": "import it from gpuopt",
    "p = np.minimum(g, p)": "import it from gpuopt",
    "p = np.sign(g)": "import it from gpuopt",
    "p = p - float(g)": "is not part of the rule language",
    "p = g.sum()": "is not part of the rule language",
    "p = g[0]": "is not part of the rule language",
    "p = g.T": "is not part of the rule language",
    "p = p if g > 0 else g": "is not part of the rule language",
    "p = where(g > 0 and m > 0, p, g)": "is not part of the rule language",
    "p = where(not g > 0, p, g)": "is not part of the rule language",
    "p = where(0 < g < 1, p, g)": "is not part of the rule language",
    "p = where(g > 0, p)": "takes 3 argument(s), not 2",
    "p = sqrt(x=g)": "is not part of the rule language",
    "p = sqrt(g, g)": "takes 1 argument(s), not 2",
    "p = p * 'a'": "is not part of the rule language",
    "p = p * True": "is not part of the rule language",
    "p = p * 1j": "is not part of the rule language",
    "p = (y := g)": "is not part of the rule language",
    "p = (lambda: g)()": "is not part of the rule language",
    "p = p - flag * g": "compile-time constant",
    "p = p - BETA * g": "neither an argument of `mine` nor assigned above",
    "p = p - unknown * g": "neither an argument of `mine` nor assigned above",
    "p = p - later * g": "neither an argument of `mine` nor assigned above",
    "p = p + (g > 0)": "comparison",
    "x = g > 0": "comparison",
    "p = where(g, p, m)": "comparison",
    "p, m = m, p": "is not part of the rule language",
    "p = m = g": "is not part of the rule language",
    "p: float = g": "is not part of the rule language",
    "flag = g": "flag",
    "if g > 0: p = g": "for data use where()",
    "if lr > 0: p = g": "for data use where()",
    "if lr: p = g": "needs a compile-time flag",
    "if mode == 'c': p = g": "one of ('a', 'b'), never 'c'",
    "if flag: return p, m": "`return` must be the last statement",
    "for _ in (1, 2): p = g": "`for _ in (1, 2): p = g` is not part of the rule language",
    "while flag: p = g": "`while flag: p = g` is not part of the rule language",
    "with flag: p = g": "`with flag: p = g` is not part of the rule language",
    "assert flag": "`assert flag` is not part of the rule language",
    "del m": "`del m` is not part of the rule language",
    "global BETA": "`global BETA` is not part of the rule language",
    "import math": "`import math` is not part of the rule language",
    "def inner(): pass": "`def inner(): pass` is not part of the rule language",
    "sqrt(g)": "used for nothing",
    "pass": "`pass` is not part of the rule language",
}
# Other headers and endings: the lines from the decorator on, the offending one marked.
FUNCTIONS = {
    "the first two arguments": ["@rule()", "def mine(g, p, *, lr):  # here", "    return g"],
    "*args": ["@rule()", "def mine(p, g, *rest, lr):  # here", "    return p"],
    "**kwargs": ["@rule()", "def mine(p, g, *, lr, **rest):  # here", "    return p"],
    "state 'm'": ["@rule(state=('m',))", "def mine(p, g, *, lr):  # here", "    return p, m"],
    "`n` is no state": ["@rule()", "def mine(p, g, n, *, lr):  # here", "    p = p - n", "    return p"],
    "`return p, m`": ["@rule(state=('m',))", "def mine(p, g, m, *, lr):", "    m = g", "    return p  # here"],
    "end with `return p`": ["@rule()", "def mine(p, g, *, lr):", "    return p - lr * g, g  # here"],
    "return p, m, v": ["@rule(state=('m', 'v'))", "def mine(p, g, m, v, *, lr):", "    return p, v, m  # here"],
    "must be a `return`": ["@rule()", "def mine(p, g, *, lr):", "    p = p - lr * g  # here"],
    "must be a `return` ": ["@rule()", "def mine(p, g, *, lr):", "    return  # here"],
    "a plain `def`": ["@rule()", "async def mine(p, g, *, lr):  # here", "    return p"],
    "a plain `def` ": ["mine = rule()(lambda p, g: p)  # here"],
    "import it from gpuopt": [
        *("from numpy import sqrt", "@rule()", "def mine(p, g, *, lr):", "    p = p - sqrt(g)  # here", "    return p")
    ],
}


def load(path: Path, lines: list[str]) -> ModuleType:
    """Import a user's script made of these lines."""
    path.write_text("\n".join([*PREAMBLE, *lines]) + "\n")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(caught: pytest.ExceptionInfo[SyntaxError], path: Path, lines: list[str], line: int, word: str) -> None:
    error = caught.value
    assert isinstance(error, gpuopt.RuleSyntaxError) and isinstance(error, gpuopt.GpuoptError)
    assert word.strip() in str(error)
    assert (error.filename, error.lineno) == (str(path), len(PREAMBLE) + line)
    assert error.text is None or error.text.strip() == lines[line - 1].strip()


@pytest.mark.parametrize("statement", STATEMENTS)
def test_forbidden_statement_names_file_line_and_remedy(statement: str, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    lines = ["@rule(state=('m',))", SIGNATURE, '    """Docstring."""', f"    {statement}", *(f"    {s}" for s in GOOD)]
    if statement == "p = p - later * g":
        lines.insert(4, "    later = 0.5 * g")
    with pytest.raises(SyntaxError) as caught:
        gpuopt.kernel_source(load(path, lines).mine, backend="numba")
    check(caught, path, lines, 4, STATEMENTS[statement])


@pytest.mark.parametrize("word", FUNCTIONS)
def test_forbidden_function_names_file_and_line(word: str, tmp_path: Path) -> None:
    path, lines = tmp_path / "script.py", FUNCTIONS[word]
    with pytest.raises(SyntaxError) as caught:
        load(path, lines)
    check(caught, path, lines, next(k for k, text in enumerate(lines, 1) if "# here" in text), word)


def test_a_name_that_only_one_branch_assigns(tmp_path: Path) -> None:
    """With the flag the rule is good; without, the error comes before the first step and names the line."""
    body = ["if flag:", "    x = 2 * g", "m = x", *GOOD[1:]]
    lines = ["@rule(state=('m',))", SIGNATURE, *(f"    {s}" for s in body)]
    mine = load(tmp_path / "script.py", lines).mine
    assert "x = " in gpuopt.kernel_source(mine, backend="numba", flag=True)
    with pytest.raises(SyntaxError, match="`x` has no value here when") as caught:
        gpuopt.kernel_source(mine, backend="numba", flag=False)
    assert (caught.value.filename, caught.value.lineno) == (str(tmp_path / "script.py"), len(PREAMBLE) + 5)


def test_a_rule_without_source_says_so() -> None:
    text = "@gpuopt.rule()\ndef hidden(p, g, *, lr):\n    p = p - lr * g\n    return p\n"
    with pytest.raises(
        SyntaxError, match=r"the source of rule `hidden` cannot be found.*define it in a file or a notebook"
    ):
        exec(compile(text, "<nowhere>", "exec"), {"gpuopt": gpuopt})


@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_a_rule_from_a_notebook_cell(backend: str) -> None:
    """IPython puts a cell's text into linecache under a name that is no file."""
    text = "@gpuopt.rule()\ndef from_cell(p, g, *, lr):\n    p = p - lr * g\n    return p\n"
    name = f"<ipython-input-7-{backend}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    namespace = {"gpuopt": gpuopt, "__name__": "__main__"}
    exec(compile(text, name, "exec"), namespace)
    p = np.ones(3)
    gpuopt.optimizer(namespace["from_cell"], p, lr=0.5, backend=backend).step(np.ones(3))
    assert p.tolist() == [0.5] * 3
    bad = text.replace("p - lr * g", "p ** 2")
    linecache.cache[name] = (len(bad), None, bad.splitlines(True), name)
    with pytest.raises(SyntaxError) as caught:
        exec(compile(bad, name, "exec"), namespace)
    assert caught.value.lineno == 3


@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_a_rule_from_a_script(backend: str, tmp_path: Path) -> None:
    lines = ["@rule(state=('m',))", SIGNATURE, *(f"    {s}" for s in GOOD), "Mine = gpuopt.make_optimizer(mine)"]
    script = load(tmp_path / "script.py", lines)
    p, q = np.full(5, 3.0), np.full(5, 3.0)
    first, second = gpuopt.optimizer(script.mine, p, lr=0.5, backend=backend), script.Mine(q, lr=0.5, backend=backend)
    for _ in range(2):
        first.step(np.ones(5))
        second.step(np.ones(5))
    assert p.tolist() == q.tolist() == [1.5] * 5
    assert first.state_dict()["state"][0]["m"].tolist() == [2.0] * 5


def test_the_function_itself_still_runs_as_python(tmp_path: Path) -> None:
    lines = ["@rule(state=('m',))", SIGNATURE, *(f"    {s}" for s in GOOD)]
    mine = load(tmp_path / "script.py", lines).mine
    p, m = mine(np.ones(2), np.ones(2), np.zeros(2), lr=0.25)
    assert (p.tolist(), m.tolist()) == ([0.75, 0.75], [1.0, 1.0])
