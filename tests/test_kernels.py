"""The hand-written kernels: how their holes are filled, and that twins in CUDA C and Python take the same arguments."""

from __future__ import annotations

import ast
import re

import pytest

from gpuopt.compiler import template
from gpuopt.compiler.template import filled, kernel, kernel_text, kernels_folder
from repository import ROOT

TEXT = """
HOLE("constants")


def f(x):
    for i in range(N):
        HOLE("body")
    HOLE("body")
"""


def test_a_hole_is_replaced_at_its_indentation_wherever_it_stands() -> None:
    made = filled(TEXT, {"constants": ["N = 3"], "body": ["x += 1", "x += 2"]})
    assert (
        made
        == "\nN = 3\n\n\ndef f(x):\n    for i in range(N):\n        x += 1\n        x += 2\n    x += 1\n    x += 2\n"
    )


def test_a_hole_without_statements_is_still_python() -> None:
    assert filled('if x:\n    HOLE("a")\n', {"a": []}) == "if x:\n    pass\n"


@pytest.mark.parametrize(
    ("text", "holes", "words"),
    [
        (TEXT, {"constants": []}, "hole 'body' is not filled; there are fillings for constants"),
        (TEXT, {"constants": [], "body": [], "tail": [], "end": []}, "the text has no hole 'end', 'tail'"),
        ("HOLE('a')\n", {}, r'"HOLE\(\'a\'\)" is no hole: expected HOLE\("name"\) and nothing else on the line'),
        ('x = 1\nHOLE("a")  # why\n', {}, "is no hole"),
    ],
)
def test_a_hole_that_does_not_fit_is_an_error(text: str, holes: dict[str, list[str]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        filled(text, holes)


def test_a_kernel_names_the_constants_that_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "kernel_text", {"f.py": TEXT}.__getitem__)
    text = kernel("f.py", {"N": 3, "M": 4, "K": 5}, {"body": ["x += M"]})
    assert [line for line in text.splitlines() if " = " in line] == ["N = 3", "M = 4"]
    assert text.count("x += M") == 2


def arguments_in_cuda(name: str, function: str) -> list[str]:
    """The last word of each parameter of a function that walks; a Decision stands for its members."""
    text = re.sub(r"//.*", "", kernel_text(f"{name}.cuh"))
    found = re.search(rf"void {function}\(([^{{]*)\) {{", text)
    assert found
    listed = re.sub(r"<[^>]*>", "", found[1]).split(",")
    names = [words[-1] for words in (re.findall(r"\w+", each) for each in listed)]
    if "Decision& d" in text:
        members = re.search(r"struct Decision {(.*?)};", text, re.DOTALL)
        assert members and names[0] == "d"
        names[:1] = re.findall(r"(\w+);", members[1])
    return names


def arguments_in_python(name: str, function: str) -> list[str]:
    (found,) = (n for n in ast.walk(ast.parse(kernel_text(name))) if isinstance(n, ast.FunctionDef))
    assert found.name == function
    return [a.arg for a in found.args.args]


@pytest.mark.parametrize("name", ["multi_tensor", "reduce", "per_tensor", "all_tensors", "exchange", "prepare"])
def test_twins_take_the_same_arguments(name: str) -> None:
    function = "walk" if name == "multi_tensor" else name
    assert arguments_in_python(f"{name}.py", function) == arguments_in_cuda(name, function)


@pytest.mark.parametrize("name", ["multi_tensor", "reduce", "per_tensor"])
def test_twins_on_a_cpu_take_the_same_arguments_but_a_range_of_the_pieces(name: str) -> None:
    """Where a GPU is told how many pieces there are, a CPU's thread is told which are its own; rows come by address only."""
    function = "walk" if name == "multi_tensor" else name
    there, here = arguments_in_python(f"{name}.py", function), arguments_in_python(f"{name}_cpu.py", function)
    device = [a for a in there if not a.endswith("_count") and a not in ("unit", "device_rows", "skip")]
    assert sorted(a for a in here if a not in ("lo", "hi")) == sorted(device)
    assert ("lo" in here) and here.index("hi") == here.index("lo") + 1


def test_twins_of_the_walk_over_blocks_take_the_same_arguments() -> None:
    """On a GPU a warp takes a tile, so that CUDA C is told no unit, which every launch has."""
    there = arguments_in_python("blocks.py", "walk")
    assert [a for a in there if a != "unit"] == arguments_in_cuda("blocks", "walk_blocks")
    assert there == arguments_in_python("multi_tensor.py", "walk")
    assert arguments_in_python("blocks_cpu.py", "walk") == arguments_in_python("multi_tensor_cpu.py", "walk")


def test_every_kernel_is_in_the_table_of_twins_or_the_reading_order() -> None:
    text = (ROOT / "kernels" / "README.md").read_text()
    assert [
        p.name for p in kernels_folder().iterdir() if p.suffix in (".cuh", ".py") and f"`{p.name}`" not in text
    ] == []


def test_every_hole_is_in_the_table_of_holes() -> None:
    """Under its name, or under the beginning of it and three points."""
    table = re.findall(r"`([^`|]+)`", (ROOT / "kernels" / "README.md").read_text().partition("| hole |")[2])
    names = tuple(name for name in table if not name.endswith("..."))
    begins = tuple(name.removesuffix("...") for name in table if name.endswith("..."))
    holes = {hole for p in kernels_folder().glob("*.py") for hole in re.findall(r'HOLE\("(\w+)"\)\n', p.read_text())}
    assert len(holes) > 20
    assert {hole for hole in holes if hole not in names and not hole.startswith(begins)} == set()
