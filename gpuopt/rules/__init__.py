"""Every update rule, one file each; a new rule is one file and its name here. Read `adamw.py`, then `language.py`."""

from __future__ import annotations

from importlib import import_module

from gpuopt.rules.language import Rule, State, rule

NAMES = ("gd", "sgd", "dgd", "adagrad", "rmsprop", "adam", "adamw", "lion")

__all__ = ["NAMES", "Rule", "State", "get", "rule"]


def get(name: str) -> Rule:
    """The rule of that name, in any case (`"adamw"`, `"AdamW"`). Raises InputError listing the names."""
    from gpuopt.errors import InputError
    from gpuopt.messages import unknown

    if not isinstance(name, str) or name.lower() not in NAMES:
        raise InputError(unknown("optimizer", name, NAMES))
    found = getattr(import_module(f"gpuopt.rules.{name.lower()}"), name.lower())
    assert isinstance(found, Rule)
    return found
