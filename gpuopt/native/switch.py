"""Whether native code is used: the switch `GPUOPT_NATIVE`, the versions on which it was tried, and what its own tests found.

Called by the parts of `gpuopt.native` when they are imported, and by `gpuopt info`. Knows no part.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import metadata
from typing import TypeVar

SWITCH = "GPUOPT_NATIVE"  # "0" turns it off
# A wrong guess about another version might crash the process, in a test of its own too.
TRIED = {
    "python": ("3.11", "3.12", "3.13"),
    "numpy": ("2.0", "2.1", "2.2", "2.3", "2.4"),
    "torch": ("2.13",),
}
T = TypeVar("T")
# Of each part that was asked for, why the plain twin is used; None where native code is.
decided: dict[str, str | None] = {}


def version(package: str) -> str:
    """Major and minor number, as in the table; more than that where it is no ordinary release or no ordinary CPython."""
    if package == "python":
        ordinary = sys.implementation.name == "cpython" and not getattr(sys, "abiflags", "")  # "t": without the lock
        number = ".".join(map(str, sys.version_info[:2]))
        return number if ordinary else f"{sys.implementation.name} {number}{getattr(sys, 'abiflags', '')}"
    loaded = sys.modules.get(package)
    full = str(loaded.__version__) if loaded is not None else metadata.version(package)
    parts = full.partition("+")[0].split(".")
    return ".".join(parts[:2]) if len(parts) > 2 and all(map(str.isdigit, parts)) else full


def objection(*packages: str) -> str | None:
    """Why native code that relies on these packages is not used, whatever its own tests find; None where nothing is against it."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0"
    for package in packages:
        if (found := version(package)) not in TRIED[package]:
            return f"it was not tried with {package} {found}, but with {', '.join(TRIED[package])}"
    return None


def choose(part: str, native: T, plain: T, packages: tuple[str, ...], holds: Callable[[], bool]) -> T:
    """The native way to do something, or its plain twin. packages: what it relies on; holds: the part's own test, which is not
    called where one of these is unknown.
    """
    return native if decide(part, objection(*packages), holds) else plain


def decide(part: str, against: str | None, holds: Callable[[], bool]) -> bool:
    """Whether native code is used, and note why not. against: what is known before the part's own test is called."""
    decided[part] = against or (None if _passes(holds) else "its own test failed")
    return decided[part] is None


def _passes(holds: Callable[[], bool]) -> bool:
    try:
        return holds()
    except Exception:  # whatever it stumbled over, something is not as it was
        return False
