"""Numbers of 16 bits to float32 and back, as straight lines of typed operations: `formats.native` for emitters, which print them
wherever an element is loaded or stored. Knows no target language.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from gpuopt.compiler.lower import of_format
from gpuopt.compiler.parts import Coded, Role
from gpuopt.compiler.tree import Assign, Expr, FunctionTree
from gpuopt.formats.native import native

NUMBER, CODE = Role("x", "float32", False), Role("h", "uint16", False)  # whose variables a conversion reads and assigns
CONVERTED = ("float16", "bfloat16")


@cache
def decoding(storage: str) -> tuple[Assign, ...]:
    """What makes the number of a code."""
    return _line(storage, native.decoding, CODE, NUMBER)


@cache
def encoding(storage: str) -> tuple[Assign, ...]:
    """What makes the code of the nearest number."""
    return _line(storage, native.encoding, NUMBER, CODE)


def _line(storage: str, tree: FunctionTree, of: Role, to: Role) -> tuple[Assign, ...]:
    coded = Coded(NUMBER.name, native, (CODE.name,), storage == "float16", written=True)
    given, whole = {of.name: Expr("name", (of.variable,))}, [of.variable] if of.code else []
    return tuple(replace(s, line=0, file="") for s in of_format(coded, tree, given, [to.variable], whole))


def text() -> str:
    """All of them, for keys of caches."""
    return repr([of(storage) for of in (decoding, encoding) for storage in CONVERTED])
