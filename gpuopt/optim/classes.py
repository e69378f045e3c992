"""Classes made from rules, and how they are pickled: by the rule, which is found again where it can be imported.

Used by `optim.factory` and `gpuopt.torch`, each of which makes one class for a definition of a rule.
"""

from __future__ import annotations

import copyreg
import inspect
import sys
from abc import ABCMeta
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gpuopt.errors import ArgumentError
from gpuopt.rules.language import Rule

T = TypeVar("T")
MISSING: Any = object()  # what stands for an argument that is not given


class MadeOptimizer(ABCMeta):
    """The type of classes made from rules, and so of their subclasses. ABCMeta, so that they mix with abstract classes."""

    made_by: tuple[Callable[[Rule], type], Rule]


def given(title: str, params: Any) -> Any:
    """The parameters. Raises ArgumentError where there are none."""
    if params is MISSING:
        raise ArgumentError(f"{title} needs params: the arrays that it updates")
    return params


def bound(title: str, names: Sequence[str], args: Sequence[Any], given: dict[str, Any]) -> dict[str, Any]:
    """The arguments behind params by name. Raises ArgumentError for too many of them, or for one that is given twice."""
    if len(args) > len(names):
        raise ArgumentError(f"{title} takes params and {list(names)} by position, {len(args)} values were given")
    placed = dict(zip(names, args, strict=False))
    for name in placed:
        if name in given:
            raise ArgumentError(f"{title} is given {name} twice, by position and by name: expected it once")
    return placed | given


def make(title: str, base: type[T], members: dict[str, Any], maker: Callable[[Rule], type], rule: Rule) -> type[T]:
    """A subclass of `base` for a rule; `maker(rule)` gives it again. It says that it comes from where the rule does."""
    for function in (members["__init__"], inspect.unwrap(members["__init__"])):
        function.__qualname__ = f"{title}.__init__"  # what Python calls it in its own messages
    made: Any = MadeOptimizer(title, (base,), {**members, "__module__": rule.function.__module__})
    made.made_by = (maker, rule)
    result: type[T] = made
    return result


def _reduce(found: MadeOptimizer) -> Any:
    """By its name where that leads to it, as Python pickles classes; a class made from a rule by that otherwise."""
    home: Any = sys.modules.get(found.__module__)
    for part in found.__qualname__.split("."):
        home = getattr(home, part, None)
    if home is found or "made_by" not in vars(found):
        return found.__qualname__
    maker, rule = found.made_by
    return maker, (rule,)


copyreg.pickle(MadeOptimizer, _reduce)
