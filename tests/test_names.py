"""Variables of a rule may have any name: words of C++, helpers of the generated texts, options of the optimizer, Greek.

Such rules run in a process of their own, since a state whose name collides may crash instead of failing.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpuopt
from gpuopt.compiler.nvrtc import compile_cubin

CPP = "double int float char auto template union register volatile bool new delete operator typename namespace short"
TARGETS = (
    "int64 half16 bfloat16 byte8 threadIdx blockIdx warpSize THREADS CHUNK COL_NUMEL LANES ROLES Update Storage Rows"
)
KERNEL = (
    "C mul div s0 s1 s12 select update walk table tiles tile tile_size tile_count row rows record word index numel head"
)
WALK = (
    "first begin end lo hi i np dtype lane lane0 unit body p_at g_at load_p store_p load_g load_word range len slot out"
)
CUDA = "hyper written decode Encode Pack walk reduce prepare prepared Decision integer_power cuda sums partials values full"
SCALAR = "power ipow pow fabs exp log math float_bits row_namespace square_root absolute sign_of steps skip r c D"
OPTIONS = "scaled clipped sparse masked before_g after_p"
OTHER = "β μ_1 é2 x_ y__ _z lambda_ None_ self cls step_ total bad norm"
WORDS = (CPP, TARGETS, KERNEL, WALK, CUDA, SCALAR, OPTIONS, OTHER)
NAMES = list(dict.fromkeys(" ".join(WORDS).split()))
# Names of the options themselves: free for variables, refused for what a caller or the optimizer would have to tell apart.
OF_OPTIONS = ["direction", "grad_multiplier", "l1", "clip_value", "maximize"]
AT_ONCE = 60  # names in one rule where each rule is compiled, which takes a third of a second

# Each rule does the same: it counts the gradients in a state called NAME, doubles it in a variable called NAME, multiplies by
# a hyperparameter called NAME, or by a prepared scalar called NAME.
STATE = """
@rule(state=({name!r},))
def state_{k}(p, g, {name}, *, lr):
    {name} = {name} + g
    p = p - lr * {name}
    return p, {name}
"""
LOCAL = """
@rule()
def local_{k}(p, g, *, lr):
    {name} = g + g
    {name} = {name} - 0.5 * g
    p = p - lr * {name}
    return p
"""
HYPER = """
@rule()
def hyper_{k}(p, g, *, lr, {name}=3.0):
    p = p - lr * {name} * g
    return p
@hyper_{k}.prepare
def _(step, *, {name}):
    return dict(unused=1 / (1 - 0.5**step) + sqrt({name}))
"""
PREPARED = """
@rule()
def prepared_{k}(p, g, *, lr, {name}):
    p = p - {name} * g
    return p
@prepared_{k}.prepare
def _(step, *, lr):
    {name} = lr * 2
    return dict({name}={name} / 2)
"""
RUN = """
import sys
import numpy as np
import gpuopt
from script import RULES
for rule in RULES:
    results = []
    for backend in ("numpy", sys.argv[1]):
        p, mask = np.array([1.0, -2.0, 0.5], np.float32), np.array([True, False, True])
        optimizer = gpuopt.optimizer(rule, p, lr=0.25, l1=0.25, clip_value=0.5, mask=mask, backend=backend)
        for _ in range(2):
            optimizer.step(np.array([0.25, 2.0, -0.125], np.float32))
        states = optimizer.state_dict()["state"][0]
        results.append([p.tolist(), [s.tolist() for n, s in states.items() if n != "step"]])
    print(rule.name, *results, sep="|", flush=True)
"""
EXPECTED = {  # after two steps with gradient (0.25, 0.5 after clipping, -0.125), lr 0.25, threshold 0.0625, mask (1, 0, 1)
    "state": [[1.0 - 0.1875 - 0.125, 0.0, 0.5 + 0.09375 - 0.125], [[0.5, 1.0, -0.25]]],
    "local": [[1.0 - 0.1875 - 0.125, 0.0, 0.5 + 0.09375 - 0.125], []],
    "hyper": [[1.0 - 0.375 - 0.125, 0.0, 0.5 + 0.1875 - 0.125], []],
    "prepared": [[1.0 - 0.125 - 0.125, 0.0, 0.5 + 0.0625 - 0.125], []],
}


def many(names: list[str]) -> list[str]:
    """The text of one rule of each kind that uses all these names."""
    states = ", ".join(names)
    values = ", ".join(f"{n}={k + 1}.0" for k, n in enumerate(names))
    derived = ", ".join(f"{n}=lr * {k}" for k, n in enumerate(names))
    return [
        *(f"@rule(state={tuple(names)!r})", f"def state_all(p, g, {states}, *, lr):"),
        *(f"    {n} = {n} + {k} * g" for k, n in enumerate(names)),
        *(f"    p = p - lr * {' - lr * '.join(names)}", f"    return p, {states}", "RULES.append(state_all)"),
        *("@rule()", "def local_all(p, g, *, lr):", *(f"    {n} = {k} * g" for k, n in enumerate(names))),
        *(f"    p = p - lr * ({' - '.join(names)})", "    return p", "RULES.append(local_all)"),
        *(
            "@rule()",
            f"def hyper_all(p, g, *, lr, {values}):",
            *(f"    p = p - lr * {n} * g" for n in names),
            "    return p",
        ),
        *(
            "@hyper_all.prepare",
            f"def _(step, *, {states}):",
            f"    return dict(unused=0.5**step + {' + '.join(names)})",
        ),
        *("RULES.append(hyper_all)", "@rule()", f"def prepared_all(p, g, *, lr, {states}):"),
        *(*(f"    p = p - {n} * g" for n in names), "    return p", "@prepared_all.prepare"),
        *("def _(step, *, lr):", f"    return dict({derived})", "RULES.append(prepared_all)"),
    ]


def chunks() -> list[list[str]]:
    return [NAMES[k : k + AT_ONCE] for k in range(0, len(NAMES), AT_ONCE)]


def write_script(folder: Path, lines: list[str]) -> None:
    """A user's script that defines RULES, and the program that runs them."""
    (folder / "script.py").write_text("\n".join(["from gpuopt import rule, sqrt", "RULES = []", *lines]) + "\n")
    (folder / "run.py").write_text(RUN)


def load_rules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[gpuopt.Rule]:
    """The rules of the script in this process."""
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("script", None)
    return list(importlib.import_module("script").RULES)


def run(folder: Path, backend: str, label_by_order: bool = False) -> tuple[dict[str, tuple[str, str]], str]:
    """Rule name -> what it gave on NumPy and on `backend`, and what went wrong."""
    done = subprocess.run([sys.executable, "run.py", backend], cwd=folder, capture_output=True, text=True)
    rows = [line.split("|") for line in done.stdout.splitlines()]
    problem = f"exit code {done.returncode}: {done.stderr[-600:]}"
    return {f"{k}: {row[0]}" if label_by_order else row[0]: (row[1], row[2]) for k, row in enumerate(rows)}, problem


def test_any_name_on_numpy(tmp_path: Path) -> None:
    """A rule for each name of each kind, so that a failure tells the name."""
    tried = {}
    lines = []
    for kind, template in (("state", STATE), ("local", LOCAL), ("hyper", HYPER), ("prepared", PREPARED)):
        for k, name in enumerate(NAMES + (["mask", *OF_OPTIONS] if kind == "local" else [])):
            tried[f"{kind}_{k}"] = name
            lines += [template.format(k=k, name=name), f"RULES.append({kind}_{k})"]
    write_script(tmp_path, lines)
    found, problem = run(tmp_path, "numpy")
    wrong = {(r, name) for r, name in tried.items() if found.get(r) != (str(EXPECTED[r.split("_")[0]]),) * 2}
    assert not wrong, problem


def test_any_name_on_numba(tmp_path: Path) -> None:
    lines = [line for names in chunks() for line in many(names)]
    lines += [LOCAL.format(k=0, name=name) + "RULES.append(local_0)" for name in ("mask", *OF_OPTIONS)]
    write_script(tmp_path, lines)
    found, problem = run(tmp_path, "numba", label_by_order=True)
    assert len(found) == 4 * len(chunks()) + 1 + len(OF_OPTIONS), problem
    assert {name for name, (first, second) in found.items() if first != second} == set()


@pytest.mark.once
def test_any_name_compiles_as_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_script(tmp_path, [line for names in chunks() for line in many(names)])
    for rule in load_rules(tmp_path, monkeypatch):
        for part in ("update", "prepare"):
            compile_cubin(gpuopt.kernel_source(rule, backend="cuda", part=part, param_dtype="float64"), "sm_80")


REFUSED = [
    ("state", STATE, "mask"),
    *((kind, t, n) for n in OF_OPTIONS for kind, t in (("hyper", HYPER), ("prepared", PREPARED))),
]


@pytest.mark.parametrize(("kind", "template", "name"), REFUSED, ids=[f"{kind}-{name}" for kind, _, name in REFUSED])
def test_a_name_that_the_options_need_is_refused(
    kind: str, template: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_script(tmp_path, [template.format(k=0, name=name)])
    with pytest.raises(SyntaxError, match=f"`{name}` .*option") as caught:
        load_rules(tmp_path, monkeypatch)
    assert caught.value.filename == str(tmp_path / "script.py")


def test_a_mask_and_a_variable_called_mask() -> None:
    """The commonest collision: the rule's `mask` is its own, the option's stays the option's."""
    p = np.array([1.0, 2.0, 3.0])

    @gpuopt.rule()
    def masked(p, g, *, lr):
        mask = gpuopt.where(g > 0, 1, 0)
        p = p - lr * mask
        return p

    for backend in ("numpy", "numba"):
        p[...] = 1, 2, 3
        optimizer = gpuopt.optimizer(masked, p, lr=0.5, mask=np.array([True, False, True]), backend=backend)
        optimizer.step(np.array([1.0, 1.0, -1.0]))
        assert p.tolist() == [0.5, 0.0, 3.0]
