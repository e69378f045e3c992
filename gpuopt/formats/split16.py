"""A float32 parameter in two halves, of which the one that shows is the nearest number of 16 bits."""

from __future__ import annotations

from typing import Any

from gpuopt.formats.language import VISIBLE, format
from gpuopt.formats.words import number, word


@format(planes={"h": VISIBLE, "low": "int16"})
def split16(h: Any, low: Any, *, half: bool) -> Any:
    """Both halves together are the float32 parameter bit for bit (of float16: where that has its full precision, see `words`)."""
    w = (h << 16) + ((low ^ 0x8000) - 0x8000)
    x = number(w, half=half)
    return x


@split16.encode
def _(x: Any, *, half: bool) -> Any:
    w = word(x, half=half)
    h = (w + 0x8000) >> 16
    return h, w
