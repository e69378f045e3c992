"""The GPU backends give the bits of NumPy at sizes and offsets of test_bits.py: every rule, dtype, flag and option. Marked `gpu`.

Each case is one launch a step over many tensors, in one buffer whose gaps are poisoned. What takes long is marked `long`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest

from covering import FEW as FEW_DTYPES
from covering import one
from gpuopt import rules
from gpuopt.formats import OF_PARAMETERS
from gpuopt.launch.table import CHUNK
from gpuopt.optim.optimizer import Optimizer
from host_products import host_products
from launches import exact_on_device
from own_formats import sixteenths
from shim.arena import Arena, Case, assert_same, parameters_of
from shim.variants import DECAYS, EVERYTHING, label, richest, variants
from summing_rules import HYPER, RULES
from test_bits import BENDS, BENT, CASES, DTYPES, FEW, SWITCHES, in_blocks, offsets, split, with_options

pytestmark = pytest.mark.gpu
BACKENDS = ("cupy", "numba-cuda")
BROKEN = [(16, 256), (13, 320), (3, 1367), (9, 8, 64)]  # whole and broken blocks, whole and broken lanes
WHOLE = "adamw"  # the rule that is tried in every way
DECIDED = {"max_grad_norm": 1.0, "skip_nonfinite": True}  # rows by pointer, kernels that decide
RATES = ({"lr": 0.01}, {"lr": 0.02}, {"lr": 0.03})


@pytest.fixture(autouse=True)
def products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of matrices: those of a GPU have other bits, and the driver in software makes none."""
    host_products(monkeypatch)


class OnDevice(Arena):
    """An arena whose buffer lies on the GPU."""

    def __init__(self, host: Arena) -> None:
        import cupy

        self.dtype, self.shapes, self.spans, self.host = host.dtype, host.shapes, host.spans, host
        raw = cupy.asarray(host.memory)  # 512-byte aligned, as the arena asks for 64
        self.memory = raw
        self.arrays = self.views(raw)

    def back(self) -> Arena:
        """The same on the host."""
        made = self.host.copy()
        made._place(self.memory.get())
        return made


@dataclass
class DeviceCase(Case):
    """A case whose arrays lie on the GPU."""

    decided: bool = field(default=False, kw_only=True)

    def run(self, backend: str) -> tuple[dict[str, Arena], Optimizer]:
        """All steps; what comes back lies on the host."""
        if backend == "numpy":
            return super().run(backend)
        count = len(self.groups)
        arenas: Mapping[str, Any] = {role: OnDevice(arena) for role, arena in self.start.items()}
        made = self.optimizer(arenas, backend)
        for _ in range(self.steps):
            made.step([arenas["g"].arrays[k::count] for k in range(count)])
        made._engine.synchronize()
        return {role: arena.back() for role, arena in arenas.items()} | self.beside(made), made


def on_device(case: Case) -> DeviceCase:
    """The same there."""
    return DeviceCase(**{name: getattr(case, name) for name in case.__dataclass_fields__})


def case(name: str, dtype: str, everything: bool, state_format: str = "float32") -> DeviceCase:
    """A rule with all of its states: plain and by value, or with every option, decided on the device, in three groups."""
    wide = {**split(dtype), "state_format": state_format, "sizes": FEW, "offsets": offsets(len(FEW), 1)}
    if not everything:
        return DeviceCase(name, richest(name), odd=0.2, **wide)
    options = {"grad_scale": 8.0, **(DECIDED if exact_on_device(name) else {})}
    return DeviceCase(
        name, richest(name) | EVERYTHING, mask=True, bounds=True, odd=0, options=options, groups=RATES, **wide
    )


SHORT = {f"{name}-{dtype}-everything": case(name, dtype, True) for name, dtype in product(rules.NAMES, DTYPES)}
SHORT |= {
    f"{name}-{dtype}-plain": case(name, dtype, False) for name, dtype in product(rules.NAMES, ("float32", "bfloat16"))
}
SHORT |= {
    f"{name}-{dtype}-state16-{'everything' if everything else 'plain'}": case(name, dtype, everything, "bfloat16")
    for name, dtype, everything in product(rules.NAMES, ("float32", "bfloat16"), (False, True))
    if rules.get(name).states
}


SHORT |= {  # the kernels of other flags
    f"{name}-{label(hyper)}-float32": DeviceCase(
        name, hyper, odd=0.2, sizes=FEW, offsets=offsets(len(FEW), 1), **split("float32")
    )
    for name in rules.NAMES
    for hyper in variants(name)
    if hyper != richest(name)
}
# a parameter in each format: by one backend each, the other dtype by the other
KEPT = {
    f"sgd-{kept}-{dtype}-kept": on_device(with_options("sgd", dtype, (), options={"param_format": kept}))
    for kept in OF_PARAMETERS
    for dtype in ("float16", "bfloat16")
}
KEPT["adamw-split8-bfloat16-kept-state16"] = on_device(
    with_options("adamw", "bfloat16", ("masked",), options={"param_format": "split8"}, state_format="bfloat16")
)
KEPT["lamb-split8-bfloat16-kept"] = on_device(
    with_options("lamb", "bfloat16", (), options={"param_format": "split8", **DECIDED}, odd=0)
)
# states in blocks, by one backend each; every option and what is decided on the device by both
BLOCKS = {
    f"{name}-{kept}-{dtype}-kept-blocks": on_device(in_blocks(name, kept, dtype, sizes=BROKEN, odd=0.02))
    for name, kept, dtype in (("adamw", "int4", "float32"), ("sgd", "float8", "bfloat16"), ("lamb", "int8", "float32"))
}
BLOCKS["sgd-own-float32-kept-blocks"] = on_device(in_blocks("sgd", sixteenths, "float32", sizes=BROKEN, odd=0))
BLOCKS["sgd-own-bfloat16-kept-blocks"] = on_device(in_blocks("sgd", sixteenths, "bfloat16", sizes=BROKEN, odd=0))
BLOCKS |= {
    f"adamw-{kept}-bfloat16-blocks-all": on_device(
        in_blocks(
            "adamw", kept, "bfloat16", tuple(SWITCHES), sizes=BROKEN, groups=RATES, odd=0,
            options={"param_format": "split8", "grad_scale": 8.0, **DECIDED},
        )
    )
    for kept in ("int8", "int4")
}  # fmt: skip
KEPT |= {label: made for label, made in BLOCKS.items() if "-kept" in label}
SHORT |= KEPT | BLOCKS
KEPT_BY = {label: BACKENDS[k % 2] for k, label in enumerate(KEPT)}
SHORT["sgd-decays-all"] = on_device(with_options("sgd", "float32", tuple(SWITCHES), groups=DECAYS))
SHORT["adamw-decays-decided"] = on_device(with_options("adamw", "bfloat16", (), groups=DECAYS))
SHORT["adamw-decays-decided"].options |= {"skip_nonfinite": True}
SHORT |= {f"adamw-float32-{switch}": on_device(with_options("adamw", "float32", (switch,))) for switch in SWITCHES}
SHORT |= {  # options by rows and of the step count, decided on the device
    f"adamw-float32-bent-{bend}": DeviceCase(
        "adamw", richest("adamw") | BENDS[bend], "float32", BENT[2:], odd=0, options=DECIDED, steps=3
    )
    for bend in ("rows", "companions")
}


# Rules that ask for sums, by both: launches of two gradient dtypes that wait for each other are in test_gpu_sums.py.
SUMMED = [*FEW, CHUNK, CHUNK + 700]
SUMS = {
    f"{name}-{dtype}-sums{more}": DeviceCase(
        rule,
        HYPER[name],
        odd=0,
        sizes=SUMMED,
        offsets=offsets(len(SUMMED), 1),
        groups=RATES,
        options=options,
        **split(dtype),
    )
    for (name, rule), dtype in product(RULES.items(), DTYPES)
    for more, options in (("", {}), ("-decided", {**DECIDED, "capturable": True}))
}
SHORT |= SUMS
# of each rule each dtype once, by one backend or the other, and every second one decided on the device
SUMMED_BY = {
    f"{name}-{dtype}-sums{'-decided' if (k + turn) % 2 else ''}": BACKENDS[(k + turn // 2) % 2]
    for turn, name in enumerate(RULES)
    for k, dtype in enumerate(DTYPES)
}


def two_of(name: str) -> list[str]:
    """Dtypes of a rule, others than the first that test_bits.py tries."""
    begin = rules.NAMES.index(name) + FEW_DTYPES
    return [[*DTYPES][k % len(DTYPES)] for k in (begin, begin + 1)]


def pairs() -> Iterator[Any]:
    """Every case on both backends. In the ordinary suite of AdamW; of another rule two dtypes, one by each backend, plain, with
    everything or with rounded states in turn, and another variant by one of them: walks, options and decisions are AdamW's, and
    statements of all variants are compared in test_bits.py. AdamW with a single option by one backend each, as all are on together
    by both.
    """
    others = [name for name in rules.NAMES if name != WHOLE]
    plain = {label: c for label, c in SHORT.items() if label not in KEPT}
    single = {f"{WHOLE}-float32-{switch}": BACKENDS[k % 2] for k, switch in enumerate(SWITCHES)}
    whole = [label for label, c in plain.items() if c.rule == WHOLE or "-decays-" in label]
    chosen = {(label, b) for label in whole for b in BACKENDS if b == single.get(label, b)}
    chosen |= set(SUMMED_BY.items()) | set(KEPT_BY.items())
    chosen.add(("signsgd-float32-plain", "numba-cuda"))  # the sign of NaN, which CUDA C is asked for under g++
    for turn, name in enumerate(others):
        for place, dtype in enumerate(two_of(name)):
            k = [*DTYPES].index(dtype)
            kinds = ("everything", "state16-everything", "plain", "everything", "state16-plain")
            wanted = f"{name}-{dtype}-{kinds[(k + turn) % len(kinds)]}"
            label_ = wanted if wanted in SHORT else f"{name}-{dtype}-everything"
            chosen.add((label_, BACKENDS[(place + turn) % 2]))
        of_flags = [
            k for k, c in SHORT.items() if c.rule == name and c.hyper in variants(name) and k.endswith("float32")
        ]
        chosen |= {(label_, BACKENDS[(k + turn) % 2]) for k, label_ in enumerate(one(name, of_flags))}
    for (label_, case), backend in product(SHORT.items(), BACKENDS):
        marks = [] if (label_, backend) in chosen else [pytest.mark.long]
        yield pytest.param(case, backend, id=f"{label_}-{backend}", marks=marks)


def check(case: Case, backend: str) -> None:
    expected, reference = case.run("numpy")
    found, made = case.run(backend)
    assert_same(expected, found, backend)
    assert [s.counter.step for s in parameters_of(made)] == [s.counter.step for s in parameters_of(reference)]


@pytest.mark.parametrize(("case", "backend"), list(pairs()))
def test_same_bits(case: Case, backend: str) -> None:
    check(case, backend)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_same_bits_at_every_size(case: Case, backend: str) -> None:
    check(on_device(case), backend)
