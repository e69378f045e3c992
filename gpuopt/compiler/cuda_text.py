"""Expressions and statements of a pass as CUDA C++ text: what every unit of `to_cuda`, its blocks and its sums is made of.

Prints only. Knows no kernel and no rule.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gpuopt.compiler.extremes import EXTREME
from gpuopt.compiler.kinds import LINE_SUMS
from gpuopt.compiler.names import literal, safe
from gpuopt.compiler.parts import Role
from gpuopt.compiler.tree import COMPARISONS, Add, Assign, Expr
from gpuopt.compiler.whole import CONSTANT, RANDOM, is_whole

ARITHMETIC = {
    "add": "({} + {})",
    "sub": "({} - {})",
    "mul": "({} * {})",
    "div": "({} / {})",
    "neg": "(-{})",
    "lt": "({} < {})",
    "le": "({} <= {})",
    "gt": "({} > {})",
    "ge": "({} >= {})",
    "eq": "({} == {})",
    "ne": "({} != {})",
    "where": "select<C>({}, {}, {})",
    "abs": "absolute({})",
    "sqrt": "square_root({})",
    "sign": "sign_of({})",
    "minimum": "minimum<C>({}, {})",
    "maximum": "maximum<C>({}, {})",
}
WHOLE = {
    "bits": "float_bits({})",
    "from_bits": "bits_float({})",
    "iwhere": "select<unsigned>({}, {}, {})",
    **{"i" + op: ARITHMETIC[op] for op in ("add", "sub", "mul", *COMPARISONS)},
    **{
        op: f"({{}} {sign} {{}})"
        for op, sign in (("iand", "&"), ("ior", "|"), ("ixor", "^"), ("ishl", "<<"), ("ishr", ">>"))
    },
}
# `prepare` in float64 on the device: the twin of the table in host.py.
DOUBLE = ARITHMETIC | {
    "where": "({} ? {} : {})",
    "minimum": "minimum<double>({}, {})",
    "maximum": "maximum<double>({}, {})",
    "pow": "pow({}, {})",
    "exp": "exp({})",
    "log": "log({})",
}
INFINITY = "(1e300 * 1e300)"  # NVRTC knows no name for it without a header
CTYPE = {"float32": "float", "float64": "double"}

# Numbers of a tensor, row, column or matrix in the compute type.
ALONG = {"value": "row[SCALARS + {}]", "vector": "x[ROLES + {}]", "sum_along": "along{}", "sum_of_matrix": "m[{}]"}


def print_expr(expr: Expr) -> str:
    """C++ text in the compute type `C`; `row` holds the scalars."""
    if expr.op == "name":
        return safe(str(expr.args[0]))
    if expr.op == "scalar":
        return f"row[{expr.args[0]}]"
    if expr.op == RANDOM:
        return f"random_{expr.args[0]}"
    if expr.op == EXTREME:
        return f"extremes[{expr.args[0]}]"
    if expr.op in ALONG:
        return ALONG[expr.op].format(*expr.args)
    if expr.op == "const":
        return f"C({literal(float(expr.args[0]), INFINITY)})"  # type: ignore[arg-type]
    if expr.op == CONSTANT:
        return f"0x{expr.args[0]:x}u"
    return (ARITHMETIC | WHOLE)[expr.op].format(*(print_expr(child) for child in expr.children()))


def statements(
    body: Sequence[Assign | Add], roles: Sequence[Role], first: int = 0, others: Collection[str] = ()
) -> list[str]:
    """One declared variable per local name, one line per statement, each under the line it came from; sums from `first` on.
    others: variables that are declared already.
    """
    lines: list[str] = []
    declared, whole = {*others, *(r.variable for r in roles)}, {r.variable for r in roles if r.code}
    for s in body:
        if s.file:
            lines.append(f'#line {s.line} "{s.file}"')
        if isinstance(s, Add):
            into = f"sums[{s.index - first}]"
            if s.kind in LINE_SUMS:
                lines.append(f"    {into} = {print_expr(s.expr)};")
                continue
            lines.append(f"    {into} = {joined(s.kind, 'C').format(into, print_expr(s.expr))};")
            continue
        kind = "" if s.name in declared else "unsigned " if is_whole(s.expr, whole) else "C "
        if kind == "unsigned ":
            whole.add(s.name)
        lines.append(f"    {kind}{safe(s.name)} = {print_expr(s.expr)};")
        declared.add(s.name)
    return lines


def loaded(place: int, role: Role, kind: str) -> str:
    """The variable of a role, of that kind where it is a number."""
    return (
        f"    unsigned {safe(role.variable)} = float_bits(x[{place}]);"
        if role.code
        else (f"    {kind} {safe(role.variable)} = x[{place}];")
    )


def joined(kind: str, number: str) -> str:
    """Two parts of a sum in one, in the type of that name."""
    return f"maximum<{number}>({{}}, {{}})" if kind == "tensor_max" else "{} + {}"
