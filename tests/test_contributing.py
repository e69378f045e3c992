""".github/ and .pre-commit-config.yaml: what they name exists, and the first rule and backend of a newcomer work as they say."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import gpuopt
from documents import EXTRAS, PROJECT, blocks, check_command, commands
from repository import FILES, ROOT

pytestmark = pytest.mark.once
PAGE = ROOT / ".github" / "CONTRIBUTING.md"
TEXT = PAGE.read_text()
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
HOOKS = ROOT / ".pre-commit-config.yaml"
VERSIONS = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))


# ---------------------------------------------------------------------------------------------------- the page


@pytest.mark.parametrize("command", commands(TEXT))
def test_command_exists(command: str) -> None:
    check_command(command)


@pytest.mark.parametrize(
    "wrong", ["python -m pytest --prof", "python -m pip install '.[cuda9]'", "benchmarks/run_cpu.sh", "NO=1 .ci/run"]
)
def test_a_command_that_does_not_exist_is_noticed(wrong: str) -> None:
    with pytest.raises((AssertionError, FileNotFoundError)):
        check_command(wrong)


def test_every_path_and_name_exists() -> None:
    """Files, folders, commands and tables in backticks, outside of the page's own blocks."""
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    words = re.findall(r"`([^`\n]+)`", prose)
    paths = [w for w in words if re.fullmatch(r"[\w.-]+(/[\w.-]*)+", w)]
    assert len(paths) > 30 and [p for p in paths if not (ROOT / p).exists()] == []
    source = "".join((ROOT / path).read_text() for path in FILES if path.suffix == ".py" and path.parts[0] == "gpuopt")
    for name in (w for w in words if re.fullmatch(r"[A-Z_]{3,}|[A-Z]\w+Backend", w) and w != "OUT"):
        assert re.search(rf"^(class )?{name}\b", source, flags=re.MULTILINE), f"{name} is nowhere"
    for command in (w for w in words if w.startswith("python -m ")):
        if "HeavyBall" not in command:
            check_command(command)


def test_the_page_is_short() -> None:
    assert len(TEXT.splitlines()) <= 155 and max(map(len, TEXT.splitlines())) <= 140


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the page's blocks in the files that they name, and the lines in tables that its text asks for."""
    folder = tmp_path_factory.mktemp("checkout")
    for part in ("gpuopt", "kernels", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for block in blocks(TEXT, "python"):
        path = folder / block.splitlines()[0].removeprefix("# ")
        path.write_text((path.read_text() + "\n\n" if path.exists() else "") + block)
    tables = folder / "gpuopt" / "backends" / "__init__.py"
    text = tables.read_text()
    for name, value in {"MODULES": "counting", "DEVICES": "cpu"}.items():
        text, count = re.subn(rf"^{name} = {{", f'{name} = {{"counting": "{value}", ', text, flags=re.MULTILINE)
        assert count == 1, f"there is no table {name}"
    tables.write_text(text)
    return folder


def run(folder: Path, *words: str) -> str:
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""}
    env.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_first_rule_agrees_with_its_oracle(changed: Path) -> None:
    """By the command that the page gives."""
    command = next(w for w in re.findall(r"`([^`\n]+)`", TEXT) if w.startswith("python -m ") and "HeavyBall" in w)
    said = run(changed, *shlex.split(command)[1:], "-q", "-p", "no:cacheprovider")
    assert re.search(r"\b(?:[6-9]|\d\d) passed", said), said


SEEN = """
import numpy as np, torch, gpuopt, gpuopt.torch
assert gpuopt.__file__.startswith({folder!r})
results = []
for backend in ("numpy", "numba", "counting"):
    p = np.linspace(-1, 1, 1000, dtype=np.float32)
    opt = gpuopt.HeavyBall([p], lr=0.1, backend=backend)
    for _ in range(3):
        opt.step([p + 1])
    results.append(p.tobytes())
assert results == results[:1] * 3
from gpuopt import backends
assert backends.get("counting", "cpu").elements == 3000
assert "counting" in gpuopt.backends() and "heavyball" in gpuopt.optimizers()
assert issubclass(gpuopt.torch.HeavyBall, torch.optim.Optimizer)
assert "heavyball" in gpuopt.kernel_source("heavyball", backend="cuda")
"""


def test_the_first_rule_and_backend_are_everywhere(changed: Path) -> None:
    run(changed, "-c", SEEN.format(folder=str(changed)))


@pytest.mark.parametrize(
    "tool", [["ruff", "check", "--no-cache"], ["ruff", "format", "--no-cache", "--check"], ["mypy"]]
)
def test_what_the_page_shows_is_written_as_the_repository_is(changed: Path, tool: list[str]) -> None:
    added = ["gpuopt/rules/heavyball.py", "gpuopt/backends/counting.py"]
    run(changed, "-m", *tool, *added, *([] if tool == ["mypy"] else ["tests/cases.py", "tests/formulas.py"]))


# ---------------------------------------------------------------------------------------------------- CI and hooks


def parsed(path: Path) -> Any:
    """A file in YAML, of which `on` is a truth value."""
    return {"on" if key is True else key: value for key, value in yaml.safe_load(path.read_text()).items()}


def steps() -> list[dict[str, Any]]:
    return [step for job in parsed(WORKFLOW)["jobs"].values() for step in job["steps"]]


def test_the_workflow_runs_ci_under_every_supported_python_and_the_long_marks_by_the_clock() -> None:
    flow = parsed(WORKFLOW)
    run_job, long_job = flow["jobs"]["run"], flow["jobs"]["long"]
    assert run_job["strategy"]["matrix"]["python-version"] == VERSIONS
    assert any(".ci/run" in step.get("run", "") for step in run_job["steps"])
    assert any(".ci/long" in step.get("run", "") for step in long_job["steps"])
    assert {"push", "pull_request", "schedule"} <= flow["on"].keys()
    assert all(len(entry["cron"].split()) == 5 for entry in flow["on"]["schedule"])
    fixed = [s["with"]["python-version"] for s in steps() if "with" in s]
    assert all(version in VERSIONS or "matrix.python-version" in version for version in fixed)


def test_every_step_of_the_workflow_names_what_exists() -> None:
    for step in steps():
        assert ("run" in step) != ("uses" in step)
        for line in step.get("run", "").splitlines():
            check_command(line)
        assert re.fullmatch(r"actions/(checkout|setup-python)@v\d+", step.get("uses", "actions/checkout@v4"))


def test_hooks_are_local_and_their_tools_are_those_of_the_test_extra() -> None:
    """So that no version stands anywhere but in pyproject.toml."""
    pinned = {re.split(r"\W", requirement)[0] for requirement in EXTRAS["test"] + EXTRAS["test-arrays"]}
    repositories = parsed(HOOKS)["repos"]
    assert [found["repo"] for found in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    for hook in hooks:
        words = shlex.split(hook["entry"])
        assert hook["language"] == "system" and not hook.get("additional_dependencies") and "rev" not in hook
        assert words[:2] == ["python", "-m"] and words[2] in pinned and find_spec(words[2])
        assert [w for w in words if w.startswith("tests/") and not (ROOT / w).exists()] == []
    assert {"ruff", "mypy"} <= {shlex.split(hook["entry"])[2] for hook in hooks}


@pytest.mark.parametrize("index", range(3))
def test_a_hook_passes_on_what_is_committed(index: int) -> None:
    hook = parsed(HOOKS)["repos"][0]["hooks"][index]
    given = [] if hook.get("pass_filenames") is False else ["gpuopt/__init__.py", "tests/documents.py"]
    words = shlex.split(hook["entry"])[1:] + given
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_host_is_named() -> None:
    for path in (PAGE, WORKFLOW, HOOKS):
        assert "://" not in path.read_text()
    assert Path(gpuopt.__file__).parent == ROOT / "gpuopt"
