"""README.md: every Python block runs, every shell command names something that exists, every table is complete."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import gpuopt
from documents import PROJECT, blocks, check_command, commands
from gpuopt import cli
from gpuopt.optim.decay import MODES
from repository import ROOT

pytestmark = pytest.mark.once
TEXT = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("index", range(len(blocks(TEXT, "python"))))
def test_python_block_runs(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / f"block_{index}.py"
    script.write_text(blocks(TEXT, "python")[index])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "init_process_group" in script.read_text():  # as torchrun does
        for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}.items():
            monkeypatch.setenv(name, str(value))
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("command", commands(TEXT))
def test_shell_command_exists(command: str) -> None:
    check_command(command)


def test_optimizer_table_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """And so complete, and true of every rule."""
    assert cli.main(["show", "--table"]) == 0
    assert capsys.readouterr().out in TEXT, "put into README.md what `gpuopt show --table` prints"


def test_backend_table_is_complete() -> None:
    rows = re.findall(r'^\| `"([\w-]+)"` \|', TEXT, flags=re.MULTILINE)
    assert set(rows) == {"auto", "cuda", *gpuopt.backends()}


def test_decay_table_is_complete() -> None:
    table = TEXT.partition("| `weight_decay_mode=` |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == ["None", *MODES]


def test_format_table_is_complete() -> None:
    from gpuopt.optim.settings import PARAM_FORMATS

    table = TEXT.partition("| `param_format=` |")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == PARAM_FORMATS


def test_folders_exist() -> None:
    rows = re.findall(r"^\| (`[^|]+/`[^|]*) \|", TEXT, flags=re.MULTILINE)
    paths = [path for row in rows for path in re.findall(r"`([^`]+)`", row)]
    assert paths and [path for path in paths if not (ROOT / path).exists()] == []


def test_changes_begin_with_this_version() -> None:
    versions = re.findall(r"^### (\d+\.\d+\.\d+)", TEXT.partition("\n## Changes\n")[2], flags=re.MULTILINE)
    assert versions and versions[0] == PROJECT["version"]
    assert versions == sorted(versions, key=lambda v: tuple(map(int, v.split("."))), reverse=True)
