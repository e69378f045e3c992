"""Rules of a user's own to try things on, and what a step of them does. Used by the tests of own rules."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import rule

HEAD = "import math\nimport functools\nimport numpy as np\nimport gpuopt\nfrom gpuopt import State, rule, sqrt, where\n"


def scaled() -> Any:
    """A rule that moves by what `prepare` returns as k."""

    @rule
    def by_k(p, g, *, lr, k):
        p = p - lr * k * g
        return p

    return by_k


def moved(rule_: Any, backend: str = "numpy", g: float = 1.0, **options: Any) -> float:
    """How far one step of lr 1 goes down."""
    w = np.zeros(1)
    gpuopt.optimizer(rule_, w, **({"lr": 1.0} | options), backend=backend).step(np.full(1, g))
    return -float(w[0])


def load(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, name: str = "own_rules_script") -> ModuleType:
    (folder / f"{name}.py").write_text(HEAD + text)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    sys.modules.pop(name, None)
    return importlib.import_module(name)
