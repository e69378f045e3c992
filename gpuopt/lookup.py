"""Rules by what a user types: the name of an optimizer, or `module:rule` for a rule of their own; and the list of names.

Called by `gpuopt/cli.py`. Knows no backend.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from gpuopt import rules
from gpuopt.errors import GpuoptError, InputError
from gpuopt.messages import one_line, suggestion
from gpuopt.rules.language import Rule, checked_rule

WIDTH = 100


def listing() -> Iterator[str]:
    """A line for each optimizer: its name and what its rule says first."""
    column = 2 + max(map(len, rules.NAMES))
    for name in rules.NAMES:
        text, width = str(rules.get(name).__doc__).splitlines()[0], WIDTH - column
        yield f"{name:<{column}}{text if len(text) <= width else text[: width - 4].rsplit(' ', 1)[0] + ' ...'}"


def find(text: str) -> Rule:
    """The rule of that name, or the one that `module:rule` names; modules of the current folder can be imported.

    Raises InputError listing what there is, GpuoptError where the module does not import.
    """
    module_name, colon, name = text.partition(":")
    if not module_name or not colon:
        if colon or "." in text or "/" in text:
            module_name = "my_rules" if colon else Path(text).stem
            raise InputError(f"{text!r} names no rule: write module:rule, such as {module_name}:my_rule")
        return rules.get(text)
    module = imported(module_name.removeprefix("./").removesuffix(".py").replace("/", "."))
    found: object = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        own = [key for key, value in vars(module).items() if isinstance(value, Rule)]
        listed = f"it has {', '.join(own)}" if own else "it has none"
        raise InputError(f"{module.__name__} has no rule {name!r}; {listed}{suggestion(name, own)}")
    return checked_rule(found)


def imported(name: str) -> ModuleType:
    """The module of that name, looked for in the current folder first."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(
            f"{name!r} is no name of a module: expected one of this folder, such as my_rules, or an installed one"
        )
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return import_module(name)
    except GpuoptError:  # a mistake in a rule says where by itself
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise GpuoptError(f"{name} does not import: {one_line(error)}") from error
        here = [path.stem for path in Path.cwd().glob("*.py")]
        raise InputError(f"no module {name!r}, neither in this folder nor installed{suggestion(name, here)}") from None
    except SystemExit:
        raise GpuoptError(f"{name} does not import: it ends the process, as a script does") from None
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" ({at.filename}, line {at.lineno})"
        raise GpuoptError(f"{name} does not import: {type(error).__name__}: {one_line(error)}{where}") from error
