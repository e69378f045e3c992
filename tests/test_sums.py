"""Rules that look at a whole tensor, or at all: what a sum is, bit for bit, whatever the order, threads and launches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import gpuopt
import gpuopt.torch
from gpuopt import State, global_sum, maximum, numel, rule, sqrt, tensor_max, tensor_sum, where
from gpuopt.launch import table as t
from gpuopt.launch.sums import total
from gpuopt.rule_table import traffic
from gpuopt.source import program
from samples import HOST_BACKENDS, Array, bits, difference, gradients, parameters

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
DTYPES = ("float64", "float32", "float16", "bfloat16")
SHAPES = ((), (1,), (7,), (0, 3), (3, 4), (130, 127), (5, 400), (400, 5))
RULES = ("adammini", "lamb", "lars", "mars", "novograd", "prodigy", "stableadamw")


@rule(
    state={
        "s": State("s", "s", shape="scalar"),
        "c": State("c", "c", shape="scalar"),
        "h": State("h", "h", init=-math.inf, shape="scalar"),
        "a": State("a", "a", shape="global"),
        "n": State("n", "n", init="n0", shape="global"),
    }
)
def measured(p, g, s, c, h, a, n, *, lr, n0=3.0):  # type: ignore[no-untyped-def]
    """Sums, and nothing else."""
    s = tensor_sum(g)
    c = tensor_sum(g * g) / numel(g)
    h = tensor_max(g)
    a = global_sum(g)
    n = n + 1
    p = p - lr * g
    return p, s, c, h, a, n


def run(rule_: Any, params: Sequence[Array], grads: Sequence[Any], backend: str, steps: int = 1, **more: Any) -> Any:
    """States of each tensor after some steps."""
    optimizer = gpuopt.optimizer(rule_, list(params), backend=backend, **({"lr": 0.0} | more))
    for _ in range(steps):
        optimizer.step(list(grads))
    return optimizer.state_dict()["state"]


def numpy_dtype(name: str) -> Any:
    import ml_dtypes

    return ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)


# ---------------------------------------------------------------------------------------------------- what a sum is


@BACKENDS
@pytest.mark.parametrize("count", [1, 255, t.CHUNK - 1, t.CHUNK, t.CHUNK + 1, 5 * t.CHUNK + 3, 300 * t.CHUNK + 77])
def test_a_sum_is_close_to_the_exact_one(count: int, backend: str) -> None:
    """Up to more chunks than there are lanes that join them. float32: a lane adds CHUNK / THREADS numbers at most."""
    rng = np.random.default_rng(count)
    for dtype in ("float64", "float32"):
        g = rng.standard_normal(count).astype(dtype)
        found = run(measured, [np.zeros(count, dtype)], [g], backend)[0]
        exact = math.fsum(g.astype(np.float64))
        scale = math.fsum(np.abs(g.astype(np.float64)))
        assert abs(float(found["s"]) - exact) <= 32 * np.finfo(dtype).eps * scale
        assert abs(float(found["a"]) - exact) <= 32 * np.finfo(dtype).eps * scale
        assert float(found["h"]) == g.max()


def test_numpy_and_numba_sum_alike() -> None:
    """Bit for bit, for every dtype, and sums of every rule that has some."""
    for name in DTYPES:
        grads = [np.asarray(g, numpy_dtype(name)) for g in gradients(1, SHAPES)]
        found = [run(measured, parameters(SHAPES, numpy_dtype(name)), grads, b) for b in HOST_BACKENDS]
        assert bits(found[0]) == bits(found[1]), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RULES)
def test_every_rule_of_sums_is_the_same_on_numba(name: str, dtype: str) -> None:
    made = []
    for backend in HOST_BACKENDS:
        params = parameters(SHAPES, numpy_dtype(dtype))
        groups = [{"params": params[:3]}, {"params": params[3:], "weight_decay": 0.1}]
        optimizer = gpuopt.create(name, groups, lr=0.1, backend=backend)
        for step in range(5):
            grads = gradients(step, SHAPES, numpy_dtype(dtype))
            optimizer.step([grads[:3], grads[3:]])
        made.append(bits([params, optimizer.state_dict()["state"]]))
    assert made[0] == made[1]


@BACKENDS
def test_sums_over_all_do_not_depend_on_the_order_of_tensors_or_launches(backend: str) -> None:
    """Each dtype of a gradient is a launch of its own. The parts of the sum differ by 1e16."""
    grads = [*gradients(0, SHAPES, np.float32), *gradients(1, SHAPES, np.float16), *gradients(2, SHAPES, np.float32)]
    grads += [np.full(3, 1e8, np.float32), np.full(3, -1e8, np.float32), np.full(1, 1e-8, np.float32)]
    rng, found = np.random.default_rng(3), set()
    for _ in range(6):
        order = rng.permutation(len(grads))
        chosen = [grads[k] for k in order]
        params = [np.zeros(g.shape, np.float32) for g in chosen]
        found.add(float(run(measured, params, chosen, backend)[0]["a"]))
    assert len(found) == 1
    exact = math.fsum(float(x) for g in grads for x in np.asarray(g, np.float64).ravel())
    assert found.pop() == pytest.approx(exact, rel=1e-4)


def test_the_joint_sum_is_exact_where_float64_would_lose() -> None:
    values = np.array([1e16, 1.0, -1e16, 1.0, 3e-3])
    assert total(values) == total(values[::-1].copy()) == pytest.approx(math.fsum(values), rel=1e-14)
    assert values.sum() != pytest.approx(math.fsum(values), rel=0.1)
    assert math.isnan(total(np.array([1.0, math.nan]))) and total(np.array([1.0, math.inf])) == math.inf


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    import numba

    shapes = ((700, 700), (3,), (20_000,), *((5,),) * 1200)
    usual, found = numba.get_num_threads(), []
    try:
        for threads in (1, usual):
            numba.set_num_threads(threads)
            optimizer = gpuopt.LAMB(parameters(shapes, np.float32), backend="numba")
            optimizer.step(gradients(0, shapes, np.float32))
            found.append(bits([optimizer.param_groups[0]["params"], optimizer.state_dict()["state"]]))
    finally:
        numba.set_num_threads(usual)
    assert usual > 1 and found[0] == found[1]


@BACKENDS
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_largest_element_beside_nan_and_infinity(dtype: str, backend: str) -> None:
    count = 2 * t.CHUNK + 5
    for place in (0, 1, 300, t.CHUNK, count - 1):
        for value in (math.nan, math.inf, -math.inf):
            g = np.full(count, -5.0, dtype)
            g[place] = value
            found = run(measured, [np.zeros(count, dtype)], [g], backend)[0]["h"]
            assert math.isnan(found) if math.isnan(value) else found == max(-5.0, value)


@BACKENDS
def test_empty_tensors_and_none(backend: str) -> None:
    """Nothing is done for an empty tensor but counting; a tensor without a gradient is not part of any sum."""
    params = parameters(((3,), (0, 2), (4,)))
    found = run(measured, params, [np.ones(3), np.ones((0, 2)), None], backend)
    assert found[0]["a"] == found[1]["a"] == 3.0 and found[1]["s"] == 0.0 and 2 not in found
    empty = run(measured, parameters(((0,),)), [np.ones(0)], backend)
    assert empty[0]["step"] == 1 and empty[0]["n"] == 3.0


@BACKENDS
def test_complex_parameters_are_pairs_of_real_numbers(backend: str) -> None:
    g = np.array([3 + 4j, -1j])
    found = run(measured, [np.zeros(2, complex)], [g], backend)[0]
    assert (found["s"], found["c"], found["h"]) == (6.0, 26 / 4, 4.0)


# ---------------------------------------------------------------------------------------------------- sums of sums


@rule(state={"z": State("z", "z", shape="scalar")})
def centred(p, g, z, *, lr):  # type: ignore[no-untyped-def]
    """Gradients divided by their standard deviation, and what of them is above the largest joint deviation."""
    mean = tensor_sum(g) / numel(g)
    c = g - mean
    spread = sqrt(tensor_sum(c * c) / numel(g))
    limit = global_sum(spread * c * c)
    z = tensor_max(abs(c) / (1 + limit))
    p = p - lr * where(z > 0, c / (spread + z), 0)
    return p, z


def centred_in_numpy(params: list[Array], grads: list[Array], lr: float) -> list[float]:
    cs = [g - g.sum() / g.size for g in grads]
    spreads = [math.sqrt((c * c).sum() / c.size) for c in cs]
    limit = sum((s * c * c).sum() for s, c in zip(spreads, cs, strict=True))
    zs = [float((abs(c) / (1 + limit)).max()) for c in cs]
    for p, c, s, z in zip(params, cs, spreads, zs, strict=True):
        p -= lr * (c / (s + z) if z > 0 else 0)
    return zs


@BACKENDS
def test_sums_of_sums(backend: str) -> None:
    """Four cuts, one of them over all tensors, against the same in NumPy."""
    shapes = ((9,), (130, 127), (2, 3, 5))
    params, expected = parameters(shapes), parameters(shapes)
    optimizer = gpuopt.optimizer(centred, params, lr=0.1, backend=backend)
    for step in range(10):
        optimizer.step(gradients(step, shapes))
        zs = centred_in_numpy(expected, gradients(step, shapes), 0.1)
    assert max(difference(p, q) for p, q in zip(params, expected, strict=True)) < 1e-13
    assert [float(s["z"]) for s in optimizer.state_dict()["state"].values()] == pytest.approx(zs, rel=1e-12)
    assert len(program(centred).passes) == 5


def test_a_sum_is_made_where_its_arrays_are_read_anyway() -> None:
    """LAMB's two norms share a pass, the clip reads the gradients alone, and the same sum twice is one."""
    made = program("lamb")
    names = [[made.roles[k].name for k in each.reads] for each in made.passes]
    assert names[0] == ["g"] and [each.sums for each in made.cuts] == [("global_sum",), ("tensor_sum",) * 2]
    assert traffic(gpuopt.LAMB.made_by[1]) == "44"

    @rule
    def twice(p, g, *, lr):  # type: ignore[no-untyped-def]
        p = p - lr * g * (tensor_sum(g * g) + 1 / tensor_sum(g * g))
        return p

    assert program(twice).totals == 1


@rule(state={"d": State("d", "d", init=1.0, shape="global")})
def early_and_late(p, g, d, *, lr):  # type: ignore[no-untyped-def]
    """A sum that a later sum needs cannot wait for it, whatever that reads."""
    size = tensor_sum(p * p)
    other = tensor_sum(g * p / size)
    d = maximum(d, global_sum(g * p * other))
    p = p - lr * g * (size + other) / d
    return p, d


@BACKENDS
def test_a_sum_that_an_earlier_one_needs_is_made_before_it(backend: str) -> None:
    (p,), (g,) = parameters(((50,),)), gradients(0, ((50,),))
    size = (p * p).sum()
    other = (g * p / size).sum()
    d = max(1.0, float((g * p * other).sum()))
    expected = p - 0.1 * g * (size + other) / d
    optimizer = gpuopt.optimizer(early_and_late, p, lr=0.1, backend=backend)
    optimizer.step(g)
    assert difference(p, expected) < 1e-14
    cuts = program(early_and_late).cuts
    assert [each.sums for each in cuts] == [("tensor_sum",), ("tensor_sum",), ("global_sum",)], "each of them once"
