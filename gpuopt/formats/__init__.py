"""How elements lie in memory: one small file for each format, written once for all backends."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuopt.formats.language import Format

OF_PARAMETERS = ("stochastic", "kahan", "split8", "split16", "master32")


@cache
def formats() -> dict[str, Format]:
    """The formats of this library, by name."""
    return {name: getattr(import_module(f"gpuopt.formats.{name}"), name) for name in OF_PARAMETERS}
