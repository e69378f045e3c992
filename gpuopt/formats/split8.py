"""A parameter of 24 bits: the nearest number of 16 bits, and a correction of eight."""

from __future__ import annotations

from typing import Any

from gpuopt.formats.language import VISIBLE, format
from gpuopt.formats.words import number, word


@format(planes={"h": VISIBLE, "low": "int8"})
def split8(h: Any, low: Any, *, half: bool) -> Any:
    """The value rounded stochastically to eight bits more than it shows, of which the correction, -128 to 127 in units of a 128th
    of half of a rounding step, is what lies between it and the nearest number of 16 bits. Zhang et al. 2025, FlashOptim, has such a
    correction, which rounds to nearest and so moves in jumps or not at all.
    """
    w = (((h << 16) | (low << 8)) ^ 0x8000) - 0x8000
    x = number(w, half=half)
    return x


@split8.encode(random=8)
def _(x: Any, *, random: Any, half: bool) -> Any:
    w = word(x, half=half)
    u = w + (random & 0xFF)
    h = (u + 0x8000) >> 16
    low = (u >> 8) & 0xFF
    return h, low
