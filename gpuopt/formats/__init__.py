"""How elements lie in memory: one small file for each format, written once for all backends."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuopt.formats.language import Format

OF_PARAMETERS = ("stochastic", "kahan", "split8", "split16", "master32")
OF_STATES = ("signed8", "squares8", "sizes8", "float8", "signed4", "squares4")
# state_format -> the format of states that hold these. One that never falls is not kept in four bits where its neighbours need
# them. Of four bits squares are what training does not feel; momenta are (see README), so that "auto4" has eight for these.
CHOICES = {
    "int8": {"numbers": "signed8", "squares": "squares8", "sizes": "sizes8"},
    "auto8": {"numbers": "signed8", "squares": "squares8", "sizes": "sizes8"},
    "float8": dict.fromkeys(("numbers", "squares", "sizes"), "float8"),
    "int4": {"numbers": "signed4", "squares": "squares4", "sizes": "sizes8"},
    "auto4": {"numbers": "signed8", "squares": "squares4", "sizes": "sizes8"},
}


@cache
def formats() -> dict[str, Format]:
    """The formats of this library, by name."""
    every = (*OF_PARAMETERS, *OF_STATES)
    return {name: getattr(import_module(f"gpuopt.formats.{name}"), name) for name in every}
