"""How the command line helps: lists, suggestions for misspelt words, checked options, own rules, ends without a traceback."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpuopt
from gpuopt import cli, rules
from gpuopt.optim.hyper import defaults_of
from gpuopt.source import parts, program
from repository import ROOT

# ---------------------------------------------------------------------------------------------------- help


def test_the_examples_of_the_help_are_commands() -> None:
    lines = [line.strip() for line in (cli.EXAMPLES + cli.SHOW_HELP).splitlines() if line.startswith("  gpuopt")]
    assert len(lines) == 11
    for line in lines:
        cli.parser().parse_args(re.split(r"\s{2,}", line)[0].split()[1:])


def test_show_without_a_name_lists_the_optimizers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, line in zip(gpuopt.optimizers(), lines, strict=False):
        first, text = line.split(maxsplit=1)
        assert first == name and len(line) <= 120
        assert str(rules.get(name).__doc__).startswith(text.removesuffix(" ..."))
    assert "MODULE:RULE" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["shwo"], "show"),
        (["show", "admw"], "adamw"),
        (["show", "adam", "--bakend", "numba"], "--backend"),
        (["show", "adam", "--backend", "nunba"], "numba"),
        (["show", "adam", "--param-dtype", "float23"], "float32"),
        (["show", "adam", "--set", "amsgard=True"], "amsgrad"),
        (["show", "adam", "--set", "max_gradnorm=1"], "max_grad_norm"),
        (["demo", "--optimizer", "LOIN"], "lion"),
        (["demo", "--backend", "nunba"], "numba"),
        (["demo", "--dtype", "bfloat"], "bfloat16"),
        (["demo", "--qick"], "--quick"),
        (["bench", "--suite", "lrage"], "large"),
        (["bench", "--qick"], "--quick"),
    ],
)
def test_a_misspelt_word_suggests(arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(arguments) == 2
    assert f"did you mean {meant!r}?" in capsys.readouterr().err


def exit_code(arguments: list[str]) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


# ---------------------------------------------------------------------------------------------------- show --set


@pytest.mark.parametrize("name", gpuopt.optimizers())
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("lr=-1", "lr = -1: expected a number in [0, inf)"),
        ("lr=fast", "lr = 'fast': expected a number"),
        ("lr=1e999", "lr = inf: expected"),
        ("l1=True", "l1 = True: expected a number"),
        ("maximize=1", "maximize = 1: expected one of (False, True)"),
        ("clip_value=-0.5", "clip_value = -0.5: expected"),
        ("max_grad_norm=-1", "max_grad_norm = -1: expected"),
        ("grad_scale=0", "grad_scale = 0: expected"),
        ("skip_nonfinite=no", "skip_nonfinite = 'no': expected one of False, True"),
        ("capturable=2", "capturable = 2: expected one of False, True"),
        ("mask=3", "mask = 3: expected one of False, True"),
        ("bounds=3", "bounds = 3: expected one of False, True"),
        ("param_format=int8", "param_format = 'int8': expected one of native"),
        ("part=all", "part = 'all': expected one of {}"),
        ("grad_dtype=float64", "grad_dtype = 'float64': expected one of float32, float16, bfloat16 for float32"),
        ("nothing=1", "unknown option 'nothing'"),
        ("rule=lion", "gpuopt show RULE"),
        ("backend=numba", "--backend NAME"),
        ("param_dtype=float64", "--param-dtype NAME"),
    ],
)
def test_set_refuses_what_the_optimizer_would(
    name: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # reduce_1 ..., of a rule that sums; update_stage_1, of one that multiplies matrices
    known = ", ".join(parts(program(name), "cuda"))
    assert exit_code(["show", name, "--set", value]) == 2
    printed = capsys.readouterr()
    assert words.format(known) in printed.err and printed.out == ""


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_set_knows_numbers_that_are_no_literals(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "prodigy", "--set", "growth_rate=inf"]) == 0
    assert capsys.readouterr().out
    assert exit_code(["show", "adam", "--set", f"lr={value}"]) == 2
    assert f"lr = {value}: expected a number in [0, inf)" in capsys.readouterr().err


@pytest.mark.parametrize("name", [n for n in gpuopt.optimizers() if "betas" in defaults_of(rules.get(n))])
@pytest.mark.parametrize("value", ["0.9", "(0.9,)", "(0.9,...,0.999)", "(...,1)", "(-0.1,...)", "(...,None)", "big"])
def test_set_checks_betas(name: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Three dots stand for as many betas as the optimizer has, less the one beside them."""
    betas = defaults_of(rules.get(name))["betas"]
    value = value.replace("...", ",".join(["0.9"] * (len(betas) - 1)))
    assert exit_code(["show", name, "--set", f"betas={value}"]) == 2
    assert "betas = " in capsys.readouterr().err


@pytest.mark.parametrize("value", ["int3", "3", "{'m': 'int3'}", "{'q': 'bfloat16'}"])
def test_set_checks_state_formats(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["show", "adam", "--set", f"state_format={value}"]) == 2
    assert "state_format" in capsys.readouterr().err


def test_set_checks_values_that_do_not_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["show", "sgd", "--set", "nesterov=True"]) == 2
    assert "nesterov with momentum 0" in capsys.readouterr().err
    assert exit_code(["show", "sgd", "--set", "nesterov=True", "--set", "momentum=0.9"]) == 0


def test_an_unknown_option_lists_all_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["show", "adamw", "--set", "nothing=1"]) == 2
    printed = capsys.readouterr().err
    takes = inspect.signature(gpuopt.AdamW).parameters.keys() - {"params", "backend"}
    assert takes and [name for name in takes if name not in printed] == []


@pytest.mark.parametrize("name", gpuopt.optimizers())
def test_set_takes_every_option_that_the_optimizer_has(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    takes = inspect.signature(getattr(gpuopt, rules.get(name).title)).parameters.values()
    given = {p.name: 0.5 if p.default is p.empty else p.default for p in takes if p.name not in ("params", "backend")}
    given["mask"] = given["bounds"] = True
    arguments = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    assert exit_code(["show", name, "--backend", "numba", *arguments]) == 0


# ---------------------------------------------------------------------------------------------------- rules of one's own

OWN = """
import gpuopt

@gpuopt.rule(state=("m",))
def mine(p, g, m, *, lr, beta=0.9):
    m = m + (g - m) * (1 - beta)
    p = p - lr * m
    return p, m

def plain(p, g, *, lr):
    return p - lr * g

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder with some modules in it."""
    files = {
        "cli_rules.py": OWN,
        "cli_broken.py": "x = 1\ny = x / 0\n",
        "cli_syntax.py": "x = = 1\n",
        "cli_needs.py": "import no_such_package\n",
        "cli_power.py": "import gpuopt\n\n@gpuopt.rule()\ndef power(p, g, *, lr):\n    p = p ** lr\n    return p\n",
        "cli_package/__init__.py": "",
        "cli_package/rules.py": OWN,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("cli_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "name", ["cli_rules:mine", "cli_rules.py:mine", "cli_package.rules:mine", "cli_package/rules.py:mine"]
)
@pytest.mark.parametrize("backend", ["numba", "cuda", "numpy"])
def test_show_takes_a_rule_of_the_current_folder(
    name: str, backend: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["show", name, "--backend", backend]) == 0
    assert "m" in capsys.readouterr().out
    assert exit_code(["show", name, "--set", "beta=0.5", "--set", "lr=2"]) == 0
    assert exit_code(["show", name, "--set", "beat=0.5"]) == 2
    assert "did you mean 'beta'?" in capsys.readouterr().err


def test_show_of_a_rule_in_the_console_script(own: Path) -> None:
    """Whose own folder, not the current one, leads Python's path."""
    script = Path(sys.executable).with_name("gpuopt")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([script, "show", "cli_rules:mine"], capture_output=True, text=True, cwd=own, env=environment)
    assert done.returncode == 0 and "gpuopt_update" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cli_rules", ("unknown optimizer 'cli_rules'", "adamw")),
        ("cli_rules.py", ("write module:rule", "cli_rules:")),
        ("cli_rules:mien", ("cli_rules has no rule 'mien'; it has mine", "did you mean 'mine'?")),
        ("cli_rules:", ("it has mine",)),
        ("cli_broken:x", ("ZeroDivisionError", "cli_broken.py", "line 2")),
        ("cli_syntax:x", ("SyntaxError", "cli_syntax.py", "line 1")),
        ("cli_needs:x", ("cli_needs does not import", "no_such_package")),
        ("cli_power:power", ("p ** lr", "cli_power.py, line 5")),
        ("cli_rules:plain", ("the function `plain`", "@gpuopt.rule(state=...)")),
        ("cli_rules:number", ("an object of type int", "@gpuopt.rule")),
        ("cli_rule:mine", ("no module 'cli_rule'", "did you mean 'cli_rules'?")),
        ("cli_package.rule:mine", ("no module 'cli_package.rule'",)),
        ("cli_nothing.rules:mine", ("no module 'cli_nothing.rules'",)),
        (":mine", ("write module:rule", "my_rules:my_rule")),
    ],
)
def test_what_is_no_rule_is_refused_in_one_line(
    name: str, words: tuple[str, ...], own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["show", name]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("gpuopt: ") and printed.err.count("\n") == 1 and printed.out == ""
    assert all(word in printed.err for word in words), printed.err


@pytest.mark.parametrize("rule", [3, None, len, gpuopt.AdamW])
def test_kernel_source_refuses_what_is_no_rule(rule: object) -> None:
    with pytest.raises(gpuopt.InputError, match="expected a rule, made by"):
        gpuopt.kernel_source(rule)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- ends


def test_what_the_system_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert exit_code(["demo", "--quick", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("gpuopt: ")


@pytest.mark.parametrize("seed", ["-1", "1.5", "x"])
def test_a_seed_is_a_whole_number(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["demo", "--seed", seed]) == 2
    assert "expected 0, 1, 2" in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*args: object, **options: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpuopt, "kernel_source", stopped)
    assert exit_code(["show", "adam"]) == 130
    assert capsys.readouterr().err == "\ngpuopt: stopped\n"


@pytest.mark.parametrize("text", ["./own_rules.py:r", "own_rules:Holder.inside"])
def test_show_takes_paths_and_rules_in_classes(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "    @rule\n    def inside(p, g, *, lr):\n        return p - lr * g\n"
    text_of = f"from gpuopt import rule\n\nclass Holder:\n{body}\nr = Holder.inside\n"
    (tmp_path / "own_rules_here.py").write_text(text_of)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert exit_code(["show", text.replace("own_rules", "own_rules_here"), "--backend", "numpy"]) == 0
    assert "def inside" in capsys.readouterr().out


@pytest.mark.parametrize("text", [".own:r", "..own:r", "/tmp:r", "../own.py:r", "a b:r", "1own:r", "ending:r"])
def test_what_is_no_module_is_one_line_without_ours(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ending.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert exit_code(["show", text]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "importlib" not in said
    assert ("ends the process" if text == "ending:r" else "is no name of a module") in said
