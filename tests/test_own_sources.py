"""Decorated, redefined, edited and oddly written rules of a user's own: no text runs but the function's own."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import rule
from own_rules import HEAD, load, moved, scaled
from samples import HOST_BACKENDS

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)


def passing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives the function back as it is."""
    return function


def doubling(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **values: Any) -> Any:
        found = function(*args, **values)
        return {name: 2 * value for name, value in found.items()} if isinstance(found, dict) else 2 * found

    return wrapper


@BACKENDS
def test_decorators_under_a_rule(backend: str) -> None:
    @rule
    @passing
    def plain(p, g, *, lr):
        p = p - lr * g
        return p

    assert moved(plain, backend) == 1.0
    for decorator in (doubling, functools.lru_cache, functools.partial, staticmethod, classmethod):
        with pytest.raises(gpuopt.RuleSyntaxError, match="plain `def`"):
            rule(decorator(plain.function))


@BACKENDS
def test_decorators_under_prepare_and_require_are_applied(backend: str) -> None:
    made = scaled()

    @made.prepare
    @doubling
    def _(step, *, lr):
        return dict(k=lr)

    assert moved(made, backend) == 2.0

    @made.require
    @doubling
    def _(*, lr):
        return "no " if lr > 1 else ""

    with pytest.raises(gpuopt.InputError, match="no no"):
        moved(made, backend, lr=2.0)


@BACKENDS
def test_a_prepare_defined_anew_runs_from_then_on(backend: str) -> None:
    made = scaled()
    made.prepare(lambda step, *, lr: {"k": 1.0})
    w = np.zeros(1)
    optimizer = gpuopt.optimizer(made, w, lr=1.0, backend=backend)
    optimizer.step(np.ones(1))

    @made.prepare
    def _(step, *, lr, gain=3.0):
        return dict(k=gain * lr)

    assert moved(made, backend) == 3.0
    optimizer.step(np.ones(1))
    assert w.tolist() == [-4.0] and optimizer.param_groups[0]["gain"] == 3.0

    @made.prepare
    def _(step, *, lr, more):
        return dict(k=more)

    with pytest.raises(gpuopt.InputError, match="needs more"):
        optimizer.step(np.ones(1))
    optimizer.param_groups[0]["more"] = 5.0
    optimizer.step(np.ones(1))
    assert w.tolist() == [-9.0]


TEXT = """
@rule
def edited(p, g, *, lr, k):
    p = p - lr * k * g
    return p


def formula(step, *, lr):
    return dict(k=1.0)
"""


@BACKENDS
def test_an_edited_source_never_runs(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(tmp_path, TEXT, monkeypatch)
    path = tmp_path / "own_rules_script.py"
    path.write_text("# a new first line\n\n" + HEAD + TEXT.replace("k=1.0", "k=9.0").replace("lr * k", "lr * 9 * k"))
    module.edited.prepare(module.formula)
    assert moved(module.edited, backend) == 1.0
    with pytest.raises(gpuopt.RuleSyntaxError, match="is not what Python runs"):
        rule(module.edited.function)


def test_a_function_that_only_moved_in_its_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(tmp_path, TEXT, monkeypatch)
    (tmp_path / "own_rules_script.py").write_text("# a new first line, longer than before\n" + HEAD + TEXT)
    assert moved(rule(module.edited.function), k=2.0) == 2.0


LAYOUTS = {
    "column 0": "def make():\n    @rule\n    def r(p, g, *, lr):\n# a comment\n        p = p - lr * g\n\n# more\n        return p\n"
    "    return r\nr = make()\n",
    "string at column 0": 'def make():\n    @rule\n    def r(p, g, *, lr):\n        """Text\nat column 0."""\n'
    "        p = p - lr * g\n        return p\n    return r\nr = make()\n",
    "continued": "@rule\ndef r(p, g, *, lr):\n    p = p - \\\n        lr * (\n  g\n    )\n    return p\n",
    "tabs": "if True:\n\t@rule\n\tdef r(p, g, *, lr):\n\t\tp = p - lr * g\n\t\treturn p\n",
    "class": "class Rules:\n    @rule(\n        title='R',\n    )\n    def r(p, g, /, *, lr):\n        p = p - lr * g\n"
    "        return p\nr = Rules.r\n",
    "annotated": "@rule\ndef r(p: 'np.ndarray', g: 'Unknown', *, lr: 'float' = 2.0 / 2, flag: 'bool' = False) -> None:\n"
    "    if not flag:\n        p = p - lr * g\n    return p\n",
    "greek": "@rule\ndef r(p, g, *, lr):\n    δ = lr * g\n    p = p - δ\n    return p\n",
    "expression": "@rule\ndef r(p, g, *, lr):\n    return p - lr * g\n",
}


@BACKENDS
@pytest.mark.parametrize("name", LAYOUTS)
def test_any_layout_of_the_text(name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert moved(load(tmp_path, LAYOUTS[name], monkeypatch).r, backend) == 1.0


def test_future_annotations_and_a_flag_by_another_name(tmp_path: Path) -> None:
    text = "from __future__ import annotations\nfrom typing import Literal as L\nfrom gpuopt import rule\nFlag = bool\n"
    text += "@rule\ndef r(p, g, *, lr, a: Flag = True, b: L['x', 'y'] = 'x'):\n    if a and b == 'x':\n        p = p - lr * g\n"
    (tmp_path / "annotated.py").write_text(text + "    return p\n")
    spec = importlib.util.spec_from_file_location("annotated", tmp_path / "annotated.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (moved(module.r), moved(module.r, b="y"), moved(module.r, "numba", a=False)) == (1.0, 0.0, 0.0)
