"""Numbers of 16 bits as they are: what a load and a store of float16 or bfloat16 do, in every kernel and on every backend."""

from __future__ import annotations

from typing import Any

from gpuopt.formats.language import VISIBLE, format
from gpuopt.formats.words import nearest, number


@format(planes={"h": VISIBLE})
def native(h: Any, *, half: bool) -> Any:
    """IEEE 754's binary16, or bfloat16: the nearest number, to even. Emitters print this (`gpuopt.compiler.conversions`) or take an
    instruction that gives the same from a table of their own.
    """
    w = h << 16
    x = number(w, half=half)
    return x


@native.encode
def _(x: Any, *, half: bool) -> Any:
    h = nearest(x, half=half)
    return h
