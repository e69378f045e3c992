"""Stochastic rounding to 16 bits: each of the two neighbours as likely as it is near."""

from __future__ import annotations

from typing import Any

from gpuopt.formats.language import VISIBLE, format
from gpuopt.formats.words import number, word


@format(planes={"h": VISIBLE})
def stochastic(h: Any, *, half: bool) -> Any:
    """Gupta et al. 2015, "Deep learning with limited numerical precision". A mean that moves by less than half of a rounding step
    would stop for ever under rounding to nearest; here it moves by what is right on average.
    """
    w = h << 16
    x = number(w, half=half)
    return x


@stochastic.encode(random=16)
def _(x: Any, *, random: Any, half: bool) -> Any:
    w = word(x, half=half)
    h = (w + (random & 0xFFFF)) >> 16
    return h
