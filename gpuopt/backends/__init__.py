"""The backends by name, which are usable here, and the choice among them. One file a backend; the only place that lists them.

A backend runs launches on arrays of one device type ("cpu" or "cuda"). Its class has `name`, `device`, a static
`missing() -> str | None` (None, or what is missing and what mends it: a pip install line, or the driver), and
`step(launches, request) -> bool` (False: the step was skipped), where a launch is a `launch.launcher.Launch`.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from gpuopt.errors import BackendUnavailable, InputError
from gpuopt.messages import unknown

if TYPE_CHECKING:
    from gpuopt.launch.launcher import Backend

MODULES = {"numpy": "numpy", "numba": "numba", "cupy": "cupy", "numba-cuda": "numba_cuda"}
ALIASES = {"cuda": ("cupy", "numba-cuda")}
AUTOMATIC = {"cpu": ("numba", "numpy"), "cuda": ("cupy", "numba-cuda")}
DEVICES = {"numpy": "cpu", "numba": "cpu", "cupy": "cuda", "numba-cuda": "cuda"}


def names() -> tuple[str, ...]:
    """Every value that `backend=` takes."""
    return ("auto", *ALIASES, *MODULES)


def missing(name: str) -> str | None:
    """None where the backend can run here, else the sentence that says why not and how to mend it."""
    why: str | None = import_module(f"gpuopt.backends.{MODULES[name]}").missing()
    return why


def backends() -> dict[str, str | None]:
    """Each backend's name with None if it is usable here, else the sentence saying why not."""
    return {name: missing(name) for name in MODULES}


def choose(name: str | None, device: str) -> tuple[str, str]:
    """The backend for arrays on `device` ("cpu" or "cuda") and the reason in words.

    name: None or "auto" follow the arrays and GPUOPT_BACKEND; any other name must be usable and fit the arrays.
    Raises InputError for an unknown name, BackendUnavailable where a named backend cannot run.
    """
    asked = (None if name == "auto" else name) or os.environ.get("GPUOPT_BACKEND") or "auto"
    if asked not in names():
        raise InputError(unknown("backend", asked, names()))
    if asked == "auto":
        passed: dict[str, str] = {}
        for candidate in AUTOMATIC[device]:  # up to the first that can run: asking one imports its library
            why = missing(candidate)
            if why is None:
                said = "".join(f"; {c} cannot run: {w}" for c, w in passed.items())
                return candidate, f"the arrays are on the {'GPU' if device == 'cuda' else 'host'}{said}"
            passed[candidate] = why
        raise BackendUnavailable(f"no backend can run on {device} arrays: " + "; ".join(passed.values()))
    candidates = ALIASES.get(asked, (asked,))
    whys = [missing(candidate) for candidate in candidates]
    for candidate, why in zip(candidates, whys, strict=True):
        if why is None:
            if DEVICES[candidate] != device:
                where = {"cpu": "host arrays (NumPy)", "cuda": "device arrays (CuPy, Numba)"}
                found, wanted = where[device], where[DEVICES[candidate]]
                raise InputError(f"backend {asked!r} needs {wanted}, found {found}; pass such arrays or backend='auto'")
            source = "asked for by name" if asked == name else "set by GPUOPT_BACKEND"
            return candidate, source
    raise BackendUnavailable(f"backend {asked!r} cannot run here: " + "; ".join(why for why in whys if why))


@cache
def get(name: str, device: str = "cpu") -> Backend:
    """The backend of that name for one device ("cpu", "cuda:0" ...), made once."""
    backend: Backend = import_module(f"gpuopt.backends.{MODULES[name]}").Backend(int(device.partition(":")[2] or 0))
    return backend


class _Callable(ModuleType):
    """`gpuopt.backends()` is the public function, `gpuopt/backends/` the folder: one name for both."""

    def __call__(self) -> dict[str, str | None]:
        return backends()


sys.modules[__name__].__class__ = _Callable
