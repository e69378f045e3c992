"""A float32 parameter, and the nearest number of 16 bits that shows."""

from __future__ import annotations

from typing import Any

from gpuopt.formats.language import VISIBLE, Plane, format
from gpuopt.formats.words import nearest


@format(planes={"h": VISIBLE, "master": Plane("master", "float32", copied=True)})
def master32(h: Any, master: Any) -> Any:
    """Micikevicius et al. 2018, "Mixed precision training": the copy in float32 that is trained."""
    x = master
    return x


@master32.encode
def _(x: Any, *, half: bool) -> Any:
    h = nearest(x, half=half)
    return h, x
