"""What stands in the repository's pages: their code blocks, and whether the commands in them name something that exists.

Used by the tests of README.md and of .github/. A command is not run, but each of its words is looked up where it would be.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib.util import find_spec

from gpuopt import cli
from repository import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OF_PYTEST = {"-q", "-m", "-k", *re.findall(r'addoption\("(--[\w-]+)"', (ROOT / "tests" / "conftest.py").read_text())}


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Every shell command of a page."""
    return [part.strip() for block in blocks(text, "bash") for line in block.splitlines() for part in line.split("&&")]


def check_command(command: str) -> None:
    """Fail unless what a command names exists; settings of the environment may stand in front."""
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        name = words.pop(0).partition("=")[0]
        assert re.search(rf"\${{?{name}\b", (ROOT / words[0]).read_text()), f"{words[0]} does not read {name}"
    program, *arguments = words
    checks = {"python": check_module, "gpuopt": check_gpuopt, "docker": check_docker}
    checks |= {"mpirun": check_started, "torchrun": check_started}
    if program in checks:
        checks[program](arguments)
    else:
        assert (ROOT / program).stat().st_mode & 0o111, f"{program} is no program of this repository"


def check_module(arguments: list[str]) -> None:
    """`python -m MODULE ...`: the module, the extras, pytest's options, marks and files."""
    assert arguments[0] == "-m" and find_spec(arguments[1])
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
        assert set(extras.split(",")) <= set(EXTRAS)
    for name in re.findall(r"\btests/\S+", " ".join(arguments)):
        assert (ROOT / name).exists(), f"{name} does not exist"
    if arguments[1] == "pytest":
        unknown = {word for word in arguments[2:] if word.startswith("-")} - OF_PYTEST
        assert not unknown, f"pytest has no {unknown} here"


def check_gpuopt(arguments: list[str]) -> None:
    """A line that `gpuopt` can parse; what it would show, it shows."""
    parsed = cli.parser().parse_args(arguments)
    if parsed.command is cli.run_show:
        assert cli.run_show(parsed) == 0


def check_started(arguments: list[str]) -> None:
    """A program or module of ours on so many processes."""
    assert arguments[0] in ("-n", "--nproc-per-node") and arguments[1].isdecimal()
    check_command(shlex.join(["python", *arguments[2:]] if arguments[2] == "-m" else arguments[2:]))


def check_docker(arguments: list[str]) -> None:
    """`docker build` with arguments that the Dockerfile has."""
    assert arguments[0] == "build"
    named = [arguments[i + 1].split("=")[0] for i, word in enumerate(arguments) if word == "--build-arg"]
    assert set(named) <= set(re.findall(r"^ARG (\w+)=", DOCKERFILE, flags=re.MULTILINE))
