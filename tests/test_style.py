"""Style and layout of the repository: ruff, mypy --strict, the fixed top level, file lengths, opening docstrings."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gpuopt
from gpuopt import rules
from repository import FILES, ROOT

pytestmark = pytest.mark.once
TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "Dockerfile", "gpuopt", "kernels", "tests", "benchmarks"}
LONGEST = 400
SOURCES = [path for path in FILES if path.suffix in (".py", ".cuh", ".cu")]
TOOLS = {
    "ruff check": ["ruff", "check", "--no-cache", "."],
    "ruff format": ["ruff", "format", "--no-cache", "--check", "."],
    "mypy": ["mypy", "gpuopt"],
}


@pytest.mark.parametrize("tool", TOOLS)
def test_tool_finds_nothing(tool: str) -> None:
    done = subprocess.run([sys.executable, "-m", *TOOLS[tool]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_top_level_is_the_fixed_one() -> None:
    assert {path.parts[0] for path in FILES if not path.parts[0].startswith(".")} == TOP_LEVEL


def test_ci_is_executable_and_runs_the_second_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    command = "python -m pip install -e '.[test]' && python -m pytest"
    assert command in map(str.strip, script.read_text().splitlines())
    assert command in (ROOT / "README.md").read_text()


def test_ci_knows_every_supported_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert f'versions="{" ".join(versions)}"' in (ROOT / ".ci" / "run").read_text()


def test_no_file_is_too_long() -> None:
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in SOURCES}
    assert {path: n for path, n in lengths.items() if n > LONGEST} == {}


def test_a_rule_is_under_60_lines_with_its_docstring() -> None:
    lengths = {name: len((ROOT / f"gpuopt/rules/{name}.py").read_text().splitlines()) for name in rules.NAMES}
    assert {name: n for name, n in lengths.items() if n >= 60} == {}


def test_every_source_file_says_what_it_is_for() -> None:
    silent = [str(path) for path in SOURCES if path.parts[0] in ("gpuopt", "kernels") and not opening(ROOT / path)]
    assert silent == []


def opening(path: Path) -> str | None:
    """The module docstring of a Python file, the comment at the top of a CUDA one; None where there is none."""
    text = path.read_text()
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text))
    return text if text.lstrip().startswith(("//", "/*")) else None


def test_version_is_the_same_in_the_package_and_its_metadata() -> None:
    assert gpuopt.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
