"""Every update rule, one file each; a new rule is one more file, found here by its name. Read `adamw.py`, then `language.py`."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from gpuopt.rules.language import Rule, State, rule

# Files that hold no rule.
MECHANISM = (
    *(
        "between",
        "companions",
        "declared",
        "definition",
        "find",
        "fragments",
        "geometry",
        "language",
        "options",
        "parts",
    ),
    "perturbation",
    "primitives",
    "products",
)
NAMES = tuple(sorted(module.name for module in iter_modules(__path__) if module.name not in MECHANISM))

__all__ = ["NAMES", "Rule", "State", "get", "rule", "titled", "titles"]


def get(name: str) -> Rule:
    """The rule of that name, in any case (`"adamw"`, `"AdamW"`). Raises InputError listing the names."""
    from gpuopt.errors import InputError
    from gpuopt.messages import unknown

    if not isinstance(name, str) or name.lower() not in NAMES:
        raise InputError(unknown("optimizer", name, NAMES))
    found = getattr(import_module(f"gpuopt.rules.{name.lower()}"), name.lower())
    assert isinstance(found, Rule)
    return found


def titled(title: str) -> Rule | None:
    """The rule whose optimizer has this class name, such as "AdamW": its name is that in lower case. None without one."""
    found = get(title) if title.lower() in NAMES else None
    return found if found is not None and found.title == title else None


def titles() -> list[str]:
    """The class names of all optimizers."""
    return [get(name).title for name in NAMES]
