"""What NVRTC makes of walks over blocks: registers, accesses, shuffles, and instructions an element. No GPU is needed; see
test_cubins.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from covering import FEW
from gpuopt.compiler import to_cuda
from gpuopt.compiler.program import Program
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
ON = {
    f"{label}-{arch}": (*kind, arch)
    for k, (label, kind) in enumerate(KINDS.items())
    for arch in (ARCHITECTURES if label == "adamw-int8-split8" else ("sm_90", ARCHITECTURES[k % 5])[:FEW])
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


# One lane's EACH elements and nothing else, the slow paths of division and square root included.
PROBE = """
extern "C" __global__ void
probe(const int64* record, const int64* slots, int64 row, int64 width, int64 column, const float* given) {
  float s[Update::SCALARS + Update::VALUES + 1];
  for (int k = 0; k < Update::SCALARS + Update::VALUES; ++k) s[k] = given[k];
  column += threadIdx.x * Update::LANES;  // else all of it is computed once for a warp, as no walk is
  %s
}
"""


def instructions(made: Program) -> float:
    """Of one element, where everything is aligned and whole, for sm_90."""
    call, count = "update_at<Update, Update::LANES>(record + COL_ADDRESS, slots, column, s);", made.lanes
    if made.in_blocks:
        call, count = "update_lane<Update>(record + COL_ADDRESS, slots, row, width, column, EACH, true, s);", 8
    text = to_cuda.headers() + '#line 1 "generated"\n' + to_cuda.update_struct(made) + PROBE % call
    found = machine(text, "sm_90").instructions
    return (sum(found.values()) - found["NOP"]) / count


# Counted with NVRTC 13; 3 % more is a change that should be known. Of a division and a root, slow paths apart, AdamW has some 40,
# and a word of random bits takes 15.
COUNTED = {"float32": 79, "split8": 97, "int8": 132, "int8-split8": 150, "int4-split8": 201}


@pytest.mark.parametrize("kind", COUNTED)
def test_instructions_an_element_of_adamw(kind: str) -> None:
    options = {"state_format": kind.split("-")[0]} if kind.startswith("int") else {}
    options |= SPLIT if kind.endswith("split8") else {}
    assert instructions(program("adamw", **options)) <= 1.03 * COUNTED[kind]
