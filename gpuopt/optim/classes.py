"""Classes made from rules, and how they are pickled: by the rule, which is found again where it can be imported.

Used by `optim.factory` and `gpuopt.torch`, each of which makes one class for a definition of a rule.
"""

from __future__ import annotations

import copyreg
import sys
from abc import ABCMeta
from collections.abc import Callable
from typing import Any, TypeVar

from gpuopt.rules.language import Rule

T = TypeVar("T")


class MadeOptimizer(ABCMeta):
    """The type of classes made from rules, and so of their subclasses. ABCMeta, so that they mix with abstract classes."""

    made_by: tuple[Callable[[Rule], type], Rule]


def make(title: str, base: type[T], members: dict[str, Any], maker: Callable[[Rule], type], rule: Rule) -> type[T]:
    """A subclass of `base` for a rule; `maker(rule)` gives it again. It says that it comes from where the rule does."""
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
