"""Launches made by hand, for tests that drive a backend without an optimizer around it. Used by the tests of kernels."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from covering import REPRESENTATIVES
from gpuopt import arrays, rules
from gpuopt.arrays import View
from gpuopt.compiler import to_cuda
from gpuopt.compiler.host import row_inputs
from gpuopt.compiler.program import Program
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.launch.launcher import Launch, StepCounter
from gpuopt.launch.plan import Plan
from gpuopt.optim import companions, geometry
from gpuopt.optim.decay import NONE
from gpuopt.source import program

HYPER = {
    **geometry.NEUTRAL,
    **companions.NEUTRAL,
    "lr": 1e-2,
    "beta1": 0.9,
    "beta2": 0.999,
    "beta3": 0.9999,
    "beta": 0.965,
    "rho": 0.9,
    "alpha_warmup": 5.0,
    "beta3_warmup": 10.0,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "momentum": 0.9,
    "dampening": 0.25,
    "lr_decay": 0.1,
    "initial_accumulator_value": 0.0,
    "alpha": 0.99,
    "l1": 0.01,
    "clip_value": 0.5,
    "direction": -1.0,
    **NONE,
}
OPTIONS: dict[str, Any] = {"maximize": True, "clip_value": 0.5, "l1": 0.01, "max_grad_norm": 1.0}
OPTIONS |= {"mask": True, "bounds": True}
# Flags that give a rule all of its states.
FULL = {"sgd": {"momentum": 0.9, "nesterov": True}, "rmsprop": {"momentum": 0.9, "centered": True}}
FULL |= {name: {"amsgrad": True} for name in ("adam", "adamw")}


def exact_on_device(name: str) -> bool:
    """Whether a GPU makes the rows of this rule to the bit: exp, log and real powers differ by an ulp there, and the stand-in
    refuses them. Not those whose products of matrices need numbers that the host knows, and the device alone then.
    """
    made = program(name)
    if made.counted:
        return False
    rows = to_cuda.prepare_source(made, row_inputs(made)).removeprefix(to_cuda.headers())
    return not re.search(r"\b(exp|log|pow)\(", rows)


# Rules whose `prepare` the stand-in does not run, and representatives of those that it compiles and runs in test_bits_gpu.py.
PREPARED = [name for name in rules.NAMES if name in REPRESENTATIVES or not exact_on_device(name)]


class OnGpu:
    """One number of which gpuopt is told that it lies on a GPU, in host memory; counts how often the host asks for it."""

    shape = ()

    def __init__(self, value: float, dtype: str) -> None:
        self.memory, self.asked = np.array([value], dtype), 0

    def __float__(self) -> float:
        self.asked += 1
        return float(self.memory[0])

    def describe(self) -> View:
        return View(int(self.memory.ctypes.data), (), (), self.memory.dtype.name, "cuda:0")


def one_of_its_kind() -> arrays.Kind:
    """The array library of OnGpu, to be registered."""
    unused = [lambda *given: None] * 5
    return arrays.Kind("on gpu", lambda value: isinstance(value, OnGpu), OnGpu.describe, *unused)


def make(
    made: Program, sizes: list[int], seed: int = 0, step: int = 3
) -> tuple[Launch, StepCounter, list[dict[str, Any]]]:
    """A launch of this program over random tensors of these sizes, its counter, and the arrays by role."""
    rng = np.random.default_rng(seed)
    tensors: list[dict[str, Any]] = []
    for size in sizes:
        tensor = {}
        for role in made.roles:
            values = rng.standard_normal(size)
            if role.name not in ("p", "g", "m", "b", "@mask", "@lower"):
                values = np.abs(values) + 0.5  # second moments
            tensor[role.name] = stored(role.storage, values, rng)
        tensors.append(tensor)
    counter = StepCounter(0, step, lambda _step: HYPER)
    addresses = np.array([[a[r.name].ctypes.data for r in made.roles] for a in tensors], np.int64)
    plan = Plan(made, sizes, [0] * len(sizes), addresses.reshape(len(sizes), len(made.roles)))
    return Launch(plan, [counter], tensors), counter, tensors


def stored(storage: str, values: Any, rng: np.random.Generator) -> Any:
    """Values as an array of this storage; codes of numbers are theirs, any others random."""
    if storage == "bool":
        return values > 0
    if storage.startswith("code-"):
        return values.astype(numpy_dtype(storage.removeprefix("code-")))
    dtype = numpy_dtype(storage)
    return rng.integers(-100, 100, values.shape).astype(dtype) if dtype.kind in "iu" else values.astype(dtype)


def same_bits(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> bool:
    """Whether all arrays agree bit for bit, NaNs as NaNs whatever their payload."""
    for a, b in zip(left, right, strict=True):
        for name in a:
            x, y = a[name], b[name]
            if x.dtype != bool:
                x, y = (np.where(np.isnan(v.astype(np.float64)), 0, v).astype(v.dtype) for v in (x, y))
            if x.tobytes() != y.tobytes() or not np.array_equal(np.isnan(a[name]), np.isnan(b[name])):
                return False
    return True


def variants(
    name: str, dtype: str, options: bool, state_format: str = "float32", param_format: str = "native"
) -> Program:
    """The program of a rule with all of its states, plain or with every option."""
    given = FULL.get(name, {}) | (OPTIONS if options else {})
    return program(name, param_dtype=dtype, state_format=state_format, param_format=param_format, **given)


def simulated(names: Iterable[str]) -> list[str]:
    """The rules whose steps `make` can set up: those with no state of another shape than the parameter's, and none that looks at
    rows and columns.
    """
    found = {name: rules.get(name) for name in names}
    return [n for n, r in found.items() if all(s.walked for s in r.states) and not r.definition().along]
