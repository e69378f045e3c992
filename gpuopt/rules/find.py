"""Where a rule can be imported from, so that it can be pickled by name, as Python pickles functions. Used by `rules.language`."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from gpuopt.errors import InputError, RulePicklingError

if TYPE_CHECKING:
    from gpuopt.rules.language import Rule


def whereabouts(rule: Rule) -> tuple[str, str]:
    """The module and the name there under which a rule can be imported: its function's first. Raises RulePicklingError."""
    home, name = rule.function.__module__, rule.function.__qualname__
    if _at(home, name) is rule:
        return home, name
    for module in dict.fromkeys([home, "__main__", *sys.modules]):
        for key, value in list(getattr(sys.modules.get(module), "__dict__", {}).items()):
            if value is rule:
                return module, key
    raise RulePicklingError(
        f"rule `{rule.name}` cannot be pickled, since no module has it under a name: expected it at the top of {home}, not "
        "inside a function, and not loaded again since; a state_dict() needs no rule and can be saved anyhow"
    )


def _at(module: str, name: str) -> object:
    """What a module has under a dotted name, or None."""
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def find_rule(module: str, name: str) -> Rule:
    """A pickled rule: the one of that name in its module, as Python pickles functions."""
    from gpuopt.rules.language import Rule

    import_module(module)
    found = _at(module, name)
    if not isinstance(found, Rule):
        raise InputError(f"a pickle needs the rule `{name}` of the module {module}, which has none of that name now")
    return found
