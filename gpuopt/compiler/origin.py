"""Function -> its source, checked against its code object: a text that is not what Python runs is never compiled.

Called by the parser. A file may be edited after its import, a decorator may hide a function behind its own, a notebook may have
two cells of one name: the text found is compiled anew and has to give the function's own code. Knows no rule language.
"""

from __future__ import annotations
import __future__

import ast
import linecache
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from gpuopt.errors import RuleSyntaxError, caller

_FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
Definition = ast.FunctionDef | ast.AsyncFunctionDef
_STATES = "name the states by keyword, @rule(state=('m',))"
# Type of what is given for a function -> what to do about it.
REMEDIES = {
    **dict.fromkeys(("tuple", "list", "dict", "str", "set"), _STATES),
    "Rule": "it is a rule already; for another one call @rule on its `.function`",
    "staticmethod": "write @staticmethod above @rule",
    "classmethod": "a rule takes no class: write @staticmethod above @rule",
    "partial": "give arguments their defaults, or pass them to the optimizer",
    "CPUDispatcher": "gpuopt compiles it: leave the decorator out",
}


@dataclass(frozen=True)
class Origin:
    """Where a function was written: its file, the text of that file, and its node there."""

    file: str
    lines: list[str]
    node: Definition

    @property
    def text(self) -> str:
        """The function's own lines, decorators included."""
        return "".join(self.lines[first_line(self.node) - 1 : self.node.end_lineno])


def plain_function(function: object) -> FunctionType:
    """The function, if it is one made by `def` and not wrapped. Raises RuleSyntaxError saying what was found."""
    if not isinstance(function, FunctionType):
        kind = type(function).__name__
        found = "a class" if isinstance(function, type) else f"an object of type {kind}"
        remedy = REMEDIES.get(kind, "")
        raise RuleSyntaxError(f"a rule is a plain `def` function, this is {found}{remedy and f': {remedy}'}", *caller())
    if "__wrapped__" in vars(function):
        name = getattr(vars(function)["__wrapped__"], "__name__", function.__name__)
        raise RuleSyntaxError(
            f"a decorator has put another function in front of `{name}`, which cannot be compiled: a rule is the plain "
            "`def` itself; write what the decorator does into it",
            *caller(),
        )
    if function.__name__ == "<lambda>":
        raise RuleSyntaxError("a rule is a plain `def` function, this is a lambda", *place(function))
    return function


def place(function: Callable[..., Any]) -> tuple[str, int]:
    """File and first line of a function; of whoever called us where it has no code of its own."""
    code = getattr(function, "__code__", None)
    return (code.co_filename, code.co_firstlineno) if isinstance(code, CodeType) else caller()


def origin(function: FunctionType) -> Origin:
    """Where a plain function was written. Raises RuleSyntaxError where the source is not there or is another."""
    code = function.__code__
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename, function.__globals__)
    if not lines:
        raise RuleSyntaxError(
            f"the source of rule `{function.__name__}` cannot be found, so it cannot be compiled: define it in a "
            "file or a notebook cell, not with exec(), `python -c` or at the plain >>> prompt",
            *place(function),
        )
    parsed = _parsed("".join(lines), code.co_filename, code.co_flags & _FUTURES)
    if parsed is not None:
        tree, codes = parsed
        wanted = bare(code)
        alike = [c for c in codes if c.co_name == code.co_name and bare(c) == wanted]
        alike.sort(key=lambda c: (c.co_firstlineno != code.co_firstlineno, c.co_qualname != code.co_qualname))
        for found in alike:
            for node in ast.walk(tree):
                if isinstance(node, Definition) and (node.name, first_line(node)) == (
                    code.co_name,
                    found.co_firstlineno,
                ):
                    return Origin(code.co_filename, lines, node)
    raise RuleSyntaxError(
        f"the source of rule `{function.__name__}` is not what Python runs (edited since it was loaded, or changed by a "
        "tool), so it cannot be compiled: load it again, in a new process if need be",
        *place(function),
    )


def first_line(node: Definition) -> int:
    """Where a function begins, its decorators included, as its code object counts."""
    return min(n.lineno for n in (node, *node.decorator_list))


@lru_cache(maxsize=16)
def _parsed(text: str, file: str, flags: int) -> tuple[ast.Module, list[CodeType]] | None:
    """A file's tree and every code object in it; None where it does not compile. A cell of a notebook may await."""
    flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the file's own compilation has warned already
            tree = compile(text, file, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
            return tree, list(_codes(compile(tree, file, "exec", flags, dont_inherit=True)))
    except (SyntaxError, ValueError):
        return None


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def bare(code: CodeType) -> CodeType:
    """The code without where it was written, so that `==` compares what it does."""
    constants = tuple(_comparable(c) for c in code.co_consts)
    return code.replace(co_filename="", co_firstlineno=1, co_linetable=b"", co_consts=constants)


def _comparable(constant: object) -> object:
    """A constant that equals one of the same text; a NaN, which the compiler makes of `inf - inf`, equals nothing by itself."""
    if isinstance(constant, CodeType):
        return bare(constant)
    return "nan" if isinstance(constant, float) and constant != constant else constant
