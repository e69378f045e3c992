"""Arguments that several functions of this package take, checked once each. Called by all of its modules; knows none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpuopt.errors import InputError
from gpuopt.messages import abbreviated
from gpuopt.optim.hyper import check_number


def real(name: str, value: Any, interval: str = "(0, inf)") -> float:
    """The value as a float. Raises InputError naming it unless it is a number in this interval."""
    return check_number(name, value, ranges={name: interval})


def choice(name: str, value: Any, known: Sequence[Any]) -> Any:
    """The value. Raises InputError naming it unless it is one of those that are known."""
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{name} = {abbreviated(value)}: expected one of {', '.join(map(repr, known))}")
    return value


def increasing(names: tuple[str, str], low: Any, high: Any) -> tuple[float, float]:
    """Two positive numbers. Raises InputError naming them unless the first is the smaller one."""
    first, second = (real(name, value) for name, value in zip(names, (low, high), strict=True))
    if first >= second:
        raise InputError(f"{names[0]} = {first:g}: expected less than {names[1]}, which is {second:g}")
    return first, second
