"""`prepare` and the hoisted scalars as one Python function `row(step, hyperparameters) -> floats`, in float64.

Called once a step and row by the launch code. A `prepare` that the language has no words for is called as it is.
"""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from gpuopt.compiler.names import GIVEN, safe
from gpuopt.compiler.origin import place
from gpuopt.compiler.program import Program
from gpuopt.compiler.scalars import print_expr, row_namespace
from gpuopt.compiler.tree import ON_DEVICE, Assign, Expr
from gpuopt.errors import InputError
from gpuopt.messages import abbreviated

if TYPE_CHECKING:
    from gpuopt.rules.definition import Definition

LARGEST = sys.float_info.max
RowFunction = Callable[[int, Mapping[str, float]], tuple[float, ...]]


def prepare_statements(definition: Definition) -> list[tuple[str, Expr]] | None:
    """`prepare` for a device, as a list of (name, expression), its results last; None where only the host can run it."""
    if definition.on_host:
        return None
    return [(name, on_device(expr)) for name, expr, _ in _statements(definition)]


def on_device(expr: Expr) -> Expr:
    """An expression of `prepare` in operations that every device has."""
    return Expr(ON_DEVICE.get(expr.op, expr.op), tuple(on_device(a) if isinstance(a, Expr) else a for a in expr.args))


def _statements(definition: Definition) -> list[tuple[str, Expr, int]]:
    """(name, expression, line) of every statement of a `prepare` that is compiled, its results last."""
    tree = definition.prepare_tree
    if tree is None:
        return []
    body = [(s.name, s.expr, s.line) for s in tree.body if isinstance(s, Assign)]
    return body + [(name, expr, tree.last) for name, expr in zip(tree.outputs, tree.results, strict=True)]


def is_integer(expr: Expr, whole: Collection[str] = ()) -> bool:
    """Whether a value is a whole number whatever the hyperparameters: built of the step count, whole literals and the
    variables in `whole`.
    """
    if expr.op == "name":
        return expr.args[0] == "step" or expr.args[0] in whole
    if expr.op == "const":
        return isinstance(expr.args[0], int)
    children = list(expr.children())[expr.op == "where" :]
    made_of = ("add", "sub", "mul", "neg", "abs", "minimum", "maximum", "where")
    return expr.op in made_of and all(is_integer(child, whole) for child in children)


def whole_variables(statements: list[tuple[str, Expr]]) -> set[str]:
    """The variables of `prepare` that only ever hold whole numbers."""
    whole: set[str] = set()
    for name, expr in statements:
        if is_integer(expr, whole) and all(is_integer(e, whole) for n, e in statements if n == name):
            whole.add(name)
    return whole


def row_inputs(program: Program) -> tuple[str, ...]:
    """The hyperparameters that `prepare` and the row need, in one fixed order; of a `prepare` that is called, its results."""
    definition = program.signature.definition
    names = {name for expr in (*program.row, *program.wide) for name in expr.names()}
    if definition.prepare_tree is not None:
        names = (names - set(definition.prepared)) | set(definition.arguments)
    return tuple(sorted(names - {"step"}))


@cache
def row_function(program: Program, names: tuple[str, ...]) -> Callable[..., tuple[float, ...]]:
    """Compiled `row(step, *hyperparameters)`, the wide scalars last; `names` gives their order."""
    values = "".join(print_expr(e) + ", " for e in (*program.row, *program.wide))
    definition = program.signature.definition
    return _compiled(definition, names, f"({values})", definition.tree.line)


@cache
def _prepare_function(definition: Definition) -> Callable[..., dict[str, float]]:
    """`prepare(step, *hyperparameters)` of a definition that is compiled."""
    results = ", ".join(f"{n!r}: {safe(n)}" for n in definition.prepared)
    return _compiled(definition, definition.arguments, f"{{{results}}}", definition.tree.line)


def _compiled(definition: Definition, names: Sequence[str], result: str, line: int) -> Callable[..., Any]:
    """`f(step, *names)`: the statements of `prepare`, then the result. Lines are those of the author's file, for tracebacks."""
    statements = _statements(definition)
    lines = [(f"{safe(name)} = {print_expr(expr)}", at) for name, expr, at in statements]
    if statements:
        bad = " or ".join(f"not {-LARGEST} <= {safe(n)} <= {LARGEST}" for n in definition.prepared)
        values = ", ".join(f"{n!r}: {safe(n)}" for n in definition.prepared)
        lines.append((f"if {bad}: refuse(step, {{{values}}})", statements[-1][2]))
    lines.append((f"return {result}", line))
    head = f"def {definition.tree.name}(step, {', '.join(map(safe, names))}):"
    module = ast.parse("\n    ".join([head, *(text for text, _ in lines)]))
    (function,) = module.body
    assert isinstance(function, ast.FunctionDef)
    for statement, (_, at) in zip(function.body, lines, strict=True):
        ast.increment_lineno(statement, at - statement.lineno)
    ast.increment_lineno(function.args, lines[0][1] - 1)
    function.lineno = function.end_lineno = lines[0][1]
    file = definition.prepare_tree.file if definition.prepare_tree else definition.tree.file
    namespace = row_namespace() | {"refuse": lambda step, values: checked(definition, step, values)}
    exec(compile(module, file, "exec"), namespace)
    made: Callable[..., Any] = namespace[definition.tree.name]
    return made


def prepared_values(definition: Definition, step: int, values: Mapping[str, Any]) -> dict[str, float]:
    """The scalars that `prepare` derives of an environment, as Python floats: one call. Raises InputError for what is none."""
    if definition.prepare is None:
        return {}
    if not definition.on_host:
        return _prepare_function(definition)(step, *[values[n] for n in definition.arguments])
    group = values.get(GIVEN, {})
    given = {n: group[n] if isinstance(group.get(n), (int, str)) else values[n] for n in definition.arguments}
    return checked(definition, step, definition.prepare.function(step, **given))


def checked(definition: Definition, step: int, found: Any) -> dict[str, float]:
    """What `prepare` returned, as floats. Raises InputError unless it is a number for every scalar that the rule takes."""
    assert definition.prepare is not None
    where = "{}, line {}".format(*place(definition.prepare.function))
    label = f"prepare of {definition.tree.name}, step {step} ({where})"
    wanted = ", ".join(f"{n}=..." for n in definition.prepared)
    if not isinstance(found, Mapping):
        raise InputError(f"{label} returned {found!r}: expected dict({wanted})")
    for name in found:
        if name in definition.hyperparameters:
            raise InputError(f"{label} returned {name!r}, which is a hyperparameter: give it another name")
    made = {}
    for name in definition.prepared:
        if name not in found:
            raise InputError(f"{label} returned no {name!r}: expected dict({wanted})")
        value = found[name]
        try:
            made[name] = math.nan if isinstance(value, (str, bytes)) else float(value)
        except (TypeError, ValueError, OverflowError):  # the last for a whole number beyond every float64
            made[name] = math.nan
        if math.isnan(made[name]):
            raise InputError(f"{label} returned {name} = {abbreviated(value)}: expected a number")
    return made
