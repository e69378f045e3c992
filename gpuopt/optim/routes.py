"""Which tensors of an optimizer of matrices are stepped as matrices, and what the others have in the place of its hyperparameters.

Called by both optimizers where groups are made, and for `opt.routing()`. Knows no array library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpuopt.errors import InputError
from gpuopt.optim.hyper import HEADS, check_group
from gpuopt.rules.definition import MATRIX
from gpuopt.rules.language import Rule

COLUMNS = ("parameter", "shape", "stepped as", "lr", "weight_decay")


def check(rule: Rule, matrices: Any, rest: Any) -> None:
    """Raise InputError where these options are given to a rule that has no use for them."""
    if matrices is None and rest is None:
        return
    if not (rule.definition().multiplies and MATRIX in rule.tree.flags):
        name = "matrices" if matrices is not None else "rest"
        raise InputError(
            f"{name}: {rule.title} does the same with every tensor: expected an optimizer of matrices, such as Muon"
        )
    if rest is not None:
        if not isinstance(rest, Mapping):
            raise InputError(
                f"rest: found {type(rest).__name__}: expected a dict of hyperparameters, such as {{'lr': 3e-4}}"
            )
        check_group(rest, rule, "rest")


def group_of(group: Mapping[str, Any], rest: Mapping[str, Any] | None, matrix: bool) -> dict[str, Any]:
    """The group for the matrices among its tensors, or for the others."""
    return dict(group) if matrix else {**group, **(rest or {}), MATRIX: False}


class Routing:
    """A table, one row a parameter: its name, its shape, how it is stepped, and rate and decay of its group; printed as text."""

    def __init__(self, rows: Sequence[tuple[str, tuple[int, ...], str, Any, Any]]) -> None:
        self.rows = list(rows)

    def __repr__(self) -> str:
        texts = [COLUMNS, *(tuple(map(str, row)) for row in self.rows)]
        widths = [max(len(row[k]) for row in texts) for k in range(len(COLUMNS))]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in texts
        )


def routing(rule: Rule, members: Iterable[tuple[str, tuple[int, ...], bool, Mapping[str, Any]]]) -> Routing:
    """The table of these tensors: label, shape, whether complex, group."""
    rows = []
    for label, shape, pairs, group in members:
        flags = rule.shaped(rule.flags(group), shape, pairs)
        kind = rule.title if flags.get(MATRIX, True) else rule.rest
        if rule.definition().multiplies and flags.get(MATRIX):
            height, columns = rule.matrix(shape)
            heads = group.get(HEADS, 1)
            kind += f" ({f'{heads} times ' if heads > 1 else ''}{height // heads} x {columns})"
        rows.append((label, tuple(shape), kind, group.get("lr"), group.get("weight_decay")))
    return Routing(rows)
