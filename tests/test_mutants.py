"""The tests' test: the engine broken on purpose, one small change at a time, must fail a check of `mutant_checks.py`.

Each mutant is a copy of the package in a temporary folder with one replacement, run in a process of its own. A pattern that
is not found any more fails the test: then the code has moved on, and the mutant has to follow.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gpuopt
from repository import ROOT

pytestmark = pytest.mark.once
PACKAGE = Path(gpuopt.__file__).parent
CHECKS = Path(__file__).with_name("mutant_checks.py")
EVERY_CHECK = re.findall(r"^def (\w+)\(\) -> None", CHECKS.read_text(), re.MULTILINE)

# what is broken: file, what stands there (a regular expression), what stands there instead, the check that must notice
MUTANTS = {
    "Adam without bias correction": ("rules/parts.py", r"return lr / \(1 - beta1\*\*step\)", "return lr", "adam"),
    "betas swapped": ("optim/hyper.py", r"(tuples\[name\]), members\(value\)", r"\1[::-1], members(value)", "adam"),
    "eps inside the root": ("rules/parts.py", r"sqrt\(v\) \* inverse \+ eps", "sqrt(v + eps) * inverse", "adam"),
    "steps not counted": ("launch/launcher.py", r"= self\.step \+ 1", "= self.step", "adam"),
    "Adagrad's rate a step late": ("rules/adagrad.py", r"\(step - 1\)", "step", "rates"),
    "DGD's rate a step early": ("rules/dgd.py", r"\(step - 1\)", "step", "rates"),
    "the first gradient damped": ("rules/parts.py", r"1 if step == 1 else 1 - dampening", "1 - dampening", "rates"),
    "schedule asked for the next step": ("optim/hyper.py", r"found\[name\]\(step - 1\)", "found[name](step)", "rates"),
    "one step count for all": ("optim/engine.py", r"(p\.group, p\.counter\.step), .*\)", r"\1, True)", "counts"),
    "l1 without lr": ("rules/options.py", r"abs\(p\) - lr \* l1", "abs(p) - l1", "options"),
    "lr_ratio without lr_max": ("optim/decay.py", r"in BY_PEAK else \{\}", "in () else {}", "decays"),
    "corrected is decoupled": ("rules/options.py", r"decay_corrected \* lr\)", "decay_corrected)", "decays"),
    "proximal multiplies": ("rules/options.py", r"p / \(1 \+", "p * (1 -", "decays"),
    "cautious is decoupled": ("rules/options.py", r"where\(sign\(old\) \* \(old - p\) >= 0, (.*?), p\)", r"\1", "decays"),
    "a decay twice": ("optim/hyper.py", r"= 0\.0, (\{\*\*group)", r"= values['weight_decay'], \1", "decays"),
    "maximize minimises": ("optim/hyper.py", r'-1\.0 if group\.get\("maximize"\)', '1.0 if group.get("maximize")', "options"),
    "norm clipping enlarges": ("backends/host.py", r"minimum\((divided\(.*?1e-6\)), 1\.0\)", r"(\1)", "options"),
    "scale multiplies": ("backends/host.py", r"divided\(1\.0, (first\(request\.grad_scale\))\)", r"\1", "options"),
    "NaN not noticed": ("backends/host.py", r"request\.check_finite and", "False and", "skipping"),
    "skipped step counted": ("backends/host.py", r"if skip:\n", "if skip:\n            counters[0].step += 1\n", "skipping"),
    "overlap not noticed": ("optim/parameters.py", r"if begin < end and", "if False and", "refusals"),
    "gradient in a parameter": ("optim/parameters.py", r"if not hit\.any\(\)", "if True", "refusals"),
    "layouts confused": ("optim/engine.py", r"and not same_order\(view, p\.view\)", "and False", "layouts"),
    "last element of a tile": ("../kernels/multi_tensor_cpu.py", r"tile_size, numel\)", "tile_size - 1, numel)", "tiles"),
    "last element of a tensor": ("../kernels/multi_tensor_cpu.py", r"tile_size, numel\)", "tile_size, numel - 1)", "tiles"),
    "head forgotten": ("../kernels/multi_tensor_cpu.py", r"begin = first if index > 0 else 0", "begin = first", "tiles"),
    "last tile not cut": ("launch/plan.py", r"-\(-numels // size\)", "numels // size", "tiles"),
    "address of before": ("launch/plan.py", r"column\[changed\] = addresses\[changed\]", "pass", "tiles"),
    "16 bits rounded to nearest": ("formats/stochastic.py", r"\(w \+ \(random.*?\)\) >> 16", "(w + 0x7FFF) >> 16", "stalling"),
    "16 bits cut off": ("formats/stochastic.py", r"\(w \+ .*?\)\) >>", "w >>", "stalling"),
    "tail not summed": ("../kernels/reduce_cpu.py", r"count - strip\)", "count - strip - 1)", "sums"),
}  # fmt: skip


def run(folder: Path, *checks: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(CHECKS), *checks]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def copy_package(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / "gpuopt", ignore=shutil.ignore_patterns("__pycache__"))
    kernels = PACKAGE / "kernels" if (PACKAGE / "kernels").is_dir() else ROOT / "kernels"
    shutil.copytree(kernels, folder / "kernels", dirs_exist_ok=True)
    return folder / "gpuopt"


def test_the_package_as_it_is_passes_every_check(tmp_path: Path) -> None:
    copy_package(tmp_path)
    done = run(tmp_path, *EVERY_CHECK)
    assert done.returncode == 0, done.stderr


def test_every_check_has_a_mutant_and_the_copy_is_what_runs(tmp_path: Path) -> None:
    assert {check for *_, check in MUTANTS.values()} == set(EVERY_CHECK)
    (copy_package(tmp_path) / "__init__.py").write_text("raise SystemExit(77)")
    assert run(tmp_path).returncode == 77


@pytest.mark.parametrize("what", MUTANTS)
def test_mutant_is_killed(what: str, tmp_path: Path) -> None:
    name, pattern, replacement, check = MUTANTS[what]
    package = copy_package(tmp_path)
    text, found = re.subn(pattern, replacement, (package / name).read_text())
    (package / name).write_text(text)
    assert found, f"{pattern} is not in {name} any more"
    done = run(tmp_path, check)
    assert done.returncode == 1, f"survived: {check} passed, or did not run ({done.stderr[-300:]})"
    assert "SyntaxError" not in done.stderr and "NameError" not in done.stderr, done.stderr
