"""Eight bits for averages of squares, through whose root an update is divided: second moments."""

from __future__ import annotations

from typing import Any

from gpuopt.formats.floats import correction, grid, level, place
from gpuopt.formats.language import format
from gpuopt.formats.scales import most


@format(planes={"code": "uint8"}, per_block={"low": "uint8", "shift": "uint8"}, block=256)
def squares8(code: Any, low: Any, shift: Any) -> Any:
    """Numbers of float32 with few bits of mantissa, from the power of two below the block's smallest value on: as many bits as let
    the largest be among 256 of them, seven where a block spans two octaves, four where it spans 16, three for 32; rounded
    stochastically, or an average that moves by a thousandth of itself would not move at all. With what it is to be multiplied with
    in the update: noise that keeps the mean of v raises that of 1/sqrt(v).
    """
    x = level(code, low, shift)
    kappa = correction(shift)
    return x, kappa


@squares8.encode(random=16)
def _(x: Any, *, random: Any) -> Any:
    low, shift = grid(x)
    n = most(shift, 16)  # 0 in a block of NaN
    code = place(x, low, shift, (random & 0xFFFF) << (n - 16))
    return code, low, shift
