"""Eight bits for what is never negative and changes by factors, or only grows: the largest squares that were seen, step sizes."""

from __future__ import annotations

from typing import Any

from gpuopt.formats.floats import grid, level, place
from gpuopt.formats.language import format
from gpuopt.formats.scales import most


@format(planes={"code": "uint8"}, per_block={"low": "uint8", "shift": "uint8"}, block=256)
def sizes8(code: Any, low: Any, shift: Any) -> Any:
    """The numbers of `squares8`, rounded to nearest: rounded at random, the maximum of what comes in and what was kept would grow
    by itself.
    """
    x = level(code, low, shift)
    return x


@sizes8.encode
def _(x: Any) -> Any:
    low, shift = grid(x)
    n = most(shift, 1)
    code = place(x, low, shift, 1 << (n - 1))
    return code, low, shift
