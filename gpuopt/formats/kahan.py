"""A parameter of 16 bits, and what its rounding left over in 16 more."""

from __future__ import annotations

from typing import Any

from gpuopt.formats.dtypes import SAME
from gpuopt.formats.language import VISIBLE, format
from gpuopt.formats.words import nearest, number
from gpuopt.rules.primitives import where


@format(planes={"h": VISIBLE, "rest": SAME})
def kahan(h: Any, rest: Any, *, half: bool) -> Any:
    """Kahan 1965, for weights Zamirai et al. 2020, "Revisiting bfloat16 training": the nearest number of 16 bits, and beside it the
    difference, rounded to nearest likewise.
    """
    w = h << 16
    x = number(w, half=half)
    x = where(rest != 0, x + rest, x)
    return x


@kahan.encode
def _(x: Any, *, half: bool) -> Any:
    h = nearest(x, half=half)
    v = h << 16
    visible = number(v, half=half)
    rest = x - visible
    rest = where(rest - rest == 0, rest, 0)
    return h, rest
