"""The rule language, construct by construct: one function's syntax tree -> ours. Used by `parse` only, knows no emitter.

What runs is what Python would run: the text is checked against the function's code (`origin`), and a call is compiled only
where the name stands for the very function that the language means (`resolve`).
"""

from __future__ import annotations

import ast
import builtins
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal, NoReturn, get_args, get_origin

from gpuopt.compiler.inline import check_names, unfolded
from gpuopt.compiler.origin import origin, plain_function
from gpuopt.compiler.resolve import MISSING, Names
from gpuopt.compiler.tree import (
    COMPARISONS,
    PRODUCTS,
    RULE_CALLS,
    SCALAR_CALLS,
    SUMS,
    Assign,
    Expr,
    FunctionTree,
    If,
    Statement,
)
from gpuopt.errors import RuleSyntaxError
from gpuopt.rules.primitives import NON_LOCAL, PRIMITIVES, WHOLE
from gpuopt.rules.products import ON_MATRICES

_BINARY = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
_BITWISE = {ast.BitAnd: "and", ast.BitOr: "or", ast.BitXor: "xor", ast.LShift: "shl", ast.RShift: "shr"}
_COMPARE = {ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne"}
EXACT = 2**53  # float64 holds every whole number up to it
_RULE_HELP = (
    "a rule may use + - * /, unary minus, comparisons, sqrt abs sign minimum maximum where, the sums over a tensor "
    f"({' '.join(SUMS)}), products of matrices ({' '.join(PRODUCTS)}), functions of your own (`x = mine(g)`), and `if flag:`"
)


def _operations(scalar: bool, whole: bool) -> list[tuple[object, str]]:
    """The functions that may be called, and what they are in a tree; min and max of Python are not, they become choices."""
    local: list[tuple[object, str]] = [(function, name) for name, function in PRIMITIVES.items()]
    if whole:
        return [*local, *((function, name) for name, function in WHOLE.items())]
    if scalar:
        return [*local, (math.exp, "exp"), (math.log, "log"), (math.sqrt, "root")]
    return [*local, *((function, name) for name, function in (NON_LOCAL | ON_MATRICES).items())]


class Parser:
    """Parses one function; `scalar=True` admits what `prepare` may use besides: ** exp log min max and `a if c else b`;
    `whole=True` what a format may: whole numbers.

    callers: the functions of which it is a part, the outermost first; empty for a rule itself.
    """

    def __init__(
        self, function: Callable[..., Any], scalar: bool, callers: tuple[FunctionType, ...] = (), whole: bool = False
    ) -> None:
        self.function, self.scalar, self.callers, self.whole = plain_function(function), scalar, callers, whole
        self.names = Names(self.function)
        self.operations = _operations(scalar, whole)
        found = origin(self.function)
        self.file, self.lines, self.source, node = found.file, found.lines, found.text, found.node
        if not isinstance(node, ast.FunctionDef):
            self.fail(node, "a rule is a plain `def` function, this one is async")
        self.node = node

    def fail(self, node: ast.AST, message: str) -> NoReturn:
        """Raise RuleSyntaxError with a caret under the node; columns of a tree count bytes, those of an error characters."""
        line, begin = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        text = self.lines[line - 1].rstrip()
        whole = getattr(node, "end_lineno", line) != line
        end = len(text.encode()) if whole else getattr(node, "end_col_offset", 0)
        columns = [len(text.encode()[:k].decode(errors="ignore")) + 1 for k in (begin, end)]
        raise RuleSyntaxError(message, self.file, line, (columns[0], columns[1]))

    def refuse(self, node: ast.AST, hint: str = "") -> NoReturn:
        """Raise RuleSyntaxError for what the language does not have, in the author's words."""
        text = ast.get_source_segment("".join(self.lines), node) or ast.unparse(node)
        quoted = text.strip().splitlines()[0]
        self.fail(node, f"`{quoted}` is not part of the rule language: {_RULE_HELP}{hint}")

    # ------------------------------------------------------------------------------------------- signature

    def signature(self) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, tuple[object, ...]]]:
        arguments = self.node.args
        for rest, stars in ((arguments.vararg, "*"), (arguments.kwarg, "**")):
            if rest:
                self.fail(
                    rest, f"`{stars}{rest.arg}`: *args and **kwargs are not part of the rule language: name them all"
                )
        positional = tuple(a.arg for a in (*arguments.posonlyargs, *arguments.args))
        scalars, flags = [], {}
        for argument in arguments.kwonlyargs:
            choices = self.choices(argument)
            if choices:
                flags[argument.arg] = choices
            else:
                scalars.append(argument.arg)
        return positional, tuple(scalars), flags

    def check_mangled(self) -> None:
        """Raise RuleSyntaxError for a name that is not in the code: in a class, Python changes `__name`."""
        code, arguments = self.function.__code__, self.node.args
        known = {*code.co_varnames, *code.co_names, *code.co_cellvars, *code.co_freevars}
        found: list[tuple[ast.AST, str]] = [
            (a, a.arg) for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        ]
        found += [(n, n.id) for part in self.node.body for n in ast.walk(part) if isinstance(n, ast.Name)]
        for node, name in found:
            if name.startswith("__") and not name.endswith("__") and name not in known:
                self.fail(node, f"Python gives `{name}` another name inside a class: call it something else")

    def choices(self, argument: ast.arg) -> tuple[object, ...]:
        """What a keyword annotated `bool` or `Literal[...]` can be, whatever they are called; empty for an ordinary scalar."""
        note = self.function.__annotations__.get(argument.arg)
        if isinstance(note, str):
            note = self.evaluated(note)
        if get_origin(note) is Literal:
            return get_args(note)
        return (False, True) if note is bool else ()

    def evaluated(self, note: str) -> object:
        """An annotation written as a string; one that was imported where only a type checker looks is read by its name."""
        scope = {"Literal": Literal, **self.function.__globals__}
        scope |= {name: self.names.value(ast.Name(name)) for name in self.names.cells}
        try:
            return eval(note, scope)
        except Exception:  # of any kind: it is the author's text, and no annotation has to mean anything
            return eval(note[note.index("Literal[") :], scope) if note.split("[")[0].endswith(".Literal") else None

    # ------------------------------------------------------------------------------------------- statements

    def block(self, nodes: list[ast.stmt]) -> tuple[Statement, ...]:
        return tuple(s for node in nodes for s in self.statement(node))

    def statement(self, node: ast.stmt) -> list[Statement]:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return []  # a docstring
        targets = self.targets(node)
        for name in targets:
            if name in self.flags:
                self.fail(node, f"flag `{name}` is a compile-time constant and cannot be assigned")
        if targets and isinstance(node, ast.Assign):
            called = self.part(node.value)
            if called is not None and isinstance(node.value, ast.Call):
                return self.unfolded(called, node.value, targets)
            if isinstance(node.targets[0], ast.Name):
                return [Assign(targets[0], self.number(node.value), node.lineno, self.file)]
        if isinstance(node, ast.If):
            return [If(self.test(node.test), self.block(node.body), self.block(node.orelse))]
        if isinstance(node, ast.AugAssign):
            self.fail(node, "write `x = x + y`: an augmented assignment would change the caller's array on NumPy")
        if isinstance(node, ast.Return):
            self.fail(node, "`return` must be the last statement")
        if isinstance(node, ast.Expr):
            self.fail(node, "this value is used for nothing: write `name = ...`")
        self.refuse(node)

    def targets(self, node: ast.stmt) -> list[str]:
        """The variables that a statement assigns to, as `a = ...` or `a, b = ...`; none for any other statement."""
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            return []
        target = node.targets[0]
        names = [n for n in (target.elts if isinstance(target, ast.Tuple) else [target]) if isinstance(n, ast.Name)]
        return [n.id for n in names] if len(names) == len(getattr(target, "elts", names)) else []

    def part(self, node: ast.expr) -> FunctionType | None:
        """The author's own function that an expression calls, a part of the rule; None for anything else."""
        if not isinstance(node, ast.Call):
            return None
        found, name = self.names.value(node.func), getattr(node.func, "attr", getattr(node.func, "id", ""))
        known = name in RULE_CALLS or any(function is found for function, _ in self.operations)
        return found if isinstance(found, FunctionType) and not known else None

    def unfolded(self, function: FunctionType, node: ast.Call, targets: list[str]) -> list[Statement]:
        """The statements of a part in the place of its call."""
        quoted, flags = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
        if function in (*self.callers, self.function):
            self.fail(node, f"`{quoted}` calls itself, and a rule has no end then")
        part = Parser(function, self.scalar, (*self.callers, self.function), self.whole)
        tree = part.parse()
        check_names(tree)
        same = all(isinstance(v, ast.Name) and v.id == k and self.flags.get(k) for k, v in flags.items())
        if (
            tree.scalars
            or not same
            or set(flags) != set(tree.flags)
            or any(isinstance(a, ast.Starred) for a in node.args)
        ):
            self.fail(
                node,
                f"`{quoted}` takes its arguments by position, and flags by their own names: `{quoted}(x, flag=flag)`",
            )
        if len(node.args) != len(tree.positional):
            self.fail(node, f"`{quoted}` takes {len(tree.positional)} argument(s), not {len(node.args)}")
        if len(targets) != len(tree.results):
            self.fail(node, f"`{quoted}` returns {len(tree.results)} value(s), not {len(targets)}")
        self.names.also(part.names)
        return unfolded(tree, [self.number(a) for a in node.args], targets, node.lineno, self.file)

    def test(self, node: ast.expr) -> tuple[object, ...]:
        if isinstance(node, ast.Name):
            if node.id not in self.flags:
                self.fail(node, f"`if {node.id}:` needs a compile-time flag (`{node.id}: bool`); for data use where()")
            return ("flag", node.id)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ("not", self.test(node.operand))
        if isinstance(node, ast.BoolOp):
            return ("and" if isinstance(node.op, ast.And) else "or", *(self.test(v) for v in node.values))
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and len(node.ops) == 1:
            value, name = node.comparators[0], node.left.id
            if isinstance(node.ops[0], ast.Eq) and isinstance(value, ast.Constant) and name in self.flags:
                if value.value not in self.flags[name]:
                    self.fail(node, f"flag `{name}` is one of {self.flags[name]}, never {value.value!r}")
                return ("is", name, value.value)
        self.fail(node, "the condition of `if` must be made of compile-time flags; for data use where()")

    # ------------------------------------------------------------------------------------------- expressions

    def number(self, node: ast.expr) -> Expr:
        """An expression with a value; in a rule a comparison is only the first argument of where()."""
        made = self.expr(node)
        if made.op in COMPARISONS and not self.scalar:
            self.fail(node, "a comparison has no value in arithmetic: use it as the first argument of where()")
        return made

    def condition(self, node: ast.expr) -> Expr:
        """The first argument of where(): a comparison."""
        made = self.expr(node)
        if made.op not in COMPARISONS and not self.scalar:
            self.fail(node, "the first argument of where() must be a comparison, such as `g > 0`")
        return made

    def expr(self, node: ast.expr) -> Expr:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return self.literal(node, node.value)  # type: ignore[arg-type]
        if isinstance(node, ast.Name):
            return self.variable(node)
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            return Expr(_BINARY[type(node.op)], (self.number(node.left), self.number(node.right)))
        if isinstance(node, ast.BinOp) and type(node.op) in _BITWISE and self.whole:
            return Expr(_BITWISE[type(node.op)], (self.number(node.left), self.number(node.right)))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and self.scalar:
            return Expr("pow", (self.expr(node.left), self.expr(node.right)))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return Expr("neg", (self.number(node.operand),))
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARE:
            return Expr(_COMPARE[type(node.ops[0])], (self.number(node.left), self.number(node.comparators[0])))
        if isinstance(node, ast.IfExp) and self.scalar:
            return Expr("if", (self.expr(node.test), self.expr(node.body), self.expr(node.orelse)))
        if isinstance(node, ast.Call):
            return self.call(node)
        power = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)
        self.refuse(node, "; powers belong in `prepare`" if power else "")

    def literal(self, node: ast.expr, value: float) -> Expr:
        try:
            float(value)
        except OverflowError:
            self.fail(node, "this number is larger than any float64")
        if self.scalar and isinstance(value, int) and value > EXACT:
            self.fail(node, "a device computes in float64, which does not hold this whole number")
        return Expr("const", (value,))

    def variable(self, node: ast.Name) -> Expr:
        if node.id in self.flags:
            self.fail(node, f"flag `{node.id}` is a compile-time constant and has no value in arithmetic")
        if node.id not in self.names.locals:
            self.fail(
                node,
                f"`{node.id}` is neither an argument of `{self.node.name}` nor assigned above; pass it as a scalar, such "
                f"as `*, {node.id}=0.1`",
            )
        return Expr("name", (node.id,))

    def call(self, node: ast.Call) -> Expr:
        found = self.names.value(node.func)
        name = next((name for function, name in self.operations if function is found), None)
        if name is None or any(isinstance(a, ast.Starred) for a in node.args):
            if self.scalar and (found is builtins.min or found is builtins.max):
                return self.extreme(node, "lt" if found is builtins.min else "gt")
            self.refuse_call(node, found)
        if node.keywords:
            self.refuse(node, f"; `{name}` takes its arguments by position")
        if name in PRODUCTS:
            return self.product(name, node)
        count = (SCALAR_CALLS if self.scalar else RULE_CALLS)[name]
        if len(node.args) != count:
            self.fail(node, f"`{name}` takes {count} argument(s), not {len(node.args)}")
        first = self.condition if name == "where" else self.number
        return Expr(name, (first(node.args[0]), *(self.number(a) for a in node.args[1:])))

    def product(self, name: str, node: ast.Call) -> Expr:
        """A product of matrices, `orthogonalize(u, ns_coefficients, ns_steps)`: values, behind them flags by their names, and
        behind those states of matrices and scalars by theirs.
        """
        values, words, names = PRODUCTS[name]
        if len(node.args) != values + words + names:
            self.fail(node, f"`{name}` takes {values + words + names} argument(s), not {len(node.args)}")
        behind = [argument.id if isinstance(argument, ast.Name) else "" for argument in node.args[values:]]
        for argument, found in zip(node.args[values : values + words], behind, strict=False):
            if found not in self.flags:
                text = f"a compile-time flag, such as `*, {found or 'x'}: Literal[...]`"
                self.fail(argument, f"`{name}` takes {text}, behind its values")
        for argument, found in zip(node.args[values + words :], behind[words:], strict=True):
            if found not in self.arguments or self.callers:
                self.fail(
                    argument,
                    f"`{name}` takes states of matrices and scalars, arguments of the rule itself, by their names",
                )
        return Expr(name, (*map(self.number, node.args[:values]), *behind))

    def extreme(self, node: ast.Call, comparison: str) -> Expr:
        """Python's own min or max: the first of those that no other is smaller or larger than."""
        if len(node.args) < 2 or node.keywords:
            self.refuse(node)
        best, *rest = map(self.expr, node.args)
        for other in rest:
            best = Expr("if", (Expr(comparison, (other, best)), other, best))
        return best

    def refuse_call(self, node: ast.Call, found: object) -> NoReturn:
        """Raise RuleSyntaxError for a call of something else; where the name is a primitive's, say where that comes from."""
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        quoted = ast.unparse(node.func)
        if self.part(node) is not None:
            self.fail(node, f"`{quoted}(...)`, a function of your own, stands alone: `x = {quoted}(...)`, then use x")
        if name not in RULE_CALLS and name not in PRODUCTS:
            self.fail(node, f"`{quoted}(...)` is not part of the rule language: {_RULE_HELP}")
        what = "nothing that is known" if found is MISSING else described(found)
        if isinstance(node.func, ast.Name) and name in self.names.locals:
            what = "a variable of this function"
        home = "Python's own `abs`" if name == "abs" else f"it from gpuopt instead: `from gpuopt import {name}`"
        self.fail(node.func, f"`{quoted}` here is {what}; {'use' if name == 'abs' else 'import'} {home}")

    # ------------------------------------------------------------------------------------------- whole function

    def parse(self) -> FunctionTree:
        self.check_mangled()
        positional, scalars, self.flags = self.signature()
        self.arguments = {*positional[2:], *scalars}
        *body, last = self.node.body
        if not isinstance(last, ast.Return) or last.value is None:
            self.fail(last, "the last statement must be a `return`")
        return FunctionTree(
            self.node.name,
            self.file,
            positional,
            scalars,
            self.flags,
            self.block(body),
            *self.returned(last),
            self.node.lineno,
            last.lineno,
            self.source,
        )

    def returned(self, node: ast.Return) -> tuple[tuple[str, ...], tuple[Expr, ...]]:
        """Names and expressions of `return a, b` or, in prepare, of `return dict(a=..., b=...)` or `{"a": ...}`."""
        value = node.value
        assert value is not None
        if self.scalar and not self.callers:
            items = display(value, self.names)
            if items is None:
                self.refuse(value)
            return tuple(items), tuple(map(self.expr, items.values()))
        elements = value.elts if isinstance(value, ast.Tuple) else [value]
        results = tuple(map(self.number, elements))
        return tuple(str(r.args[0]) if r.op == "name" else "" for r in results), results


def described(found: object) -> str:
    """What a name stands for, in a message: a function by its full name, anything else by its type."""
    name, home = getattr(found, "__qualname__", getattr(found, "__name__", None)), getattr(found, "__module__", None)
    return f"an object of type {type(found).__name__}" if name is None else f"`{home}.{name}`" if home else f"`{name}`"


def display(node: ast.expr, names: Names) -> dict[str, ast.expr] | None:
    """The items of `dict(a=..., b=...)` or `{"a": ..., "b": ...}`; None for anything else."""
    if isinstance(node, ast.Call) and names.value(node.func) is dict and not node.args:
        pairs: list[tuple[object, ast.expr]] = [(k.arg, k.value) for k in node.keywords]
    elif isinstance(node, ast.Dict):
        pairs = [(getattr(k, "value", None), v) for k, v in zip(node.keys, node.values, strict=True)]
    else:
        return None
    made = {key: value for key, value in pairs if isinstance(key, str)}
    return made if len(made) == len(pairs) else None
