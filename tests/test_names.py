"""Variables of a rule may have any name: words of C++, helpers of the generated texts, options of the optimizer, Greek.

Such rules run in a process of their own, since a state whose name collides may crash instead of failing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpuopt

CPP = "double int float char auto template union register volatile bool new delete operator typename namespace short"
TARGETS = "int64 half16 bfloat16 byte8 threadIdx blockIdx warpSize THREADS CHUNK COL_NUMEL LANES ROLES Update Storage Rows"
KERNEL = "C mul div s0 s1 s12 select update walk table tiles tile tile_size tile_count row rows record word index numel head"
WALK = "first begin end lo hi i np dtype lane lane0 unit body p_at g_at load_p store_p load_g load_word range len slot out"
CUDA = "hyper written decode Encode Pack walk reduce prepare prepared Decision integer_power cuda sums partials values full"
SCALAR = "power ipow pow fabs exp log math float_bits row_namespace square_root absolute sign_of steps skip r c D"
OPTIONS = "scaled clipped sparse masked direction grad_multiplier before_g after_p"
OTHER = "β μ_1 é2 x_ y__ _z u3b2 lambda_ None_ self cls step_ total bad norm"
WORDS = (CPP, TARGETS, KERNEL, WALK, CUDA, SCALAR, OPTIONS, OTHER)
NAMES = list(dict.fromkeys(" ".join(WORDS).split()))
LOCALS_ONLY = ["mask", "l1", "clip_value", "maximize"]

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


def write_script(folder: Path, kinds: dict[str, tuple[str, list[str]]]) -> dict[str, str]:
    """A user's script with a rule for each name in each kind; the rules' names -> the names they try."""
    tried, text = {}, "from gpuopt import rule, sqrt\n"
    for kind, (template, names) in kinds.items():
        for k, name in enumerate(names):
            text += template.format(k=k, name=name)
            tried[f"{kind}_{k}"] = name
    text += f"RULES = [{', '.join(tried)}]\n"
    (folder / "script.py").write_text(text)
    (folder / "run.py").write_text(RUN)
    return tried


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("names")
    kinds = {
        "state": (STATE, NAMES),
        "local": (LOCAL, NAMES + LOCALS_ONLY),
        "hyper": (HYPER, NAMES),
        "prepared": (PREPARED, NAMES),
    }
    return folder, write_script(folder, kinds)


def run(folder: Path, backend: str) -> tuple[dict[str, tuple[str, str]], str]:
    """Rule name -> what it gave on NumPy and on `backend`, and what went wrong."""
    done = subprocess.run([sys.executable, "run.py", backend], cwd=folder, capture_output=True, text=True)
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return {name: (first, second) for name, first, second in rows}, f"exit code {done.returncode}: {done.stderr[-600:]}"


def test_any_name_on_numpy(rules: tuple[Path, dict[str, str]]) -> None:
    folder, tried = rules
    found, problem = run(folder, "numpy")
    wrong = {(r, name) for r, name in tried.items() if found.get(r) != (str(EXPECTED[r.split("_")[0]]),) * 2}
    assert not wrong, problem


def test_any_name_on_numba(tmp_path: Path) -> None:
    """All names of a kind in one rule, since each compile takes a third of a second."""
    lines = ["from gpuopt import rule, sqrt"]
    states = ", ".join(NAMES)
    lines += [f"@rule(state={tuple(NAMES)!r})", f"def state_all(p, g, {states}, *, lr):"]
    lines += [f"    {name} = {name} + {k} * g" for k, name in enumerate(NAMES)]
    lines += [f"    p = p - lr * {' - lr * '.join(NAMES)}", f"    return p, {states}"]
    everywhere = NAMES + LOCALS_ONLY
    lines += ["@rule()", "def local_all(p, g, *, lr):", *(f"    {name} = {k} * g" for k, name in enumerate(everywhere))]
    lines += [f"    p = p - lr * ({' - '.join(everywhere)})", "    return p"]
    lines += ["@rule()", f"def hyper_all(p, g, *, lr, {', '.join(f'{n}={k + 1}.0' for k, n in enumerate(NAMES))}):"]
    lines += [*(f"    p = p - lr * {name} * g" for name in NAMES), "    return p", "@hyper_all.prepare"]
    lines += [f"def _(step, *, {states}):", f"    return dict(unused=0.5**step + {' + '.join(NAMES)})"]
    lines += ["@rule()", f"def prepared_all(p, g, *, lr, {states}):", *(f"    p = p - {n} * g" for n in NAMES)]
    lines += ["    return p", "@prepared_all.prepare", "def _(step, *, lr):"]
    lines += [f"    return dict({', '.join(f'{n}=lr * {k}' for k, n in enumerate(NAMES))})"]
    lines += ["RULES = [state_all, local_all, hyper_all, prepared_all]"]
    (tmp_path / "script.py").write_text("\n".join(lines) + "\n")
    (tmp_path / "run.py").write_text(RUN)
    found, problem = run(tmp_path, "numba")
    assert set(found) == {"state_all", "local_all", "hyper_all", "prepared_all"}, problem
    assert {name for name, (first, second) in found.items() if first != second} == set()


@pytest.mark.parametrize("kind", ["state", "local", "hyper", "prepared"])
def test_any_name_compiles_as_cuda(kind: str, rules: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """With NVRTC, which needs no GPU; all rules of a kind in one unit, each in a namespace of its own."""
    from cuda.core import Program, ProgramOptions

    monkeypatch.syspath_prepend(str(rules[0]))
    sys.modules.pop("script", None)
    import script

    texts = [
        gpuopt.kernel_source(r, backend="cuda", part=part)
        for r in script.RULES
        if r.name.startswith(kind)
        for part in ("update", "prepare")
    ]
    start = texts[0].index('#line 1 "generated"')
    headers = texts[0][:start]
    assert all(text.startswith(headers) for text in texts)
    bodies = [text[start:].replace('extern "C" __global__', "__global__") for text in texts]
    unit = headers + "".join(f"namespace n{k} {{\n{body}\n}}\n" for k, body in enumerate(bodies))
    Program(unit, "c++", ProgramOptions(std="c++17", arch="sm_80")).compile("ptx")


@pytest.mark.parametrize("name", ["mask"])
def test_a_state_cannot_have_the_name_of_a_role(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_script(tmp_path, {"state": (STATE, [name])})
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("script", None)
    with pytest.raises(SyntaxError, match=f"{name}.*") as caught:
        import script  # noqa: F401
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
