"""What `import gpuopt` costs and brings along, what it makes public, and how a backend is chosen."""

from __future__ import annotations

import inspect
import os
import statistics
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import gpuopt

HEAVY = (
    "numba",
    "llvmlite",
    "cupy",
    "torch",
    "cuda",
    "numba_cuda",
    "ml_dtypes",
    "scipy",
    "sklearn",
    "matplotlib",
    "jax",
)
EVERYTHING = [name for name in gpuopt.__all__ if name != "__version__"]


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    env = {k: v for k, v in os.environ.items() if k != "GPUOPT_BACKEND"} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---------------------------------------------------------------------------------------------------- import


def test_import_brings_no_heavy_package_along() -> None:
    code = f"import sys, gpuopt; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert python(code) == "[]"


def test_the_numpy_backend_needs_none_either() -> None:
    code = (
        "import sys, numpy, gpuopt; p = numpy.ones(3); o = gpuopt.AdamW(p, backend='numpy'); o.step(numpy.ones(3)); "
        f"o.state_dict(); repr(o); gpuopt.optimizers(); print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert python(code) == "[]"


def test_import_adds_less_than_a_tenth_of_a_second() -> None:
    """To NumPy's own import, in processor time, which other processes disturb least; the median of several."""
    code = "import time; import numpy; start = time.process_time(); import gpuopt; print(time.process_time() - start)"
    assert statistics.median(float(python(code)) for _ in range(7)) < 0.1


def test_everything_public_resolves_and_lists_itself() -> None:
    assert len(set(gpuopt.__all__)) == len(gpuopt.__all__)
    assert set(dir(gpuopt)) == set(gpuopt.__all__)
    namespace: dict[str, Any] = {}
    exec("from gpuopt import *", namespace)
    assert set(gpuopt.__all__) <= set(namespace)


@pytest.mark.parametrize("name", EVERYTHING)
def test_everything_public_is_documented(name: str) -> None:
    """Also every public method and property of a class, as far as it is defined here."""
    thing = getattr(gpuopt, name)
    assert (inspect.getdoc(thing) or "").strip()
    if inspect.isclass(thing):
        assert thing.__doc__ and thing.__doc__.strip(), "not inherited"
        own = [(n, m) for n, m in vars(thing).items() if not n.startswith("_")]
        silent = [n for n, m in own if (callable(m) or isinstance(m, property)) and not inspect.getdoc(m)]
        assert silent == []


@pytest.mark.parametrize("name", gpuopt.optimizers())
def test_every_optimizer_states_its_equations_and_source(name: str) -> None:
    """The class carries the rule's docstring: the equations, and a name with a year."""
    title = next(c for c in gpuopt.__all__ if c.lower() == name)
    text = getattr(gpuopt, title).__doc__
    assert "p <- p - " in text
    assert any(str(year) in text for year in range(1847, 2030)) or name == "dgd", "DGD has no author"


def test_names_that_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="module 'gpuopt' has no attribute 'nothing'"):
        gpuopt.nothing  # noqa: B018


def test_errors_have_one_base_and_a_builtin_one() -> None:
    kinds = {
        "InputError": ValueError, "DtypeError": TypeError, "BackendUnavailable": RuntimeError,
        "CompileError": RuntimeError, "RuleSyntaxError": SyntaxError, "CommunicationError": RuntimeError,
    }  # fmt: skip
    for name, builtin in kinds.items():
        assert issubclass(getattr(gpuopt, name), gpuopt.GpuoptError) and issubclass(getattr(gpuopt, name), builtin)


# ---------------------------------------------------------------------------------------------------- backends


def chosen(backend: str | None = None) -> tuple[str, str]:
    optimizer = gpuopt.SGD(np.ones(3), backend=backend)
    optimizer.step(np.ones(3))
    return optimizer.backend, optimizer.backend_reason


def test_the_report_of_backends() -> None:
    """Every backend by name: None where it is usable, else what is missing and the line that mends it."""
    report = gpuopt.backends()
    assert list(report) == ["numpy", "numba", "cupy", "numba-cuda"]
    assert report["numpy"] is None and report["numba"] is None
    for name, why_not in report.items():
        assert why_not is None or "python -m pip install" in why_not or "driver" in why_not, (name, why_not)


def test_automatic_choice_follows_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUOPT_BACKEND", raising=False)
    for asked in (None, "auto"):
        name, reason = chosen(asked)
        assert name == "numba" and "host" in reason


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_a_backend_by_name_or_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUOPT_BACKEND", name)
    assert chosen() == (name, "set by GPUOPT_BACKEND")
    assert chosen("numpy") == ("numpy", "asked for by name"), "what the caller says goes first"
    assert python("import gpuopt, numpy; print(gpuopt.GD(numpy.ones(1), lr=1).backend)", GPUOPT_BACKEND=name) == name


def test_automatic_choice_falls_back_without_numba() -> None:
    """Only "auto" does: an explicit backend that cannot run is an error."""
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import gpuopt, numpy\n"
        "optimizer = gpuopt.GD(numpy.ones(1), lr=1)\n"
        "print(optimizer.backend, '|', optimizer.backend_reason)\n"
        "try: gpuopt.GD(numpy.ones(1), lr=1, backend='numba')\n"
        "except gpuopt.BackendUnavailable as error: print(error)\n"
    )
    first, second = python(code).splitlines()
    assert first.startswith("numpy | ") and "numba cannot run" in first
    assert "'numba' cannot run here" in second and "pip install numba" in second


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_an_unknown_backend_lists_the_names(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUOPT_BACKEND", "tpu" if how == "environment" else "numpy")
    with pytest.raises(gpuopt.InputError, match=r"unknown backend 'tpu'.*auto, cuda, numpy, numba, cupy, numba-cuda"):
        gpuopt.SGD(np.ones(3), backend="tpu" if how == "argument" else None)


@pytest.mark.parametrize("name", ["cuda", "cupy", "numba-cuda"])
def test_a_cuda_backend_on_host_arrays(name: str) -> None:
    """Where it cannot run, the error says what is missing; where it can, that host arrays do not go with it."""
    report = gpuopt.backends()
    usable = any(report[n] is None for n in (("cupy", "numba-cuda") if name == "cuda" else (name,)))
    p = np.ones(3)
    with pytest.raises(gpuopt.InputError if usable else gpuopt.BackendUnavailable) as caught:
        gpuopt.SGD(p, backend=name)
    assert f"backend {name!r}" in str(caught.value)
    assert ("host arrays" if usable else "driver") in str(caught.value)
    assert p.tolist() == [1, 1, 1]
