"""What NVRTC makes of walks over blocks: registers, accesses, shuffles, and instructions an element. No GPU is needed; see
test_cubins.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from covering import FEW
from gpuopt.compiler import to_cuda
from gpuopt.compiler.program import Program
from gpuopt.launch.table import EACH, WARP
from gpuopt.source import program
from shim.sass import DOUBLE, LOCAL, machine
from test_cubins import REGISTERS

pytestmark = pytest.mark.once

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")
SPLIT = {"param_dtype": "bfloat16", "param_format": "split8"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw-int8": ("adamw", {"state_format": "int8"}),
    "adamw-float8": ("adamw", {"state_format": "float8", "param_dtype": "bfloat16"}),
    "adamw-int8-split8": ("adamw", {"state_format": "int8", **SPLIT}),
    "adamw-int4-split8": ("adamw", {"state_format": "int4", **SPLIT}),
    "adam-int8-amsgrad": ("adam", {"state_format": "int8", "amsgrad": True}),
    "lion-int4": ("lion", {"state_format": "int4"}),
    "sgd-int8-split8": ("sgd", {"state_format": "int8", "momentum": 0.9, **SPLIT}),
    "lamb-int8": ("lamb", {"state_format": "int8"}),
    "came-int8": ("came", {"state_format": "int8"}),
}
EVERYWHERE = ("adamw-int8-split8", "lion-int4", "sgd-int8-split8")  # the latter were the first to spill, on sm_120
ON = {
    f"{label}-{arch}": (*kind, arch)
    for k, (label, kind) in enumerate(KINDS.items())
    for arch in (ARCHITECTURES if label in EVERYWHERE else ("sm_90", ARCHITECTURES[k % 5])[:FEW])
}


@pytest.mark.parametrize("case", ON.values(), ids=ON)
def test_budget(case: tuple[str, dict[str, Any], str]) -> None:
    rule, options, arch = case
    made = program(rule, **options)
    found = machine(to_cuda.update_source(made), arch)
    assert found.registers <= REGISTERS[to_cuda.blocks_per_sm(made)]
    assert found.stack == found.local == 0 and not found.found(LOCAL) and not found.found(DOUBLE)
    each = 2 if options.get("param_dtype") != "bfloat16" else 1  # accesses of 16 bytes for 8 elements
    assert found.count(r"LDG\..*128") >= 2 * each and found.count(r"STG\..*128") >= each
    assert found.count("SHFL") >= sum((e.block // 8).bit_length() - 1 for e in made.extremes)


# The elements of one lane and nothing else, those of some of its turns.
PROBE = """
extern "C" __global__ void
probe(const int64* record, const int64* slots, int64 row, int64 width, int64 column, const float* given) {
  float s[Update::SCALARS + Update::VALUES + 1];
  for (int k = 0; k < Update::SCALARS + Update::VALUES; ++k) s[k] = given[k];
  column += threadIdx.x * %s;  // else all of it is computed once for a warp, as no walk is
  %s
}
"""


def turns(made: Program, count: int) -> tuple[float, float]:
    """Instructions of so many turns where everything is aligned and whole, for sm_90, divided by the elements of one: of all that
    stands there, and of the shortest way through it.
    """
    call, each = "update_at<Update, Update::LANES>(record + COL_ADDRESS, slots, column, s);", made.lanes
    if made.in_blocks:
        call, each = "update_lane<Update>(record + COL_ADDRESS, slots, row, width, column, EACH, true, s);", EACH
    body = "\n  ".join([f"{call} column += {each * WARP};"] * count)
    text = to_cuda.headers() + '#line 1 "generated"\n' + to_cuda.update_struct(made) + PROBE % (each, body)
    found = machine(text, "sm_90")
    return (sum(found.instructions.values()) - found.instructions["NOP"]) / each, found.shortest / each


# Of one turn with all that it needs once, the slow paths of division and square root, scalars and functions included; and those
# that an element of a further turn executes, with neither of both. Counted with NVRTC 13; 3 % more is a change that should be
# known. Of a division and a root AdamW executes some 20, and a call of the generator takes 60, for four elements or eight.
COUNTED = {
    "float32": (84, 41),
    "split8": (90, 64),
    "int8": (121, 93),
    "int8-split8": (137, 110),
    "int4-split8": (200, 165),
}


@pytest.mark.parametrize("kind", COUNTED)
def test_instructions_an_element_of_adamw(kind: str) -> None:
    options = {"state_format": kind.split("-")[0]} if kind.startswith("int") else {}
    options |= SPLIT if kind.endswith("split8") else {}
    made = program("adamw", **options)
    (standing, once), (_, twice) = turns(made, 1), turns(made, 2)
    assert standing <= 1.03 * COUNTED[kind][0]
    assert twice - once <= 1.03 * COUNTED[kind][1]


def test_the_shortest_way_leaves_out_slow_paths() -> None:
    """By a kernel that divides: its shortest way is shorter than what stands there, and longer than without a division."""
    text = 'extern "C" __global__ void probe(float* x, float y) {{ x[threadIdx.x] = x[threadIdx.x] {} y; }}'
    times, over = (machine(text.format(sign), "sm_90") for sign in "*/")
    standing = sum(over.instructions.values()) - over.instructions["NOP"]
    assert over.count("CALL") and times.shortest < over.shortest < standing / 2
    assert times.shortest <= sum(times.instructions.values()) - times.instructions["NOP"]
