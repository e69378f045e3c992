"""Rules written outside a file: a doctest, `python -c`, standard input, a prompt. They run, or one sentence says why not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = "import numpy as np, gpuopt\n"
RULE = "@gpuopt.rule\ndef f(p, g, *, lr):\n    p = p - lr * g\n    return p\n\n"
RUN = (
    "for name in ('numpy', 'numba'): x = np.ones(2);"
    " gpuopt.optimizer(f, [x], lr=0.5, backend=name).step([np.ones(2)]); print(x)\n"
)
VALUES = "[0.5 0.5]\n[0.5 0.5]\n"
SENTENCE = "define it in a file or a notebook cell, not with exec(), `python -c` or at the plain >>> prompt"


def python(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, env=os.environ, timeout=120)


def test_a_doctest(tmp_path: Path) -> None:
    lines = (HEAD + RULE).rstrip().splitlines()
    body = "\n".join((">>> " if not k or line[0] == "@" else "... ") + line for k, line in enumerate(lines))
    script = tmp_path / "documented.py"
    script.write_text(f'"""\n{body}\n>>> {RUN.rstrip()}\n{VALUES}"""\n')
    done = python("-m", "doctest", "-v", str(script))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


@pytest.mark.parametrize("way", ["-c", "stdin", "prompt"])
def test_a_rule_without_a_file(way: str) -> None:
    """Python 3.13 keeps the text of some of these, and then they run."""
    text = HEAD + RULE + RUN + "\n"
    done = {
        "-c": lambda: python("-c", text),
        "stdin": lambda: python("-", given=text),
        "prompt": lambda: python("-i", given=text),
    }[way]()
    if "RuleSyntaxError" in done.stderr:
        assert done.stderr.count(SENTENCE) == 1
    else:
        assert done.stdout == VALUES
