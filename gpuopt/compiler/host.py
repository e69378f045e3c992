"""`prepare` and the hoisted scalars as one Python function `row(step, hyperparameters) -> floats`, in float64.

Called once a step and row by the launch code. Integer powers go by repeated squaring, as on the device, so that both
sides give the same bits; the table of operators here has its twin in `to_cuda`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any

from gpuopt.compiler.lower import Program
from gpuopt.compiler.names import safe
from gpuopt.compiler.tree import Assign, Expr
from gpuopt.rules.language import PRIMITIVES, Rule

_PYTHON = {
    "add": "({} + {})",
    "sub": "({} - {})",
    "mul": "({} * {})",
    "div": "div({}, {})",
    "neg": "(-{})",
    "lt": "({} < {})",
    "le": "({} <= {})",
    "gt": "({} > {})",
    "ge": "({} >= {})",
    "eq": "({} == {})",
    "ne": "({} != {})",
    "where": "({1} if {0} else {2})",
    "pow": "power({}, {})",
    **{name: name + "({})" for name in ("sqrt", "abs", "sign", "exp", "log")},
    **{name: name + "({}, {})" for name in ("minimum", "maximum")},
}


def ipow(base: float, exponent: int) -> float:
    """base ** exponent by repeated squaring: the same roundings as the device's loop."""
    if exponent < 0:
        return div(1.0, ipow(base, -exponent))
    result, square = 1.0, float(base)
    while exponent:
        if exponent & 1:
            result *= square
        exponent >>= 1
        square *= square
    return result


def div(a: float, b: float) -> float:
    """IEEE division: a / 0 is an infinity or NaN, not an exception."""
    if b != 0:
        return a / b
    return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def power(base: float, exponent: float) -> float:
    """A real power; an integral exponent of int type takes the exact path."""
    return ipow(base, exponent) if isinstance(exponent, int) else math.pow(base, exponent)


def row_namespace() -> dict[str, Any]:
    """The names that printed expressions call."""
    return {**PRIMITIVES, "ipow": ipow, "div": div, "power": power, "exp": math.exp, "log": math.log}


def print_expr(expr: Expr) -> str:
    """Python text of a scalar expression."""
    if expr.op == "name":
        return "step" if expr.args[0] == "step" else safe(str(expr.args[0]))
    if expr.op == "const":
        return repr(expr.args[0])
    if expr.op == "count":
        return f"(step >> {expr.args[0]} & 0xFFFF)"
    return _PYTHON[expr.op].format(*(print_expr(child) for child in expr.children()))


RowFunction = Callable[[int, Mapping[str, float]], tuple[float, ...]]


def prepare_statements(rule: Rule) -> list[tuple[str, Expr]] | None:
    """`prepare` as a list of (name, expression), its results last; None where only the host can run it."""
    tree = rule.prepare_tree
    if tree is None:
        return None if rule.prepare_function is not None else []
    body = [(s.name, s.expr) for s in tree.body if isinstance(s, Assign)]
    return body + list(zip(tree.outputs, tree.results, strict=True))


def _lines(statements: list[tuple[str, Expr]]) -> list[str]:
    return [f"{safe(name)} = {print_expr(expr)}" for name, expr in statements]


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
    """The hyperparameters that `prepare` and the row need, in one fixed order."""
    rule = program.signature.rule
    names = {name for expr in program.row for name in expr.names()} - set(rule.prepared)
    if rule.prepare_function is not None:
        names |= set(prepare_arguments(rule.prepare_function))
    return tuple(sorted(names - {"step"}))


def row_source(program: Program, names: tuple[str, ...]) -> str:
    """Text of the function that computes a row from the step count and these hyperparameters."""
    rule = program.signature.rule
    statements = prepare_statements(rule)
    if statements is not None:
        lines = _lines(statements)
    else:
        assert rule.prepare_function is not None
        taken = ", ".join(f"{n}={safe(n)}" for n in prepare_arguments(rule.prepare_function))
        lines = [f"prepared = prepare(step, {taken})"]
        lines += [f"{safe(n)} = float(prepared[{n!r}])" for n in rule.prepared]
    values = "".join(print_expr(e) + ", " for e in program.row)
    return "\n    ".join([f"def row(step, {', '.join(map(safe, names))}):", *lines, f"return ({values})"])


def prepare_arguments(function: Callable[..., Any]) -> list[str]:
    """The hyperparameters that a prepare function takes."""
    code = function.__code__
    return list(code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount])


@cache
def row_function(program: Program, names: tuple[str, ...]) -> Callable[..., tuple[float, ...]]:
    """Compiled `row(step, *hyperparameters)`; `names` gives their order."""
    namespace = row_namespace() | {"prepare": program.signature.rule.prepare_function}
    exec(compile(row_source(program, names), f"<gpuopt row of {program.name}>", "exec"), namespace)
    result: Callable[..., tuple[float, ...]] = namespace["row"]
    return result


@cache
def _prepare_function(rule: Rule) -> tuple[Callable[..., dict[str, float]], tuple[str, ...]]:
    """`prepare` as every backend evaluates it: with integer powers by repeated squaring."""
    function, statements = rule.prepare_function, prepare_statements(rule)
    if function is None:
        return (lambda step: {}), ()
    names = tuple(prepare_arguments(function))
    if statements is None:
        return (lambda step, *values: function(step, **dict(zip(names, values, strict=True)))), names
    results = ", ".join(f"{n}={safe(n)}" for n in rule.prepared)
    lines = [f"def prepare(step, {', '.join(map(safe, names))}):", *_lines(statements), f"return dict({results})"]
    namespace = row_namespace()
    exec(compile("\n    ".join(lines), f"<gpuopt prepare of {rule.name}>", "exec"), namespace)
    return namespace["prepare"], names


def prepared_values(rule: Rule, step: int, scalars: Mapping[str, float]) -> dict[str, float]:
    """The scalars that `prepare` derives, as Python floats."""
    function, names = _prepare_function(rule)
    return {k: float(v) for k, v in function(step, *[scalars[n] for n in names]).items()}
