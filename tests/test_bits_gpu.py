"""The GPU backends give the bits of NumPy at sizes and offsets of test_bits.py: every rule, dtype, flag and option. Marked `gpu`.

Each case is one launch a step over many tensors, in one buffer whose gaps are poisoned. What takes long is marked `long`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest

from gpuopt import rules
from gpuopt.optim.optimizer import Optimizer
from shim.arena import Arena, Case, assert_same, slots_of
from shim.variants import EVERYTHING, label, richest, variants
from test_bits import CASES, DTYPES, FEW, SWITCHES, offsets, split, with_options

pytestmark = pytest.mark.gpu
BACKENDS = ("cupy", "numba-cuda")
DECIDED = {"max_grad_norm": 1.0, "skip_nonfinite": True}  # rows by pointer, kernels that decide
RATES = ({"lr": 0.01}, {"lr": 0.02}, {"lr": 0.03})


class OnDevice(Arena):
    """An arena whose buffer lies on the GPU."""

    def __init__(self, host: Arena) -> None:
        import cupy

        self.dtype, self.spans, self.host = host.dtype, host.spans, host
        raw = cupy.asarray(host.memory)  # 512-byte aligned, as the arena asks for 64
        self.memory = raw
        self.arrays = [raw[a:b].view(self.dtype) for a, b in self.spans]

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
        return {role: arena.back() for role, arena in arenas.items()}, made


def on_device(case: Case) -> DeviceCase:
    """The same there."""
    return DeviceCase(**{name: getattr(case, name) for name in case.__dataclass_fields__})


def case(name: str, dtype: str, everything: bool, state_format: str = "float32") -> DeviceCase:
    """A rule with all of its states: plain and by value, or with every option, decided on the device, in three groups."""
    wide = {**split(dtype), "state_format": state_format, "sizes": FEW, "offsets": offsets(len(FEW), 1)}
    if not everything:
        return DeviceCase(name, richest(name), odd=0.2, **wide)
    options = {"grad_scale": 8.0, **DECIDED}
    return DeviceCase(name, richest(name) | EVERYTHING, mask=True, odd=0, options=options, groups=RATES, **wide)


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
SHORT |= {f"adamw-float32-{switch}": on_device(with_options("adamw", "float32", (switch,))) for switch in SWITCHES}


def check(case: Case, backend: str) -> None:
    expected, reference = case.run("numpy")
    found, made = case.run(backend)
    assert_same(expected, found, backend)
    assert [s.clock.step for s in slots_of(made)] == [s.clock.step for s in slots_of(reference)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SHORT.values(), ids=SHORT.keys())
def test_same_bits(case: Case, backend: str) -> None:
    check(case, backend)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_same_bits_at_every_size(case: Case, backend: str) -> None:
    check(on_device(case), backend)
