"""numpy = numba = generated CUDA C (compiled by g++), bit for bit: every rule, dtype, size, offset, option and list.

Each case runs the same steps on arrays inside poisoned memory, once per backend; see shim.arena. What is computed on the
device where a step may be skipped is in test_bits_device.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from covering import REPRESENTATIVES, marked, some
from covering import chosen as chosen_of
from gpuopt import rules
from gpuopt.compiler.names import CODE
from gpuopt.formats import OF_PARAMETERS
from gpuopt.formats.language import Format
from gpuopt.launch import table as t
from gpuopt.rules.options import BESIDE
from own_formats import OWN
from shim.arena import Case, assert_same, launches_of, parameters_of
from shim.backend import Backend, installed
from shim.build import cuda_sources, name_in_c, prefetch
from shim.variants import DECAYS, EVERYTHING, VARIANT_LABELS, VARIANTS, label, richest
from summing_rules import HYPER, RULES

pytestmark = pytest.mark.once
DTYPES = {"float64": None, "float32": None, "float16": None, "bfloat16": None, "float32-bfloat16": "bfloat16"}
SHAPES = ((32, 2048, 3), (256, 16384, 2))  # unit, tile size, blocks
TILES = (2048, 4096, 8192, 16384)
SIZES = [*range(258), 1023, 1024, 1025, *(tile + d for tile in TILES for d in (-1, 0, 1))]
FEW = [0, 1, 3, 7, 8, 9, 31, 32, 33, 0, 255, 256, 257, 1023, 2047, 2048, 2049, 4097, 0]
ROLES = [
    "p",
    "g",
    *BESIDE,
    *(f"{CODE}p_{plane}" for plane in ("rest", "low", "master")),
    *sorted({s.name for name in rules.NAMES for s in rules.get(name).states}),
]
SWITCHES = {"scaled": {"maximize": True, "grad_scale": 8.0}, "clipped": {"clip_value": 0.75}}
SWITCHES |= {"sparse": {"l1": 0.125}, "masked": {"mask": True}, "bounded": {"bounds": True}}


def offsets(count: int, seed: int | None = None) -> dict[str, list[int]]:
    """0 to 15 elements, another for each role, but where p and g could be walked in packs the rest often can too.

    Without a seed, p and g together meet all 256 pairs.
    """
    rng = np.random.default_rng(seed or 0)
    made = {role: rng.integers(0, 16, count) for role in ROLES}
    if seed is None:
        made |= {"p": np.arange(count) % 16, "g": (np.arange(count) + np.arange(count) // 16) % 16}
    else:
        made["g"] = np.where(rng.random(count) < 0.5, made["p"], made["g"])
    agree = (made["p"] - made["g"]) % 4 == 0
    return {r: np.where(agree & (r != "g"), made["p"], made[r]).tolist() for r in ROLES}


def split(dtype: str) -> dict[str, Any]:
    """`param_dtype` and `grad_dtype` of a name in DTYPES."""
    return {"param_dtype": dtype.partition("-")[0], "grad_dtype": DTYPES[dtype]}


def with_options(name: str, dtype: str, switches: tuple[str, ...], **more: Any) -> Case:
    """A short list of tensors with these options on."""
    chosen: dict[str, Any] = {k: v for s in switches for k, v in SWITCHES[s].items()}
    beside = {name: chosen.pop(name, False) for name in ("mask", "bounds")}
    wide = {k: chosen.pop(k) for k in ("grad_scale",) if k in chosen}
    common = {"offsets": offsets(len(FEW), 1), "options": wide, "odd": 0.2, **beside, **split(dtype), **more}
    return Case(name, richest(name) | chosen, **{"sizes": FEW, **common})


RULE_CASES = {
    f"{label}-{dtype}": Case(name, hyper, sizes=SIZES, offsets=offsets(len(SIZES)), **split(dtype))
    for (label, (name, hyper)), dtype in product(zip(VARIANT_LABELS, VARIANTS, strict=True), DTYPES)
}
OPTION_CASES = {
    "-".join(chosen): with_options("adamw", "float32", chosen)
    for bits in product((0, 1), repeat=4)  # bounds, which are read as the mask is, alone and with all others
    if (chosen := tuple(s for s, bit in zip(SWITCHES, bits, strict=False) if bit))
}
OPTION_CASES["bounded"] = with_options("adamw", "float32", ("bounded",))
OPTION_CASES |= {f"adamw-{d}-decays": with_options("adamw", d, (), groups=DECAYS) for d in ("float32", "bfloat16")}
ANCHORED = ({"anchor": None}, *DECAYS[1:])  # to where parameters began, in every mode
OPTION_CASES["sgd-decays-anchored"] = with_options("sgd", "bfloat16", (), groups=ANCHORED)
OPTION_CASES["sgd-decays-anchored"].hyper |= {"anchor": "initial", "weight_decay_mode": "decoupled"}
OPTION_CASES["sgd-decays-all"] = with_options("sgd", "float32", tuple(SWITCHES), groups=DECAYS)
OPTION_CASES |= {f"{n}-{dtype}-all": with_options(n, dtype, tuple(SWITCHES)) for n in rules.NAMES for dtype in DTYPES}
FORMAT_CASES = {
    f"{name}-{dtype}": with_options(name, dtype, (), state_format="bfloat16")
    for name in rules.NAMES
    for dtype in ("float32", "bfloat16")
    if rules.get(name).states
}
FORMAT_CASES |= {
    f"{kept}-{name}-{dtype}": with_options(name, dtype, (), options={"param_format": kept}, **more)
    for kept, dtype in product(OF_PARAMETERS, ("float16", "bfloat16"))
    for name, more in (
        ("sgd", {}),
        ("adamw", {"state_format": "bfloat16", "mask": True}),
        ("lamb", {}),
        ("adafactor", {}),
    )
}
# States in blocks of rows: whole and broken blocks and lanes, rows shorter than a block, one row, three axes; and narrow rows, each
# of which is a warp's.
MATRICES = [(16, 256), (13, 320), (3, 1367), (1, 4099), (9, 8, 64), (33, 130), (5, 8, 104)]
NARROW = [(4096, 1), (600, 7)]
CODES = ("int8", "int4", "float8")


class Moved(dict[str, list[int]]):
    """Offsets of every role, whatever it is called, of which every second array has none. Which roles there are, a case would have
    to ask its program, and hundreds of programs would be made before the first test.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def get(self, role: str, default: Any = None) -> list[int]:
        return [(crc32(role.encode()) + j) % 16 if j % 2 else 0 for j in range(self.count)]


def in_blocks(name: str, state_format: str | Format, dtype: str, switches: tuple[str, ...] = (), **more: Any) -> Case:
    """A short list of matrices whose states are kept in codes."""
    made = with_options(name, dtype, switches, **{"state_format": state_format, "sizes": MATRICES, **more})
    return replace(made, offsets=Moved(len(made.sizes)))


BLOCK_CASES = {
    f"{name}-{kept}-{dtype}": in_blocks(name, kept, dtype, odd=0.02)
    for name, kept, dtype in product(rules.NAMES, CODES, ("float32", "bfloat16"))
    if any(s.walked and not s.exact and s.when != "not matrix" for s in rules.get(name).states)
}
BLOCK_CASES |= {
    f"adamw-{kept}-bfloat16-all": in_blocks(
        "adamw", kept, "bfloat16", tuple(SWITCHES), options={"param_format": "split8", "grad_scale": 8.0}, groups=DECAYS
    )
    for kept in CODES
}
BLOCK_CASES |= {f"sgd-{of.name}-{d}-own": in_blocks("sgd", of, d, odd=0) for of in OWN for d in ("float32", "bfloat16")}
BLOCK_CASES["adamw-int4-float32-narrow"] = in_blocks("adamw", "int4", "float32", sizes=NARROW)
# What bends an update by lengths of tensors and rows: around matrices, a convolution, vectors, of several chunks.
BENT = [(3, 50), (40, 3), (13, 2, 3), (300, 130), (0, 3), (257,), (1,), (1, 7)]
BENDS: dict[str, dict[str, Any]] = {
    "cautious": {"cautious": True},
    "unscaled": {"cautious": "unscaled"},
    "floored": {"clip_update_rms": 0.1, "radial_brake": 0.25, "update_floor": 0.125},
    "rows": {"adaptive_clip": 0.1, "row_update_floor": 0.125},
    "relative": {"update_norm": "relative", "radial_brake": 0.25},
    "hyperball": {"hyperball": True, "weight_decay": 0.0},
    "companions": {"ema_decay": 0.9, "lookahead": (2, 0.25), "l1": 0.125},
}
OPTION_CASES |= {
    f"bent-{name}-{bend}-{dtype}": Case(
        name, richest(name) | hyper, sizes=BENT, offsets=offsets(len(BENT), 5), odd=odd, **split(dtype)
    )
    for name, bend, hyper, dtype, odd in (
        *(("adamw", bend, hyper, "float32", 0.0) for bend, hyper in BENDS.items()),
        ("sgd", "all", {**BENDS["cautious"], **BENDS["floored"], **BENDS["rows"]}, "bfloat16", 0.01),
    )
}
# Rules that sum: of a tensor of several chunks and of more tensors than blocks, in groups with step counts of their own.
SUMMED = [*FEW, t.CHUNK, 2 * t.CHUNK + 333]
SUM_CASES = {
    f"{name}-{dtype}{label}": Case(
        rule, HYPER[name], sizes=SUMMED, offsets=offsets(len(SUMMED), 3), odd=odd, **more, **split(dtype)
    )
    for (name, rule), dtype in product(RULES.items(), DTYPES)
    for label, odd, more in (
        ("", 0.0, {"groups": ({}, {"lr": 0.25}), "seen": [range(21), range(0, 21, 3)]}),
        *([("-odd", 0.001, {"options": EVERYTHING if name == "trusting" else {}})] if dtype == "float32" else []),
    )
}
CASES = (
    RULE_CASES
    | {f"options-{k}": v for k, v in OPTION_CASES.items()}
    | {f"state16-{k}": v for k, v in FORMAT_CASES.items()}
    | {f"blocks-{k}": v for k, v in BLOCK_CASES.items()}
    | {f"sums-{k}": v for k, v in SUM_CASES.items()}
)


def ordinary() -> Iterator[str]:
    """Of each rule every option in one dtype, each variant once, plain, at all sizes and offsets, and states that are rounded or in
    blocks: dtypes and formats in turn, as they change the walk and not the arithmetic within, which is the rule's own. Of a
    representative the variant with most states in every dtype, rounded and in blocks, of AdamW every option in every dtype. What
    reads and writes a format of parameters knows nothing of the rule: where a pass before the update does so, one dtype each.
    """
    yield from (k for k in CASES if k.startswith("options-") and not k.endswith("-all"))
    for turn, kept in enumerate(OF_PARAMETERS):
        first, second = ("float16", "bfloat16")[:: 1 - 2 * (turn % 2)]
        yield from (f"state16-{kept}-{name}-{dtype}" for name in ("sgd", "adamw") for dtype in (first, second))
        yield from (f"state16-{kept}-lamb-{first}", f"state16-{kept}-adafactor-{second}")
    yield from (f"blocks-{k}" for k in BLOCK_CASES if k.endswith(("-all", "-narrow", "-own")))
    for turn, name in enumerate(rules.NAMES):
        if name in REPRESENTATIVES or turn % 2 == 0:
            for kept, dtype in chosen_of(name, CODES, ("float32", "bfloat16"))[: 6 if name == "adamw" else 1]:
                yield from [k for k in (f"blocks-{name}-{kept}-{dtype}",) if k in CASES]
    yield from (f"sums-trusting-{dtype}" for dtype in ("float64", "float16", "float32-bfloat16", "float32-odd"))
    yield from (f"sums-distant-{dtype}" for dtype in ("float32", "bfloat16", "float32-odd"))
    yield from (f"sums-lined-{dtype}" for dtype in ("float64", "float32-bfloat16", "float16", "float32-odd"))
    for turn, name in enumerate(rules.NAMES):
        labels = [k for k, (n, _) in zip(VARIANT_LABELS, VARIANTS, strict=True) if n == name]
        if name in REPRESENTATIVES:
            yield from (f"{name}-{label(richest(name))}-{dtype}" for dtype in DTYPES)
            yield from (k for k in CASES if k.startswith(f"state16-{name}-"))
            yield from (f"options-{name}-{dtype}-all" for dtype in (DTYPES if name == "adamw" else ["float32"]))
        else:
            yield f"options-{name}-{some(name, DTYPES)[0]}-all"
            yield from [
                k for k in (f"state16-{name}-{('float32', 'bfloat16')[turn // 2 % 2]}",) if turn % 2 and k in CASES
            ]
        for k, variant in enumerate(labels):
            yield f"{variant}-{list(DTYPES)[(turn + k) % len(DTYPES)]}"


@pytest.fixture(scope="module")
def shim(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The backend, and g++ at work on every kernel that the chosen tests need."""
    with installed() as backend:
        for item in request.session.items:
            case = getattr(item, "callspec", None) and item.callspec.params.get("case")
            if isinstance(case, Case):
                for name, source in cuda_sources(case.program).items():
                    prefetch(source, name_in_c(name))
        yield backend


def check(shim: Backend, case: Case, shapes: tuple[tuple[int, int, int], ...] = SHAPES) -> None:
    """Every backend gives the bits of the reference, and the same step counts. What waits for threads, in one shape."""
    shapes = shapes if case.program.local and not case.program.in_blocks else shapes[:1]
    expected, reference = case.run("numpy")
    counts = [parameter.counter.step for parameter in parameters_of(reference)]
    found, made = case.run("numba")
    assert_same(expected, found, "numba")
    for shape in shapes:
        shim.unit, shim.tile_size, shim.blocks = shape
        found, made = case.run("shim")
        assert_same(expected, found, f"shim {shape}")
        assert [parameter.counter.step for parameter in parameters_of(made)] == counts


@pytest.mark.parametrize("case", marked(CASES, ordinary()))
def test_same_bits(shim: Backend, case: Case) -> None:
    check(shim, case)


def test_the_sizes_and_offsets_meet_every_branch_of_the_walk(shim: Backend) -> None:
    made = RULE_CASES["adamw-plain-float32"].run("shim")[1]
    table = launches_of(made)[0].plan.table
    packed = (table[:, t.ALIGNED] & 1).astype(bool)
    assert packed.sum() > 50 and (~packed).sum() > 50
    assert set(table[packed, t.HEAD]) == {0, 1, 2, 3}
    assert (table[packed, t.NUMEL] < table[packed, t.HEAD]).any()


@pytest.mark.parametrize("device_rows", [False, True])
@pytest.mark.parametrize("count", [3, 300])
def test_rows_of_groups_and_step_counts(shim: Backend, count: int, device_rows: bool) -> None:
    """300 groups of AdamW with two step counts each are more rows than a kernel argument holds."""
    sizes = [(7 * k) % 40 for k in range(2 * count)]
    seen = [range(2 * count), range(0, 2 * count, 3), range(count), range(2 * count)]
    groups = [{"lr": 0.01 + 1e-4 * k, "weight_decay": 0.1 * (k % 2)} for k in range(count)]
    hyper = {"eps": 1e-6, "amsgrad": False}
    case = Case("adamw", hyper, "float32", sizes, groups=groups, seen=seen, steps=4, offsets=offsets(2 * count, 2))
    shim.device_rows = device_rows
    try:
        check(shim, case)
    finally:
        shim.device_rows = False
    launch = launches_of(case.run("shim")[1])[0]
    assert len(launch.counters) > count


@pytest.mark.parametrize("blocks", [1, 4, 37])
@pytest.mark.parametrize("unit", [32, 256])
@pytest.mark.parametrize("tile_size", TILES)
def test_launch_shape_changes_nothing(shim: Backend, tile_size: int, unit: int, blocks: int) -> None:
    case = Case("adamw", richest("adamw"), "bfloat16", [100_003, 0, 5, tile_size + 1], offsets=offsets(4, 1), steps=1)
    check(shim, case, ((unit, tile_size, blocks),))


KERNELS = (("adamw", "float32"), ("lion", "bfloat16"), ("rmsprop", "float16"), ("sgd", "float64"))
COUNTS = st.one_of(st.integers(1, 60), st.integers(60, 600))
LENGTHS = st.lists(st.one_of(st.just(0), st.integers(0, 40), st.sampled_from(SIZES)), min_size=1, max_size=40)


@settings(max_examples=30, deadline=None, derandomize=True)
@example(("adamw", "float32"), 5000, [0, 3, 17, 0, 64, 1], 1, 0.05, (32, 2048, 3))
@example(("lion", "bfloat16"), 3, [0], 2, 0.0, (32, 2048, 1))
@given(
    kernel=st.sampled_from(KERNELS),
    count=COUNTS,
    lengths=LENGTHS,
    seed=st.integers(0, 2**32 - 1),
    odd=st.sampled_from([0.0, 0.05, 1.0]),
    shape=st.tuples(st.sampled_from([32, 256]), st.sampled_from(TILES), st.integers(1, 5)),
)
def test_any_list_of_tensors(
    shim: Backend, kernel: Any, count: int, lengths: list[int], seed: int, odd: float, shape: tuple[int, int, int]
) -> None:
    """1 to 5,000 tensors, empties anywhere, any bits in them."""
    sizes = [lengths[k % len(lengths)] if k < 300 else lengths[k % len(lengths)] % 41 for k in range(count)]
    name, dtype = kernel
    places = offsets(count, seed)
    case = Case(name, richest(name) | EVERYTHING, dtype, sizes, offsets=places, odd=odd, seed=seed, steps=1)
    check(shim, case, (shape,))
