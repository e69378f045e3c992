"""benchmarks/run_gpu.sh rehearsed from its first line to its last without a GPU: each command that it would run there is one that
runs, in the right order, whatever fails on the way. And the programs that it starts, on the driver of tests/driver.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from gpuopt import cli
from gpuopt.bench import rows
from gpuopt.compiler import nvrtc
from repository import ROOT
from shim.shared import kernels

SCRIPT = ROOT / "benchmarks" / "run_gpu.sh"
# In the place of Python: writes down what it is asked for; a GPU can be used, everything is installed, and {fails} fails.
STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"{log}"
case "$*" in
    -c*) exit 0 ;;
    *"{fails}"*) {then} ;;
esac
"""
# In the place of compute-sanitizer: runs the program behind its own options.
SANITIZER = """#!/usr/bin/env bash
[ "$1" = --tool ] && [ "$3" = --error-exitcode ] && shift 4
exec "$@"
"""
Run = Callable[..., tuple[subprocess.CompletedProcess[str], list[str]]]


@pytest.fixture
def rehearsed(tmp_path: Path) -> Run:
    def run(minutes: str = "8", fails: str = "nothing", then: str = "exit 3", **extra: str) -> Any:
        python, log = tmp_path / "python", tmp_path / "asked"
        sanitizer = tmp_path / "compute-sanitizer"
        python.write_text(STAND_IN.format(log=log, fails=fails, then=then))
        sanitizer.write_text(SANITIZER)
        for program in (python, sanitizer):
            program.chmod(0o755)
        given = {
            "PYTHON": str(python),
            "OUT": str(tmp_path / "out"),
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            **extra,
        }
        done = subprocess.run([SCRIPT, minutes], env=os.environ | given, capture_output=True, text=True, timeout=240)
        return done, [line for line in log.read_text().splitlines() if not line.startswith("-c")]

    return run


def test_every_command_of_a_machine_with_a_gpu(rehearsed: Run) -> None:
    done, asked = rehearsed()
    assert done.returncode == 0 and "not found" not in done.stderr, done.stdout + done.stderr
    kinds = [re.sub(r"^(-m \S+|\S+).*", r"\1", line) for line in asked]
    first = ["-m gpuopt.cli", "benchmarks/smoke.py", "-m pytest", "-m pytest"]
    sanitized = ["benchmarks/sanitize_suite.py"] * 2
    assert kinds == [*first, *sanitized, *["-m gpuopt.bench"] * 2]
    assert "--device cuda" in asked[-2] and "--device cpu" in asked[-1]
    for line in asked:
        if line.startswith("-m gpuopt.bench"):
            assert cli.parser().parse_args(["bench", *line.split()[2:]]).command
    summary = done.stdout.partition("--- summary")[2]
    tools = [f"compute-sanitizer {tool}" for tool in ("memcheck", "racecheck")]
    for name in ("smoke test", "tests marked gpu", "tests marked gpu that need torch", *tools, "benchmarks on cuda"):
        assert f"done: {name}\n" in summary


def test_the_tests_that_it_names_are_there(rehearsed: Run) -> None:
    """In two calls: where torch's own test table does not import, the tests of arrays have run."""
    _, asked = rehearsed()
    with_torch = []
    for line in asked[2:4]:
        words = line.split()
        assert words[words.index("--dist") + 1] == "worksteal" and "--continue-on-collection-errors" in words
        files = [word for word in words if word.startswith("tests/")]
        with_torch.append({("torch" in (ROOT / name).read_text()) for name in files})
        options = [word for word in words[2:] if word not in (*files, "--require-gpu")]
        place = options.index("-n")
        del options[place : place + 4]
        command = [sys.executable, "-m", "pytest", *options, "--collect-only", *files]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout[-2000:]
        assert int(re.findall(r"(\d+)(?:/\d+)? tests collected", done.stdout)[0]) > 50
    assert with_torch == [{False}, {True}]


@pytest.mark.parametrize("fails", ["smoke.py", "-m pytest", "sanitize_suite", "--device cuda"])
def test_what_fails_is_told_and_the_rest_runs(fails: str, rehearsed: Run) -> None:
    done, asked = rehearsed(fails=fails)
    assert done.returncode == 1 and "FAILED: " in done.stdout and "(exit code 3)" in done.stdout
    assert "--device cpu" in asked[-1] and len(asked) == len(rehearsed()[1]) / 2


def test_what_is_cut_short_has_told_what_failed(rehearsed: Run, tmp_path: Path) -> None:
    slow = tmp_path / "test_slow.py"
    slow.write_text("import time\ndef test_a(): assert 1 == 2\ndef test_b(): time.sleep(100)\n")
    then = f"exec {sys.executable} -m pytest -q -p no:cacheprovider {slow}"
    done, asked = rehearsed("0.1", fails="-m pytest", then=then)
    assert "cut short: tests marked gpu (time)" in done.stdout and "--device cpu" in asked[-1]
    assert "FAILED" in (tmp_path / "out" / "checks.log").read_text()


def test_carried_cubins_are_a_copy_of_ones_own(rehearsed: Run, tmp_path: Path) -> None:
    """The cache refuses a folder that others may write to."""
    (tmp_path / "carried").mkdir(mode=0o777)
    (tmp_path / "carried" / "a.cubin").write_text("x")
    then = 'stat -c %a "$GPUOPT_CACHE_DIR" && ls "$GPUOPT_CACHE_DIR"'
    done, _ = rehearsed(fails="gpuopt.cli info", then=then, CUBINS=str(tmp_path / "carried"))
    assert "700\na.cubin" in done.stdout


KERNEL = 'extern "C" __global__ void k(float* p) { p[0] *= 2.0f; }'
USED = f"""
from gpuopt.compiler import nvrtc
nvrtc._program_types = lambda: 1 / 0
print(len(nvrtc.compile_cubin({KERNEL!r}, "sm_90")), "bytes of a carried cubin")
"""


def test_cubins_made_elsewhere_are_used(rehearsed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a compiler on a machine without a GPU; there nothing is compiled any more."""
    monkeypatch.setenv("GPUOPT_CACHE_DIR", str(tmp_path / "made"))
    monkeypatch.delenv("GPUOPT_CACHE", raising=False)
    made = len(nvrtc.compile_cubin(KERNEL, "sm_90"))
    (tmp_path / "made").chmod(0o755)  # as an archive leaves it
    (tmp_path / "use.py").write_text(USED)
    done, _ = rehearsed(
        fails="gpuopt.cli info", then=f"exec {sys.executable} {tmp_path}/use.py", CUBINS=str(tmp_path / "made")
    )
    assert f"{made} bytes of a carried cubin" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_all_of_it_on_the_driver_without_a_gpu(tmp_path: Path) -> None:
    """The programs themselves, from the first to the last, on small sizes."""
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(SANITIZER)
    sanitizer.chmod(0o755)
    folders = [ROOT / "tests", ROOT / "tests" / "driver" / "site", os.environ.get("PYTHONPATH", "")]
    given = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "OUT": str(tmp_path / "out"),
        "PTX_MULTIPROCESSORS": "1",
        "GPUOPT_CACHE_DIR": str(kernels()),
        "PYTEST_ADDOPTS": "-k waits_for_work",
        "BENCH_OPTIONS": "--quick --suite host --suite start --case 150 --only cupy,numba",
        "SANITIZE_OPTIONS": "--sizes 1 255 --only adamw",
    }
    inner = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run([SCRIPT, "8"], env=inner | given, capture_output=True, text=True, timeout=500)
    summary = done.stdout.partition("--- summary")[2].splitlines()[1:-1]
    logs = "".join((tmp_path / "out" / name).read_text()[-8000:] for name in ("checks.log", "bench.log"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + logs
    assert summary == [
        "done: smoke test",
        "done: tests marked gpu",
        "skipped: tests marked gpu that need torch, torch is not installed with CUDA",
        "done: compute-sanitizer memcheck",
        "done: compute-sanitizer racecheck",
        "done: benchmarks on cuda",
        "done: benchmarks on cpu",
        "done: plots",
    ]
    measured = [r for r in rows.read(tmp_path / "out" / rows.NAME) if r.cuda]
    assert {r.provider for r in measured} >= {"gpuopt cupy", "gpuopt numba-cuda", "CuPy expressions"}
    assert all(r.status == "ok" for r in measured), [(r.provider, r.note) for r in measured]
    assert "1 passed" in logs and "6 runs on cupy, numba-cuda, 0 differ" in logs


def loaded(name: str) -> Any:
    spec = spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.gpu
def test_the_smoke_test_of_arrays(capsys: pytest.CaptureFixture[str]) -> None:
    smoke = loaded("smoke")
    checks = tuple(check for check in smoke.CHECKS if check[1] != "torch")
    assert len(checks) >= 6 and smoke.main(checks) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.count("works: ") == len(checks)


def test_the_smoke_test_names_what_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    smoke = loaded("smoke")

    def broken() -> None:
        raise RuntimeError("no such kernel")

    checks = (("one", "numpy", broken), ("two", "no_such_package", broken), ("three", "numpy", lambda: None))
    assert smoke.main(checks) == 1
    said = capsys.readouterr().out
    assert "BROKEN: one: RuntimeError: no such kernel" in said and "not installed: no_such_package" in said
    assert "works: three" in said


@pytest.mark.gpu
def test_the_sanitizer_suite(capsys: pytest.CaptureFixture[str]) -> None:
    assert loaded("sanitize_suite").main(["--sizes", "1", "255", "--only", "adamw"]) == 0
    assert "6 runs on cupy, numba-cuda, 0 differ" in capsys.readouterr().out
