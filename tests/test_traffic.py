"""What a step moves: every rule against a table of floors that was made by hand from its formula.

A pass reads an array of parameter size at most once, and the last one writes what the rule changes, but for states that an earlier
one makes anyway: it stores them where that saves more reads than it costs. A
rule that is one pass over the parameter, the gradient and its states needs no row: it has to be as cheap as that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import rule_table, rules
from gpuopt.bench import shapes, suites
from gpuopt.compiler.lower import gradient_sums, program_for
from gpuopt.formats.dtypes import STORAGES
from gpuopt.rules.language import State, columns, row_sum, rule, sqrt, tensor_sum
from gpuopt.source import program

# Rule, options, what each pass reads and (behind the arrow) writes, bytes of a float32 parameter.
FLOORS: list[tuple[str, dict[str, Any], str, int]] = [
    ("gd", {}, "p g > p", 12),
    ("signsgd", {}, "p g > p", 12),
    ("sgd", {}, "p g > p", 12),
    ("sgd", {"momentum": 0.9}, "p g b > p b", 20),
    ("dgd", {}, "p g v > p v", 20),
    ("adagrad", {}, "p g a > p a", 20),
    ("lion", {}, "p g m > p m", 20),
    ("signum", {}, "p g m > p m", 20),
    ("tiger", {}, "p g m > p m", 20),
    ("rmsprop", {}, "p g v > p v", 20),
    ("rmsprop", {"momentum": 0.9, "centered": True}, "p g v b c > p v b c", 36),
    *(
        (name, {}, "p g m v > p m v", 28)
        for name in ("adam", "adamw", "adamax", "radam", "adabelief", "adopt", "laprop")
    ),
    *((name, {}, "p g m v > p m v", 28) for name in ("grams", "yogi", "adadelta")),
    ("adamw", {"amsgrad": True}, "p g m v w > p m v w", 36),
    ("ademamix", {}, "p g m n v > p m n v", 36),
    ("adan", {}, "p g m d n q > p m d n q", 44),
    # Norms of p and of the step, then the step; with its clip, the norm of all gradients before them.
    ("lamb", {"max_grad_norm": None}, "p g m v > m v, p m v > p", 40),
    ("lamb", {}, "g, p g m v > m v, p m v > p", 44),
    ("lamb", {"weight_decay": 0.0}, "g, p g m v > p m v", 32),
    ("lars", {}, "p g > p", 12),
    ("lars", {"weight_decay": 0.1, "momentum": 0.9}, "p g, p g b > p b", 28),
    ("novograd", {}, "g, p g m > p m", 24),
    ("adammini", {}, "g, p g m > p m", 24),
    ("stableadamw", {}, "g v, p g m v > p m v", 36),
    # The norm of the corrected gradient needs that of the step before, which is replaced.
    ("mars", {}, "g q, p g m v q > p m v q", 44),
    ("mars", {"mars_type": "mars-lion"}, "g q, p g m q > p m q", 36),
    # The size of p; means of g^2 along rows and columns; the size of the step; the step.
    ("adafactor", {}, "p, g, g, p g > p", 24),
    ("adafactort5", {}, "p, g, g, p g > p", 24),
    ("adafactort5", {"momentum": 0.9}, "p, g, g, p g m > p m", 32),
    # Means, the size of the step, means of how far it is from its average, and the average itself.
    ("came", {}, "g, g, g m, p g m > p m", 36),
    # Four sums along rows, the largest of numbers of rows, which reads no array, and the step.
    ("adamp", {}, "p g m v, , p g m v > p m v", 44),
    # Its two sums share a pass, which is the only one that s is for.
    ("prodigy", {}, "p g s o > s, p g m v > p m v", 48),
    # Before a product of matrices x, an operand, is written; behind it the result is read. Lengths of rows come between, or of all.
    *((name, {}, "g b > b x | p x > p", 28) for name in ("muon", "scion", "dion2", "kron")),
    ("apollo", {}, "g > x | p x > p", 20),
    # The gradient x goes into the bases, its average y is turned with them, and the step z comes back.
    ("soap", {}, "g m > x y | x y v > m v z | p z > p", 52),
    # What is orthogonalized comes from the bases in the same memory.
    ("soapmuon", {}, "g b > b x y | y w > w z | p z > p", 48),
    # Lengths of the step and of Adam's, for which both averages are made once more.
    ("shampoo", {}, "g m > x y | g m v y, p g m v y > p m v", 64),
    ("splus", {}, "g m > m x y | y > z | p z > p", 40),
    ("muon2", {}, "g b q > b q x | p x > p", 36),
    ("normuon", {}, "g b > b x | x, p x > p", 32),
    ("adamuon", {}, "g b > b x | x q, p x q > p q", 44),
    # The length of the momentum is wanted behind the product, so that it is stored there, by the pass that measures it.
    ("namo", {}, "g b > x | g b > b, p x > p", 36),
]


def counted(passes: str) -> tuple[int, int]:
    """(passes, bytes) of such a text."""
    found = [each.partition(" > ") for stage in passes.split(" | ") for each in stage.split(", ")]
    return len(found), 4 * sum(len(reads.split()) + len(writes.split()) for reads, _, writes in found)


@pytest.mark.parametrize(("name", "options", "passes", "floor"), FLOORS, ids=lambda value: str(value).replace(" ", ""))
def test_passes_and_bytes_are_the_floor(name: str, options: dict[str, Any], passes: str, floor: int) -> None:
    made = program(name, **options)
    assert (made.walks, made.traffic()) == counted(passes) == (counted(passes)[0], floor)


@pytest.mark.parametrize("name", gpuopt.optimizers())
def test_a_rule_moves_its_arrays_once_or_has_a_floor(name: str) -> None:
    made = program(name)
    floors = [floor for known, options, _, floor in FLOORS if known == name and not options]
    states = sum(1 + role.written for role in made.roles[2:])
    assert floors or made.walks == 1, f"a rule of several passes, {name}, needs a row in FLOORS"
    assert made.traffic() == (floors or [4 * (3 + states)])[0]


def test_table_and_benchmarks_say_the_same() -> None:
    rows = [line.strip("| ").split(" | ") for line in rule_table.lines()][2:]
    assert [row[0].strip("`") for row in rows] == list(rules.NAMES)
    for name, row in zip(rules.NAMES, rows, strict=True):
        made = program(name)
        assert row[3].split(" to ")[0] == str(made.walks) and row[5].split(" to ")[0] == str(made.traffic())
    for name, floor in (("gd", 12), ("sgd", 20), ("lion", 20), ("adamw", 28), ("lamb", 44), ("lars", 20)):
        assert suites.Case("", "", ((1000,),), name).bytes_moved == 1000 * floor, "with the decay of all benchmarks"
        assert suites.Case("", "", ((1000,),), name, "bfloat16").bytes_moved == 1000 * floor - 2000 * narrow(name)


def narrow(name: str) -> int:
    """How often parameters and gradients, which are half as wide in bfloat16, are read and written."""
    made = program(name, **suites.hyper(name))
    return 1 + sum(k < 2 for part in made.parts for each in part.passes for k in each.reads)


@pytest.mark.parametrize(
    ("name", "most"), [("lars", "12 to 28"), ("adam", "28 to 36"), ("mars", "44 to 52"), ("lamb", "44")]
)
def test_the_most_is_what_its_own_options_make_of_it(name: str, most: str) -> None:
    assert rule_table.traffic(rules.get(name)) == most


@pytest.mark.parametrize("name", ["adamw", "lamb", "lars"])
def test_a_look_at_all_gradients_reads_them_once_more(name: str) -> None:
    """`max_grad_norm` and `skip_nonfinite` share the pass."""
    for dtype in ("float64", "float32", "bfloat16"):
        made = program(name, param_dtype=dtype)
        _, look = gradient_sums(dtype, made.compute)
        assert made.traffic(look) - made.traffic() == STORAGES[dtype].itemsize


def test_formats_count() -> None:
    assert program("adamw", param_dtype="bfloat16", state_format="bfloat16").traffic() == 14
    split = {"param_dtype": "bfloat16", "param_format": "split8"}
    codes = {
        "int8": 2 * (2 + 3 / 256),
        "int4": 2 * (1 + 2 / 32 + 6 / 256),
    }  # codes and numbers of blocks of both states, read and written
    for kept, states in codes.items():
        assert program("adamw", state_format=kept, **split).traffic() == 2 + 2 * (2 + 1) + states
        assert (
            program("lamb", state_format=kept, max_grad_norm=None, **split).traffic()
            == 2 * (2 + 3 + states / 2) + 3 + states / 2
        )
    assert program("lamb", param_dtype="bfloat16", max_grad_norm=None).traffic() == 20 + 12
    assert program("sgd", mask=True).traffic() == 13
    assert program("sgd", mask=True, bounds=True).traffic() == 21


@rule(state={"r": State("r", "r", shape="row")})
def by_rows(p, g, r, *, lr, matrix: bool):  # type: ignore[no-untyped-def]
    """A number a row."""
    if matrix:
        r = r + row_sum(g * g) / columns(g)
        g = g / sqrt(r)
    p = p - lr * g
    return p, r


def test_what_rows_and_columns_move_is_named_apart() -> None:
    """Two passes over g; of a row: its state, the sums of its blocks, the sum, and what the update takes of it."""
    made = program(by_rows)
    assert (len(made.passes), made.traffic()) == (2, 16)
    assert made.traffic_along(10, 512) == 10 * (8 + 16 + 8 + 8)
    assert made.traffic_along(10, 513) == 10 * (8 + 32 + 8 + 8)
    matrices = [shape for shape in shapes.MODELS[shapes.GPT2] if len(shape) == 2]
    along = sum(made.traffic_along(*shape) for shape in matrices)
    assert along < 0.01 * made.traffic() * sum(np.prod(shape) for shape in matrices)


def test_a_rule_that_reads_more_is_seen() -> None:
    """A second sum that cannot be made with the first is one more pass, and what it reads is counted."""

    @rule
    def twice(p, g, *, lr):  # type: ignore[no-untyped-def]
        size = tensor_sum(g * g)
        p = p - lr * g / tensor_sum(p * g / size)
        return p

    assert (len(program(twice).passes), program(twice).traffic()) == counted("g, p g, p g > p") == (3, 24)


@rule(state={"b": State("b", "b")})
def measured(p, g, b, *, lr, behind: bool = False):  # type: ignore[no-untyped-def]
    """A state whose new value is summed, and which the step takes as it is now, or as it was."""
    u = b
    b = 0.9 * b + g
    size = tensor_sum(b * b)
    if not behind:
        u = b
    p = p - lr * u / size
    return p, b


def test_a_state_is_stored_by_the_pass_that_makes_it_where_that_saves_bytes() -> None:
    """Not one that the update takes as it was; not where a step may fail between passes, states travel for each of them, some rows
    are walked, or the value that comes back from memory is another one.
    """

    def of(**options: Any) -> tuple[int, ...]:
        return tuple(len(each.writes) for each in program(measured, **options).passes)

    assert (of(), program(measured).traffic()) == ((1, 1), counted("g b > b, p b > p")[1])
    assert (of(behind=True), program(measured, behind=True).traffic()) == ((0, 2), counted("g b, p g b > p b")[1])
    for kept in ("bfloat16", "int8"):
        assert of(param_dtype="bfloat16", state_format=kept)[0] == 0
    assert of(param_dtype="bfloat16") == (1, 1)
    signature = program(measured).signature
    for elsewhere in ({"sharded": True}, {"travelling": True}, {"picked": True}):
        assert not program_for(replace(signature, **elsewhere)).early
