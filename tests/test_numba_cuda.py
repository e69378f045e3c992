"""The Numba CUDA backend without a GPU: its PTX (16-byte accesses, no contraction), and whole steps in Numba's simulator."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from covering import REPRESENTATIVES, each, elsewhere
from gpuopt import rules
from gpuopt.backends import numba_cuda
from gpuopt.compiler.host import row_inputs
from gpuopt.compiler.lower import gradient_sums
from gpuopt.compiler.tree import Expr
from gpuopt.formats import philox
from gpuopt.formats.dtypes import PARAMETER_DTYPES
from launches import PREPARED, variants
from repository import ROOT
from simulate import RULES

GRADIENT = Expr("name", ("g",))
# Rules of few and many arrays, of a sum, and of one, two and three streams of random bits. How a pack is moved and where bits are
# drawn does not depend on the arithmetic between; that nothing is fused, the driver of tests/driver sees in every kernel of every
# rule (test_bits_gpu.py).
SHAPES = (*REPRESENTATIVES, "gd", "lion", "adan", "lamb", "adafactor")


def ptx(python: Any, arguments: tuple[Any, ...]) -> str:
    """The PTX that Numba compiles for sm_90, without a driver, of which it would ask for whom a function of the device is."""
    from numba import cuda

    hopper = SimpleNamespace(compute_capability=(9, 0))
    with mock.patch("numba.cuda.dispatcher.get_current_device", lambda: hopper):
        text: str = cuda.compile_ptx(python, arguments, cc=(9, 0))[0]
    return text


def walk_ptx(name: str, dtype: str, options: bool, state_format: str = "float32") -> str:
    from numba import types

    made = variants(name, dtype, options, state_format)
    row = types.UniTuple(getattr(types, made.compute), len(made.row))
    return ptx(
        numba_cuda.walk_text(made).function, (types.int64,) * numba_cuda.walk_signature(made).index(" ") + (row,)
    )


# Under the other Pythons one dtype of each rule: Numba reads the same text there.
WALKS = elsewhere(
    each(SHAPES, PARAMETER_DTYPES, single=True),
    lambda name, dtype: name not in REPRESENTATIVES or dtype == "float32",
)


@pytest.mark.parametrize(("name", "dtype"), WALKS)
def test_walk_moves_16_bytes_at_a_time_and_fuses_nothing(name: str, dtype: str) -> None:
    text = walk_ptx(name, dtype, options=False)
    made = variants(name, dtype, options=False)
    reads, writes = len(made.update.reads), len(made.update.writes)
    assert len(re.findall(r"ld\.global\.v4", text)) >= reads
    assert len(re.findall(r"st\.global\.v4", text)) >= writes
    assert not re.findall(r"\bfma\.", text)
    assert not re.findall(r"\.approx|\.ftz", text)
    if made.compute == "float32":
        assert not re.findall(r"(add|sub|mul|div|sqrt)\.(rn\.)?f64", text)


@pytest.mark.parametrize("name", ("adamw", "lion", "rmsprop"))
def test_options_keep_the_accesses(name: str) -> None:
    text = walk_ptx(name, "bfloat16", options=True)
    assert len(re.findall(r"ld\.global\.v4", text)) >= 3
    assert not re.findall(r"\bfma\.", text)


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "dtype"), each([n for n in SHAPES if rules.get(n).states], ["float32", "bfloat16"], single=True)
)
def test_random_bits_keep_the_accesses(name: str, dtype: str) -> None:
    """One call of the generator for four elements of a pack, for eight where half a word is enough for each, two more for the head
    and the tail. A call is ten rounds of two products, a few of which two streams share. A stream of nothing but the gradient,
    which is of the stored type, drops out.
    """
    text = walk_ptx(name, dtype, options=False, state_format="bfloat16")
    made = variants(name, dtype, False, "bfloat16")
    assert len(re.findall(r"st\.global\.v4", text)) >= len(made.update.writes)
    last = {s.name: s.expr for s in made.update.body}
    names = {k: made.signature.coded[k].name for k in made.draws}
    streams = {d.stream for k, d in made.draws.items() if dtype != "bfloat16" or last[names[k]] != GRADIENT}
    calls = len(streams) * (max(1, made.lanes // made.per_call) + 2)
    for factor in philox.MULTIPLIERS:
        assert 9 * calls <= len(re.findall(rf"\b{factor}\b|{factor - 2**32}\b", text)) <= 10 * calls
    assert not re.findall(r"\bfma\.", text) and "local" not in re.findall(r"\.(local)\.", text)


@pytest.mark.once
@pytest.mark.parametrize("name", PREPARED)
def test_prepare_compiles_without_contraction(name: str) -> None:
    from numba import types

    made = variants(name, "float32", options=True)
    whole = types.int64
    arguments = (whole, types.float64, types.float64, *(whole,) * 10)
    prepare = numba_cuda.prepare_text(made, row_inputs(made)).function
    inexact = {
        "exp": math.fabs,
        "log": math.fabs,
        "pow": math.copysign,
    }  # the library's own are made of contracted products
    prepare.__globals__.update(inexact)
    assert not re.findall(r"\bfma\.", ptx(prepare, arguments))


def test_sums_of_gradients_compile_without_contraction() -> None:
    from numba import types

    sums = numba_cuda.reduce_text(*gradient_sums("float32", "float32")).function
    text = ptx(sums, (types.int64,) * len(numba_cuda.REDUCE_SIGNATURE))
    assert "ld.global.v4" in text
    assert not re.findall(r"\bfma\.", text)


@pytest.mark.once
def test_whole_steps_in_the_simulator_agree_bit_for_bit() -> None:
    """The very text of the GPU kernels, run by Numba's simulator on memory that it reaches by address."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "simulate.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("agrees") == len(RULES) + 3


def test_a_numpy_that_numba_cuda_cannot_bear_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """numba-cuda 0.30 asks for numpy.row_stack, gone from NumPy 2.5, at the first kernel that it compiles."""
    import numpy as np
    from numba import cuda

    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(numba_cuda.nvrtc, "too_new", lambda what: None)
    monkeypatch.setattr(np, "row_stack", np.vstack, raising=False)
    assert numba_cuda.missing() is None
    monkeypatch.delattr(np, "row_stack")
    why = numba_cuda.missing()
    assert (
        why
        and f"Numba CUDA {numba_cuda.version('numba-cuda')} cannot" in why
        and np.__version__ in why
        and "'numpy<2.5'" in why
    )
    monkeypatch.setattr(numba_cuda, "version", lambda package: "0.31.0")
    assert numba_cuda.missing() is None
