"""The hand-written kernels in `kernels/`, and the filling of their holes. Used by the emitters; knows no rule and no target.

A hole of a Python kernel is a line `HOLE("name")`: valid Python, so that editors and ruff read the file. The compiler puts
generated statements in its place, at the same indentation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_HOLE = re.compile(r"^( *)HOLE\(\"(\w+)\"\)$", re.MULTILINE)


def kernels_folder() -> Path:
    """Where the hand-written kernels are: in the wheel beside the package's files, in a checkout beside the package."""
    spec = find_spec("gpuopt")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    return package / "kernels" if (package / "kernels").is_dir() else package.parent / "kernels"


@cache
def kernel_text(name: str) -> str:
    """The text of one hand-written file."""
    return (kernels_folder() / name).read_text()


def filled(text: str, holes: Mapping[str, Sequence[str]]) -> str:
    """The text with every hole replaced by its lines, `pass` where they are none. Raises ValueError for a hole that is not filled,
    for a filling that has no hole, and for a HOLE that is no line of its own.
    """
    used = set()

    def lines(found: re.Match[str]) -> str:
        indent, name = found.groups()
        if name not in holes:
            raise ValueError(f"hole {name!r} is not filled; there are fillings for {', '.join(holes)}")
        used.add(name)
        return "\n".join(indent + line for line in holes[name] or ["pass"])

    made = _HOLE.sub(lines, text)
    if unknown := set(holes) - used:
        raise ValueError(f"the text has no hole {', '.join(map(repr, sorted(unknown)))}")
    for line in made.split("\n"):
        if line.lstrip().startswith("HOLE"):
            raise ValueError(f'{line.strip()!r} is no hole: expected HOLE("name") and nothing else on the line')
    return made


def kernel(name: str, constants: Mapping[str, int], holes: Mapping[str, Sequence[str]]) -> str:
    """A hand-written Python kernel, complete: its holes filled, and in the hole "constants" those of the constants that it uses, as
    names that Numba takes for the numbers they are.
    """
    words = set(re.findall(r"\w+", kernel_text(name) + " ".join(line for lines in holes.values() for line in lines)))
    used = [f"{key} = {value}" for key, value in constants.items() if key in words]
    return filled(kernel_text(name), {"constants": used, **holes})
