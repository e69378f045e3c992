"""What the names in a function stand for, looked up where Python looks: locals, closure, globals, builtins, modules.

Used by the parser, which compiles a call only where it knows the function that Python would call. Every look-up is remembered,
so that a name bound again later is noticed (`hold`). Knows no rule language.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping
from types import CellType, CodeType, FunctionType, ModuleType

MISSING = object()  # no such name, or one whose value nobody can know beforehand


class Names:
    """The names of one function."""

    def __init__(self, function: FunctionType) -> None:
        self.function, code = function, function.__code__
        self.locals = {*code.co_varnames, *code.co_cellvars}
        self.cells: dict[str, CellType] = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        self._codes: list[tuple[FunctionType, CodeType]] = [(function, code)]
        self._looked: list[tuple[Mapping[str, object], str, object]] = []
        self._opened: list[tuple[CellType, object]] = []

    def value(self, node: ast.expr) -> object:
        """What a name or `module.name` stands for, MISSING for anything else."""
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.value(node.value)
            if isinstance(owner, ModuleType):
                found = getattr(owner, node.attr, MISSING)
                self._look(vars(owner), node.attr)
                return found
        return MISSING

    def also(self, called: Names) -> None:
        """What the names of a function that is called stand for counts too; all of them were looked up by now."""
        self._codes += called._codes
        self._looked += called._looked
        self._opened += called._opened

    def _name(self, name: str) -> object:
        if name in self.locals:
            return MISSING
        if name in self.cells:
            cell = self.cells[name]
            self._opened.append((cell, content(cell)))
            return content(cell)
        found = self._look(self.function.__globals__, name)
        return self._look(getattr(self.function, "__builtins__", vars(builtins)), name) if found is MISSING else found

    def _look(self, space: Mapping[str, object], name: str) -> object:
        found = space.get(name, MISSING)
        self._looked.append((space, name, found))
        return found

    def hold(self) -> bool:
        """Whether every look-up would give the same today, and the functions are still the same code."""
        for space, name, found in self._looked:
            if space.get(name, MISSING) is not found:
                return False
        for cell, found in self._opened:
            if content(cell) is not found:
                return False
        same = True
        for function, code in self._codes:
            same = same and function.__code__ is code
        return same


def content(cell: CellType) -> object:
    """What a variable of an enclosing function holds; MISSING before it is bound."""
    try:
        found: object = cell.cell_contents
    except ValueError:
        return MISSING
    return found
