"""The commands of README.md as a newcomer runs them: in an environment that has the extra `demo` and nothing else, in a folder of
their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from repository import ROOT

pytestmark = pytest.mark.slow
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
SET_UP = next(line for line in LINES if line.endswith("&& gpuopt demo"))
INSTALL, DEMO = SET_UP.split(" && ")
OTHERS = ["gpuopt bench --quick", "gpuopt", "gpuopt show", "python -m gpuopt"]  # named in the text
COMMANDS = list(dict.fromkeys([DEMO, *(line for line in LINES if line.startswith("gpuopt ")), *OTHERS]))


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of a fresh environment are, after the first set-up command, run in a copy of the checkout."""
    work = tmp_path_factory.mktemp("newcomer")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            target = work / "checkout" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
    made = work / "venv" / "bin"
    run(INSTALL, made, work / "checkout")
    return made


def run(command: str, bin_folder: Path, folder: Path) -> str:
    """What a command prints, with that environment first in PATH. Fails with all it said unless it succeeds."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "GPUOPT_BACKEND")}
    env = clean | {
        "PATH": f"{bin_folder}{os.pathsep}{clean['PATH']}",
        "VIRTUAL_ENV": str(bin_folder.parent),
        "PIP_QUIET": "1",
    }
    done = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, bin_folder: Path, tmp_path: Path) -> None:
    """Each works, says something, and writes into the current folder only."""
    said = run(command, bin_folder, tmp_path)
    assert said.strip() and "Traceback" not in said
    made = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    if command.startswith("gpuopt demo"):
        assert made == ["gpuopt-demo-search.html" if "--search" in command else "gpuopt-demo.png"]
    elif command.startswith("gpuopt bench"):
        assert "gpuopt-bench/measurements.csv" in made
        assert "torch" in said and "optax" in said  # left out, with the reason
    else:
        assert made == []
