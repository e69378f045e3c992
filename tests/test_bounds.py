"""`bounds` of every optimizer: what the fused step keeps, what NaN does, how they meet l1 and mask, and what is refused."""

from __future__ import annotations

import copy
import math
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gpuopt
from covering import REPRESENTATIVES
from gpuopt import rules
from gpuopt.formats.dtypes import PARAMETER_DTYPES, numpy_dtype
from gpuopt.optim.between import averages

BACKENDS = pytest.mark.parametrize("backend", ["numpy", "numba"])
# With Numba a rule of each kind: of all that it has NumPy's bits between bounds, test_bits.py says.
WITH_NUMBA = (*REPRESENTATIVES, "lamb", "prodigy", "adafactor", "muon", "soap")
BOUNDED = [name for name in rules.NAMES if not averages(rules.get(name))]


def start(dtype: str = "float32", seed: int = 0, shape: tuple[int, ...] = (13, 9)) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(numpy_dtype(dtype))


def gradient(p: Any, step: int) -> Any:
    """No NaN where p is bounded, but many steps that lead out."""
    return (p.astype(np.float64) + np.sin(3.0 * np.arange(p.size) + step).reshape(p.shape)).astype(p.dtype)


def trained(opt: Any, params: list[Any], steps: int = 6) -> None:
    for step in range(steps):
        opt.step([gradient(p, step) for p in params])


@pytest.mark.parametrize("name", BOUNDED)
def test_one_step_is_the_free_one_brought_between_the_bounds(name: str) -> None:
    """And every later one stays there; both backends have the same bits."""
    low, high = start(seed=1) / 4 - 0.5, start(seed=1) / 4 + 0.25
    found = []
    for backend in ("numpy", "numba") if name in WITH_NUMBA else ("numpy",):
        free, bounded = start(), start()
        gpuopt.create(name, [free], lr=0.3, backend=backend).step([gradient(start(), 0)])
        opt = gpuopt.create(name, [bounded], lr=0.3, backend=backend, bounds=[(low, high)])
        opt.step([gradient(start(), 0)])
        assert np.array_equal(bounded, np.clip(free, low, high))
        assert not np.array_equal(bounded, free), "else there is nothing to see"
        trained(opt, [bounded])
        assert (bounded >= low).all() and (bounded <= high).all()
        found.append(bounded.tobytes())
    assert found == found[:1] * len(found)


@BACKENDS
@pytest.mark.parametrize("dtype", PARAMETER_DTYPES)
def test_numbers_arrays_and_one_side(dtype: str, backend: str) -> None:
    """Numbers are as arrays of them, in any dtype and memory order; None leaves a side or a tensor free."""
    q = start(dtype)
    low, high = np.full(q.shape, -0.25), np.full(q.shape, 0)
    forms: list[Any] = [(-0.25, 0), (low, high), (low.astype(np.float32), np.asfortranarray(high.astype(np.int32)))]
    forms += [[np.float64(-0.25), high[::-1]], SimpleNamespace(lb=-0.25, ub=0.0)]
    results = []
    for bounds in forms:
        p, free, below = start(dtype), start(dtype, 1), start(dtype, 2)
        opt = gpuopt.Adam([p, free, below], lr=0.5, backend=backend, bounds=[bounds, None, (None, 0.5)])
        trained(opt, [p, free, below])
        results.append(p.tobytes())
        assert opt.launches == 3 and float(below.max()) == 0.5 and float(below.min()) < -0.5 and float(free.max()) > 1
        assert float(p.min()) == -0.25 and float(p.max()) == 0
    assert results == results[:1] * len(forms)


@BACKENDS
def test_nan_stays_and_infinities_are_brought_back(backend: str) -> None:
    p = np.array([1.0, 1.0, 1.0, np.nan, -0.0])
    g = np.array([np.nan, np.inf, -np.inf, 0.0, 0.0])
    gpuopt.GD([p], lr=1.0, backend=backend, bounds=[(-2, 3)]).step([g])
    assert np.array_equal(p, [np.nan, -2, 3, np.nan, 0], equal_nan=True)


@BACKENDS
def test_behind_l1_and_decay_and_before_the_mask(backend: str) -> None:
    """Soft threshold, then the bounds: the least of the step's model, l1 and bounds together. Pruned weights are 0."""
    p, mask = start("float64"), start(seed=3) > 0
    q = start("float64")
    options: dict[str, Any] = {"l1": 0.3, "weight_decay": 0.1, "weight_decay_mode": "proximal"}
    gpuopt.GD([p], lr=0.5, backend=backend, bounds=[(0.25, 0.75)], mask=[mask], **options).step([gradient(q, 0)])
    gpuopt.GD([q], lr=0.5, backend=backend, **options).step([gradient(q, 0)])
    assert np.array_equal(p, np.where(mask, np.clip(q, 0.25, 0.75), 0))


@BACKENDS
def test_groups_have_their_own_and_copies_keep_them(backend: str) -> None:
    """Bounds are copied: a caller who changes his array later changes nothing."""
    low = np.full(4, -0.5)
    a, b, c = np.zeros(4), np.zeros(3), np.zeros(2)
    groups = [{"params": {"a": a}}, {"params": [b]}]
    opt = gpuopt.GD(groups, lr=1.0, backend=backend, bounds=[{"a": (low, None)}, [None]])
    opt.add_param_group({"params": c}, bounds=(None, 0.25))
    low[:] = -9
    for made in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)), opt):
        arrays = [p for group in made.param_groups for p in group["params"]]
        made.step([{"a": np.ones(4)}, [np.ones(3)], -np.ones(2)])
        assert [p.tolist() for p in arrays] == [[-0.5] * 4, [-1.0] * 3, [0.25] * 2]


@BACKENDS
def test_a_bounded_quadratic_ends_where_it_must(backend: str) -> None:
    """The least of |p - target|^2 in a box is the target, clipped."""
    p, target = np.zeros(50), np.random.default_rng(0).normal(scale=2, size=50)
    opt = gpuopt.SGD(p, lr=0.1, momentum=0.9, backend=backend, bounds=(-1.0, 1.5))
    for _ in range(800):
        opt.step(2 * (p - target))
    np.testing.assert_allclose(p, np.clip(target, -1.0, 1.5), atol=1e-10)


class Odd:
    """No array."""

    def __repr__(self) -> str:
        return "<odd>"


REFUSED: dict[str, tuple[Any, str]] = {
    "one number": (1.0, r"bounds of params\[0\]: found 1.0: expected None or a pair \(lower, upper\)"),
    "three": ((0, 1, 2), "expected None or a pair"),
    "text": (("a", 1), r"lower bound of params\[0\]: found 'a': expected a number, an array or None"),
    "list": ((None, [1.0, 2.0, 3.0]), "upper bound .*found .1.0, 2.0, 3.0.: expected a number"),
    "truth": ((True, None), "found True: expected a number"),
    "object": ((Odd(), None), "found <odd>"),
    "complex number": ((1j, None), "found 1j: expected a number"),
    "complex array": ((np.ones(3, complex), None), "dtype complex128: expected real numbers"),
    "booleans": ((np.ones(3, bool), None), "dtype bool: expected real numbers"),
    "shape": ((np.ones(4), None), r"shape \(4,\) on cpu: expected a number, or \(3,\) on cpu"),
    "nan": ((math.nan, None), "lower bound .* nan in float64: expected numbers less than infinity"),
    "nan in an array": (
        (None, np.array([1, math.nan, 2])),
        "upper bound .* nan .*expected numbers more than -infinity",
    ),
    "infinite below": ((math.inf, None), "inf in float64: expected numbers less than infinity"),
    "crossed": ((1, 0), r"bounds of params\[0\]: lower 1.0, upper 0.0: expected lower <= upper everywhere"),
    "crossed in one": ((np.array([0, 0, 2.5]), 1), "lower 2.5, upper 1.0"),
    "masked": ((np.ma.array([1.0, 2, 3], mask=[0, 1, 0]), None), "masked array"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bounds_that_cannot_be_used(what: str) -> None:
    bounds, words = REFUSED[what]
    with pytest.raises(gpuopt.GpuoptError, match=words):
        gpuopt.SGD([np.ones(3), np.ones(3)], bounds=[bounds, None], backend="numpy")


def test_bounds_beyond_the_dtype_are_refused() -> None:
    with pytest.raises(gpuopt.InputError, match="inf in float16"):
        gpuopt.SGD([np.ones(3, np.float16)], bounds=[(1e6, None)], backend="numpy")


@pytest.mark.parametrize("bounds", [[(0, 1)], (0, 1), {"a": (0, 1)}], ids=str)
def test_bounds_of_another_structure(bounds: Any) -> None:
    with pytest.raises(gpuopt.InputError, match=r"bounds.*expected"):
        gpuopt.SGD([np.ones(3), np.ones(3)], bounds=bounds, backend="numpy")


def test_complex_numbers_have_no_order() -> None:
    with pytest.raises(gpuopt.InputError, match="bounds of params: it is complex, and complex numbers have no order"):
        gpuopt.Adam(np.ones(3, complex), bounds=(0, 1))
    gpuopt.Adam(np.ones(3, complex), bounds=(None, None)).step(np.ones(3, complex))


@pytest.mark.parametrize("name", sorted(set(rules.NAMES) - set(BOUNDED)))
def test_schedule_free_optimizers_refuse_them(name: str) -> None:
    """The point to evaluate is an extrapolation of the one that is trained: it would leave the bounds."""
    with pytest.raises(gpuopt.InputError, match="evaluates an average"):
        gpuopt.create(name, np.ones(3), bounds=(0, 1))
    gpuopt.create(name, [np.ones(3)], bounds=[None]).step([np.ones(3)])
