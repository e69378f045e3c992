"""The command line: every command, its exit codes, and errors as one readable line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import gpuopt
from fake_driver import FakeDriver
from gpuopt import cli, info


def test_info_names_versions_backends_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"gpuopt {gpuopt.__version__}\n")
    assert "numba " in printed and "CUDA devices:" in printed
    for name, why_not in gpuopt.backends().items():
        line = next(line for line in printed.splitlines() if line.startswith(f"  {name} "))
        assert line.split(maxsplit=1)[1].startswith("usable" if why_not is None else "not usable: ")


def test_info_describes_each_device() -> None:
    assert list(info.device_lines(FakeDriver())) == [
        "  2 found; the driver supports CUDA 13.1",
        "  0: Device 0, sm_75, 80.0 GiB",
        "  1: Device 1, sm_100, 80.0 GiB",
    ]


@pytest.mark.parametrize("backend", ["cuda", "numba"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_show_prints_the_kernel_source(backend: str, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "adam", "--backend", backend, "--param-dtype", dtype, "--set", "amsgrad=True"]) == 0
    expected = gpuopt.kernel_source("adam", backend=backend, param_dtype=dtype, amsgrad=True)
    assert capsys.readouterr().out == expected + "\n"
    assert expected != gpuopt.kernel_source("adam", backend=backend, param_dtype=dtype)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("amsgrad=True", ("amsgrad", True)),
        ("nesterov=false", ("nesterov", False)),
        ("lr=1e-3", ("lr", 0.001)),
        ("betas=(0.9, 0.99)", ("betas", (0.9, 0.99))),
        ("state_format=int8", ("state_format", "int8")),
        ("mask=None", ("mask", None)),
    ],
)
def test_set_reads_literals(text: str, pair: tuple[str, object]) -> None:
    assert cli.option(text) == pair


@pytest.mark.parametrize("text", ["amsgrad", "=1", "a b=1"])
def test_set_refuses_what_is_no_pair(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["show", "adam", "--set", text])
    assert stop.value.code == 2
    assert f"expected NAME=VALUE, got {text!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["show", "nosuch"], "nosuch"),
        (["show", "adam", "--backend", "abacus"], "abacus"),
        (["demo", "--optimizer", "nosuch"], "nosuch"),
        (["demo", "--dtype", "int7"], "int7"),
        (["demo", "--backend", "abacus"], "abacus"),
    ],
)
def test_error_is_one_line_that_names_the_value(
    command: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("gpuopt: ") and printed.err.count("\n") == 1 and named in printed.err
    assert printed.out == "" and list(tmp_path.iterdir()) == []


def test_errors_of_several_lines_become_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **options: object) -> str:
        raise gpuopt.GpuoptError("first\n   second")

    monkeypatch.setattr(gpuopt, "kernel_source", fail)
    assert cli.main(["show", "adam"]) == 2
    assert capsys.readouterr().err == "gpuopt: first second\n"


def test_bench_hands_its_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    fake = ModuleType("gpuopt.bench")
    fake.main = lambda arguments: seen.append(arguments) or 3  # type: ignore[attr-defined,func-returns-value]
    monkeypatch.setitem(sys.modules, "gpuopt.bench", fake)
    assert cli.main(["bench", "adamw", "--size", "1000"]) == 3
    assert seen == [["adamw", "--size", "1000"]]


def test_bench_says_where_the_benchmarks_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(cli, "import_module", missing)
    assert cli.main(["bench"]) == 2
    assert "benchmarks/" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["show"]])
def test_a_command_alone_helps(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It says what there is to say instead of failing."""
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert ("usage: gpuopt" in said) is (command == [])
    listed = [line.split()[0] for line in said.splitlines() if line and not line.startswith("gpuopt")]
    assert command == [] or listed == gpuopt.optimizers()
    assert max(map(len, said.splitlines())) <= 112


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "gpuopt"], capture_output=True, text=True, check=True)
    assert "usage: gpuopt" in done.stdout and "show" in done.stdout and not done.stderr


OWN = """import gpuopt

@gpuopt.rule(state=("m",))
def mine(p, g, m, *, lr, beta=0.9):
    m = m * beta + g
    p = p - lr * m
    return p, m
"""


def test_show_takes_a_rule_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By module and name, from the current folder; what does not lead to one says what there is."""
    (tmp_path / "shown_here.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert cli.main(["show", "shown_here:mine", "--backend", "numba", "--set", "beta=0.5"]) == 0
    shown = capsys.readouterr().out
    assert "def walk(" in shown and "m_ = load_2(" in shown and "store_2(at_2, i, m_)" in shown
    for wrong, words in (
        ("shown_here:min", "it has mine; did you mean 'mine'?"),
        ("shown_her:mine", "no module 'shown_her'"),
        ("shown_here.py", "write module:rule, such as shown_here:my_rule"),
        ("adamww", "did you mean 'adamw'?"),
    ):
        assert cli.main(["show", wrong]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["beta9=1"], "unknown option 'beta9' of AdamW; it takes lr, "),
        (["betas=(0.9,1.5)"], "betas = 1.5: expected a number in [0, 1)"),
        (["amsgrad=3"], "amsgrad = 3: expected one of (False, True)"),
        (["lr=fast"], "lr = 'fast': expected a number"),
        (["state_format=int3"], "expected one of float32, bfloat16"),
    ],
)
def test_set_checks_values(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "adamw", *(word for o in options for word in ("--set", o))]) == 2
    assert words in capsys.readouterr().err


def test_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("gpuopt")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"gpuopt {gpuopt.__version__}\n"


def test_closed_pipe_is_quiet() -> None:
    command = f"'{sys.executable}' -m gpuopt.cli show adamw --backend numba | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    from gpuopt import bench

    monkeypatch.setattr(bench, "run", lambda *_: pytest.fail("measured"))
    with pytest.raises(OSError, match="file"):
        bench.main(["--quick", "--out", str(tmp_path / "file")])
