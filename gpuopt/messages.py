"""What messages share: install lines that work from a checkout, and the known name that a misspelt one is nearest to.

Called by whatever tells a user what to do next. Imports no array library.
"""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 200  # characters of a value


def install(*extras: str) -> str:
    """The line that adds extras to this package, run in its checkout: gpuopt is on no package index."""
    return f"in a checkout of gpuopt: python -m pip install '.[{','.join(extras)}]'"


DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # of modules, where the name is another one


def missing(*modules: str) -> list[str]:
    """The distributions of those modules that are not installed; none of them is imported."""
    from importlib.util import find_spec

    return [DISTRIBUTIONS.get(name, name) for name in modules if find_spec(name) is None]


def suggestion(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'adamw'?` where a known name, in any case, is near to this one, else nothing."""
    from difflib import get_close_matches  # an error is the only time it is needed

    lower = {word.lower(): word for word in known}
    near = get_close_matches(str(name).lower(), lower, n=1, cutoff=0.6)
    return f"; did you mean {lower[near[0]]!r}?" if near else ""


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """What to say of a name that does not exist: all there are, and the one it is near to."""
    names = list(known)
    return f"unknown {kind} {name!r}: expected one of {', '.join(names)}{suggestion(name, names)}"


def one_line(error: BaseException) -> str:
    """What an exception says, on one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def abbreviated(value: object) -> str:
    """A value in a message; Python has whole numbers that it does not write out, and arrays that fill a page."""
    if isinstance(value, int) and not -(10**30) < value < 10**30:
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def no_attribute(module: str, name: str, known: Iterable[str]) -> str:
    """What Python says of a name that a module does not have, and the one that is near to it."""
    return f"module {module!r} has no attribute {name!r}{'' if name.startswith('_') else suggestion(name, known)}"
