"""Python function -> checked tree. The one parser for rules and for `prepare`; called by `rules.language`, knows no emitter."""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from gpuopt.compiler.tree import CALLS, COMPARISONS, SCALAR_CALLS, Assign, Expr, FunctionTree, If, Statement
from gpuopt.errors import RuleSyntaxError

_BINARY = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
_COMPARE = {ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne"}
OPTION_NAMES = ("direction", "grad_multiplier", "l1", "clip_value", "maximize", "mask")
_RULE_HELP = "a rule may use + - * /, unary minus, comparisons, sqrt abs sign minimum maximum where, and `if flag:`"


class _Parser:
    """Parses one function; `scalar=True` admits what `prepare` may use besides: ** exp log and `a if c else b`."""

    def __init__(self, function: Callable[..., Any], scalar: bool) -> None:
        self.function, self.scalar = function, scalar
        self.calls = SCALAR_CALLS if scalar else CALLS
        self.file = inspect.getsourcefile(function) or "<unknown>"
        try:
            lines, first = inspect.getsourcelines(function)
        except (OSError, TypeError) as error:
            raise RuleSyntaxError(
                f"the source of rule `{function.__name__}` cannot be found, so it cannot be compiled: define it in a "
                "file or a notebook cell, not with exec() or at the plain >>> prompt",
                self.file,
                function.__code__.co_firstlineno,
            ) from error
        self.offset = first - 1
        self.lines = lines
        node = ast.parse(textwrap.dedent("".join(lines))).body[0]
        if not isinstance(node, ast.FunctionDef):
            self.fail(node, "a rule is a plain `def` function")
        self.node = node

    def fail(self, node: ast.AST, message: str) -> NoReturn:
        line = getattr(node, "lineno", 1)
        raise RuleSyntaxError(message, self.file, line + self.offset, self.lines[line - 1].rstrip())

    # ------------------------------------------------------------------------------------------- signature

    def signature(self) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, tuple[object, ...]]]:
        arguments = self.node.args
        if arguments.vararg or arguments.kwarg:
            self.fail(self.node, "*args and **kwargs are not part of the rule language")
        positional = tuple(a.arg for a in (*arguments.posonlyargs, *arguments.args))
        scalars, flags = [], {}
        for argument in arguments.kwonlyargs:
            choices = self.choices(argument)
            if choices:
                flags[argument.arg] = choices
            else:
                scalars.append(argument.arg)
        return positional, tuple(scalars), flags

    def choices(self, argument: ast.arg) -> tuple[object, ...]:
        """What a keyword annotated `bool` or `Literal[...]` can be; empty for an ordinary scalar."""
        note = argument.annotation
        if isinstance(note, ast.Name) and note.id == "bool":
            return (False, True)
        if isinstance(note, ast.Subscript) and ast.unparse(note.value).split(".")[-1] == "Literal":
            items = note.slice.elts if isinstance(note.slice, ast.Tuple) else [note.slice]
            return tuple(item.value for item in items if isinstance(item, ast.Constant))
        return ()

    # ------------------------------------------------------------------------------------------- statements

    def block(self, nodes: list[ast.stmt]) -> tuple[Statement, ...]:
        return tuple(s for node in nodes if (s := self.statement(node)) is not None)

    def statement(self, node: ast.stmt) -> Statement | None:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None  # a docstring
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in self.flags:
                self.fail(node, f"flag `{name}` is a compile-time constant and cannot be assigned")
            return Assign(name, self.number(node.value), node.lineno + self.offset, self.file)
        if isinstance(node, ast.If):
            return If(self.test(node.test), self.block(node.body), self.block(node.orelse))
        if isinstance(node, ast.AugAssign):
            self.fail(node, "write `x = x + y`: an augmented assignment would change the caller's array on NumPy")
        if isinstance(node, ast.Return):
            self.fail(node, "`return` must be the last statement")
        self.fail(node, f"`{type(node).__name__}` is not part of the rule language: {_RULE_HELP}")

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
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
            return Expr("const", (node.value,))
        if isinstance(node, ast.Name):
            if node.id in self.flags:
                self.fail(node, f"flag `{node.id}` is a compile-time constant and has no value in arithmetic")
            return Expr("name", (node.id,))
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            return Expr(_BINARY[type(node.op)], (self.number(node.left), self.number(node.right)))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and self.scalar:
            return Expr("pow", (self.expr(node.left), self.expr(node.right)))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return Expr("neg", (self.number(node.operand),))
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARE:
            return Expr(_COMPARE[type(node.ops[0])], (self.number(node.left), self.number(node.comparators[0])))
        if isinstance(node, ast.IfExp) and self.scalar:
            return Expr("where", (self.expr(node.test), self.expr(node.body), self.expr(node.orelse)))
        if isinstance(node, ast.Call):
            return self.call(node)
        hint = "; powers belong in `prepare`" if isinstance(node, ast.BinOp) else ""
        self.fail(node, f"`{ast.unparse(node)}` is not part of the rule language: {_RULE_HELP}{hint}")

    def call(self, node: ast.Call) -> Expr:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in self.calls or node.keywords:
            self.fail(node, f"`{ast.unparse(node.func)}(...)` is not part of the rule language: {_RULE_HELP}")
        if len(node.args) != self.calls[name]:
            self.fail(node, f"`{name}` takes {self.calls[name]} argument(s), not {len(node.args)}")
        self.check_primitive(node, name)
        first = self.condition if name == "where" else self.number
        return Expr(name, (first(node.args[0]), *(self.number(a) for a in node.args[1:])))

    def check_primitive(self, node: ast.Call, name: str) -> None:
        """NumPy's `where` or `math.sqrt` under the same name would run on NumPy and give other bits."""
        from gpuopt.rules.language import PRIMITIVES

        if self.scalar or name not in PRIMITIVES:
            return
        closure = inspect.getclosurevars(self.function)
        scope = {**vars(builtins), **self.function.__globals__, **closure.nonlocals}
        if isinstance(node.func, ast.Attribute):
            owner = scope.get(node.func.value.id) if isinstance(node.func.value, ast.Name) else None
            found = getattr(owner, name, None)
        else:
            found = scope.get(name)
        if found is not PRIMITIVES[name]:
            self.fail(node, f"`{name}` here is {found!r}; import it from gpuopt instead: `from gpuopt import {name}`")

    def parse(self) -> FunctionTree:
        positional, scalars, self.flags = self.signature()
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
        )

    def returned(self, node: ast.Return) -> tuple[tuple[str, ...], tuple[Expr, ...]]:
        """Names and expressions of `return a, b` or, in prepare, of `return dict(a=..., b=...)` or `{"a": ...}`."""
        value = node.value
        if self.scalar and isinstance(value, ast.Call) and getattr(value.func, "id", "") == "dict" and not value.args:
            return tuple(str(k.arg) for k in value.keywords), tuple(self.expr(k.value) for k in value.keywords)
        if self.scalar and isinstance(value, ast.Dict):
            keys = tuple(str(k.value) for k in value.keys if isinstance(k, ast.Constant))
            return keys, tuple(self.expr(v) for v in value.values)
        items = value.elts if isinstance(value, ast.Tuple) else [value]
        results = tuple(self.expr(item) for item in items if item is not None)
        return tuple(str(r.args[0]) if r.op == "name" else "" for r in results), results


def parse_function(function: Callable[..., Any]) -> FunctionTree:
    """The checked tree of a fragment of the rule language (an option, a sum). Raises RuleSyntaxError."""
    parser = _Parser(function, scalar=False)
    tree = parser.parse()
    _check_names(parser, tree)
    return tree


def parse_rule(function: Callable[..., Any], states: tuple[str, ...], known: tuple[str, ...]) -> FunctionTree:
    """The checked tree of a rule that takes the states `known` and must return `p` and `states`.

    Raises RuleSyntaxError naming file and line.
    """
    parser = _Parser(function, scalar=False)
    tree = parser.parse()
    if tree.positional[:2] != ("p", "g"):
        parser.fail(parser.node, "the first two arguments of a rule are `p, g` (parameter, gradient)")
    extra = [name for name in tree.positional[2:] if name not in known]
    if extra:
        parser.fail(
            parser.node, f"`{extra[0]}` is no state of this rule: name it in @rule(state=...), or make it keyword-only"
        )
    missing = [s for s in states if s not in tree.positional]
    if missing:
        parser.fail(parser.node, f"state {missing[0]!r} is not an argument of `{tree.name}`")
    if tree.outputs != ("p", *states):
        expected = ", ".join(("p", *states))
        parser.fail(parser.node.body[-1], f"a rule with these states must end with `return {expected}`")
    _check_names(parser, tree)
    refuse_option_names(function, (*tree.positional, *tree.scalars, *tree.flags))
    if "step" in (*tree.scalars, *tree.flags):
        parser.fail(parser.node, "`step` is an argument of prepare only: derive what the rule needs of it there")
    return tree


def refuse_option_names(function: Callable[..., Any], names: Iterable[str]) -> None:
    """Raise RuleSyntaxError for an argument that an option of every optimizer is called already."""
    for name in names:
        if name in OPTION_NAMES:
            message = f"`{name}` is an option of every optimizer: call this argument something else"
            raise RuleSyntaxError(message, inspect.getsourcefile(function) or "?", function.__code__.co_firstlineno)


def parse_prepare(function: Callable[..., Any]) -> FunctionTree | None:
    """The tree of a `prepare` function, or None where it uses Python that only the host can run."""
    try:
        parser = _Parser(function, scalar=True)
        tree = parser.parse()
        _check_names(parser, tree)
    except RuleSyntaxError:
        return None
    return tree if tree.positional == ("step",) and not tree.flags else None


def _check_names(parser: _Parser, tree: FunctionTree) -> None:
    """Every name must be an argument or assigned before; branches are checked one by one when flags are decided."""

    def visit(body: tuple[Statement, ...], known: set[str]) -> None:
        for statement in body:
            if isinstance(statement, If):
                visit(statement.body, known)
                visit(statement.orelse, known)
                continue
            check(statement.expr, known, statement.line)
            known.add(statement.name)

    def check(expr: Expr, known: set[str], line: int) -> None:
        unknown = sorted(expr.names() - known)
        if unknown:
            text = parser.lines[line - parser.offset - 1].rstrip()
            message = f"`{unknown[0]}` is neither an argument of `{tree.name}` nor assigned above; pass it as a scalar"
            raise RuleSyntaxError(message, tree.file, line, text)

    known = {*tree.positional, *tree.scalars}
    visit(tree.body, known)
    for result in tree.results:
        check(result, known, parser.node.body[-1].lineno + parser.offset)
