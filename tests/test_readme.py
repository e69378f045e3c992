"""README.md: every Python block runs, every shell command names something that exists, every table is complete."""

from __future__ import annotations

import re
import runpy
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import gpuopt
from gpuopt import cli
from repository import ROOT

pytestmark = pytest.mark.once
TEXT = (ROOT / "README.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


SHELL_COMMANDS = [part.strip() for block in blocks("bash") for line in block.splitlines() for part in line.split("&&")]


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_python_block_runs(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / f"block_{index}.py"
    script.write_text(blocks("python")[index])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("command", SHELL_COMMANDS)
def test_shell_command_exists(command: str) -> None:
    program, *arguments = shlex.split(command)
    check = {"python": check_module, "gpuopt": check_gpuopt, "docker": check_docker}[program]
    check(arguments)


def check_module(arguments: list[str]) -> None:
    assert arguments[0] == "-m" and find_spec(arguments[1])
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
        assert set(extras.split(",")) <= set(EXTRAS)


def check_gpuopt(arguments: list[str]) -> None:
    parsed = cli.parser().parse_args(arguments)
    if parsed.command is cli.run_show:
        assert cli.run_show(parsed) == 0


def check_docker(arguments: list[str]) -> None:
    assert arguments[0] == "build"
    named = [arguments[i + 1].split("=")[0] for i, word in enumerate(arguments) if word == "--build-arg"]
    assert set(named) <= set(re.findall(r"^ARG (\w+)=", DOCKERFILE, flags=re.MULTILINE))


def test_optimizer_table_is_complete() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", TEXT, flags=re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(gpuopt.optimizers())
    for name, class_name in rows:
        assert class_name.lower() == name
        assert isinstance(getattr(gpuopt, class_name), type)


def test_backend_table_is_complete() -> None:
    rows = re.findall(r'^\| `"([\w-]+)"` \|', TEXT, flags=re.MULTILINE)
    assert set(rows) == {"auto", "cuda", *gpuopt.backends()}


def test_folders_exist() -> None:
    rows = re.findall(r"^\| (`[^|]+/`[^|]*) \|", TEXT, flags=re.MULTILINE)
    paths = [path for row in rows for path in re.findall(r"`([^`]+)`", row)]
    assert paths and [path for path in paths if not (ROOT / path).exists()] == []
