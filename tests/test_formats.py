"""Formats of parameters: every code decodes and comes back, nothing hides, rounding is right on average, and training is float32's.

That all backends and launch shapes give the same bits is in test_bits.py.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gpuopt
from gpuopt.errors import InputError, RuleSyntaxError
from gpuopt.formats import OF_PARAMETERS, formats, philox
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.rules.primitives import bits, from_bits
from samples import HOST_BACKENDS

pytestmark = pytest.mark.once

Array = NDArray[Any]
HALVES = {"float16": True, "bfloat16": False}
EVERY = np.arange(1 << 16, dtype=np.uint32)
FINITE = {"float16": 0x7C00, "bfloat16": 0x7F80}  # codes of magnitude below it


def visible(codes: Array, dtype: str) -> Array:
    """What NumPy (or ml_dtypes) says that these 16 bits are."""
    with np.errstate(invalid="ignore"):
        return codes.astype(np.uint16).view(numpy_dtype(dtype)).astype(np.float32)


def words(count: int, seed: int = 0) -> NDArray[np.uint32]:
    return philox.words(seed, 0, 1, 0, 0, count)


def kept(x: Array, name: str, dtype: str, seed: int = 0) -> tuple[Array, ...]:
    """The planes of values, as they are stored."""
    made = formats()[name]
    found = made.encoded(np.asarray(x, np.float32), HALVES[dtype], words(np.size(x), seed) if made.random else None)
    return tuple(stored(plane.dtype, codes, dtype) for plane, codes in zip(made.planes, found, strict=True))


def stored(plane: str, codes: Array, dtype: str) -> Array:
    """Codes with their low bits alone, numbers rounded as their dtype is."""
    widths = {"parameter": 0xFFFF, "int8": 0xFF, "int16": 0xFFFF}
    if plane in widths:
        return codes & np.uint32(widths[plane])
    with np.errstate(over="ignore", invalid="ignore"):
        return codes.astype(numpy_dtype(dtype if plane == "same" else plane)).astype(np.float32)


def value(planes: tuple[Array, ...], name: str, dtype: str) -> Array:
    (found,) = formats()[name].decoded(list(planes), HALVES[dtype])
    return found


def same(a: Array, b: Array) -> bool:
    """Bit for bit, NaN as NaN."""
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    return bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())


ALL = [(name, dtype) for name in OF_PARAMETERS for dtype in HALVES]


@pytest.mark.parametrize(("name", "dtype"), ALL)
def test_every_number_of_16_bits_is_kept_as_it_is(name: str, dtype: str) -> None:
    """Subnormals, infinities and NaN too; what shows is the number itself, whatever the random bits."""
    x = visible(EVERY, dtype)
    for seed in range(3):
        planes = kept(x, name, dtype, seed)
        assert same(visible(planes[0], dtype), x) and same(value(planes, name, dtype), x)
        assert all((plane[np.isfinite(x)] == 0).all() for plane in planes[1:]) or name == "master32"


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["split8", "split16"])
def test_every_code_comes_back(name: str, dtype: str) -> None:
    """encode(decode(c)) = c for every number of 16 bits with every correction of eight, and some of 16 (13 for float16)."""
    width, step = (256, 1) if name == "split8" else (1 << 16, {"bfloat16": 251, "float16": 31 * 8}[dtype])
    for low in range(0, width, step):
        lows = np.full(EVERY.size, low, np.uint32)
        x = value((EVERY, lows), name, dtype)
        again = kept(x, name, dtype, low)
        back = value(again, name, dtype)
        finer = np.abs(x) < 2.0**-14 if dtype == "float16" and name == "split16" else np.zeros(x.size, bool)
        assert same(back[~finer], x[~finer])
        np.testing.assert_allclose(back[finer], x[finer], rtol=0, atol=2.0**-37)
        inner = (FINITE[dtype] > EVERY & 0x7FFF) & (EVERY & 0x7FFF > 0) & ~finer
        down = (lows ^ (width >> 1)) >= width >> 1  # zero or above: no number of 16 bits is nearer
        assert (again[0][inner & down] == EVERY[inner & down]).all() and (again[1][inner & down] == low).all()


def samples(rng: np.random.Generator, count: int = 100_000) -> Array:
    """Numbers of all sizes that a float16 has, and any bits at all."""
    x = rng.standard_normal(count) * 2.0 ** rng.integers(-30, 15, count)
    return np.concatenate([x.astype(np.float32), from_bits(rng.integers(0, 1 << 32, count, np.uint32))])


@pytest.mark.parametrize("dtype", HALVES)
def test_split16_is_the_float32_parameter(dtype: str, rng: np.random.Generator) -> None:
    """Bit for bit; what shows is the nearest number."""
    x = samples(rng)
    planes = kept(x, "split16", dtype)
    found, shown = value(planes, "split16", dtype), visible(planes[0], dtype)
    full = (np.abs(x) >= 2.0**-14) & (np.abs(x) < 65520) if dtype == "float16" else np.isfinite(x)
    assert same(found[full], x[full]) and np.isnan(found[np.isnan(x)]).all()
    with np.errstate(over="ignore", invalid="ignore"):
        nearest = x.astype(numpy_dtype(dtype)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        apart = np.abs(shown.astype(np.float64) - x) == np.abs(nearest.astype(np.float64) - x)  # ties: either
    assert (apart | (shown == nearest) | np.isnan(x) | ~np.isfinite(nearest)).all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", OF_PARAMETERS)
def test_no_nan_and_no_infinity_hides(name: str, dtype: str, rng: np.random.Generator) -> None:
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf], np.float32)
    x = np.concatenate([samples(rng), odd])
    planes = kept(x, name, dtype)
    shown, found = visible(planes[0], dtype), value(planes, name, dtype)
    assert np.isnan(shown[np.isnan(x)]).all() and np.isnan(found[np.isnan(x)]).all()
    assert (shown[np.isinf(x)] == x[np.isinf(x)]).all() and (found[np.isinf(x)] == x[np.isinf(x)]).all()
    assert not np.isnan(shown[~np.isnan(x)]).any() and not np.isnan(found[~np.isnan(x)]).any()


STEPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # half of a rounding step of a number from 1 to 2


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("name", "unit"), [("stochastic", 2.0), ("split8", 2.0**-7)])
def test_rounding_is_to_a_neighbour_and_right_on_average(name: str, unit: float, dtype: str) -> None:
    """unit: a step of the format, in halves of a step of 16 bits."""
    rng = np.random.default_rng(1)
    x = rng.uniform(1, 2, 400_000).astype(np.float32)
    step = unit * STEPS[dtype]
    planes = kept(x, name, dtype, 5)
    found = value(planes, name, dtype).astype(np.float64)
    assert (np.abs(found - x) < step).all()
    share = (x / step) % 1
    deviation = ((found - x) / step).sum() / np.sqrt((share * (1 - share)).sum())
    assert abs(deviation) < 4
    if name == "split8":
        assert (np.abs(visible(planes[0], dtype) - x) <= STEPS[dtype] * (1 + 2.0**-7)).all(), "the nearest shows"


@pytest.mark.parametrize("dtype", HALVES)
def test_errors_of_split8_are_within_their_bound(dtype: str, rng: np.random.Generator) -> None:
    """A 128th of half of a rounding step: 2^-16 (float16: 2^-19) of the number, in steps of 2^-32 where float16 has no more."""
    x = samples(rng)
    x = x[np.abs(x) < 6e4] if dtype == "float16" else x[np.abs(x) < 1e38]
    found = value(kept(x, "split8", dtype), "split8", dtype)
    least = 2.0**-32 if dtype == "float16" else 2.0**-141
    assert (np.abs(found.astype(np.float64) - x) <= np.maximum(np.abs(x) * STEPS[dtype] * 2.0**-7, least)).all()


# ------------------------------------------------------------------------------------------------ optimizers

DRIFTS = [1e-4, 3e-5, 1.5e-5, 1e-5]


def drift(kept_as: str, dtype: str, step: float, backend: str, count: int = 512) -> Array:
    """Where parameters of 1 are after 2,000 steps down."""
    p = np.ones(count).astype(numpy_dtype(dtype))
    g = np.ones(count, numpy_dtype(dtype))
    opt = gpuopt.GD([p], lr=step, param_format=kept_as, backend=backend)
    for _ in range(2000):
        opt.step([g])
    return gpuopt.full_precision(opt)[0].astype(np.float64)


@pytest.mark.parametrize("step", DRIFTS)
def test_small_steps_add_up(step: float) -> None:
    """Rounded stochastically within three standard errors of where float32 goes, with a correction of eight bits ten times as
    near; to nearest they do not move at all.
    """
    ends = {name: drift(name, "bfloat16", step, "numba") for name in OF_PARAMETERS}
    p = np.ones(1, np.float32)
    wide = gpuopt.GD([p], lr=step)
    for _ in range(2000):
        wide.step([np.ones(1, np.float32)])
    assert abs(p[0] - (1 - 2000 * step)) < 2000 * 2.0**-25
    for name in ("stochastic", "split8"):
        assert abs(ends[name].mean() - p[0]) < 3 * ends[name].std() / np.sqrt(ends[name].size), name
    assert (ends["split16"] == p[0]).all() and (ends["master32"] == p[0]).all()
    assert ends["stochastic"].std() > 10 * ends["split8"].std() > 0
    assert abs(ends["kahan"].mean() - p[0]) < 0.01
    assert (drift("native", "bfloat16", step, "numba", 8) == 1).all()


@pytest.mark.parametrize("backend", HOST_BACKENDS)
@pytest.mark.parametrize("dtype", HALVES)
def test_adamw_with_a_format_follows_float32(dtype: str, backend: str, rng: np.random.Generator) -> None:
    start = rng.standard_normal(4096).astype(numpy_dtype(dtype))
    grads = [rng.standard_normal(4096).astype(numpy_dtype(dtype)) for _ in range(30)]
    exact = start.astype(np.float32)
    reference = gpuopt.AdamW([exact], lr=1e-3, backend=backend)
    for g in grads:
        reference.step([g])
    errors = {}
    for name in ("native", *OF_PARAMETERS):
        p = start.copy()
        opt = gpuopt.AdamW([p], lr=1e-3, backend=backend, param_format=name)
        for g in grads:
            opt.step([g])
        (full,) = gpuopt.full_precision(opt)
        assert full.dtype == np.float32 and full.shape == p.shape
        errors[name] = float(np.abs(full - exact).mean())
    assert errors["split16"] == errors["master32"] == 0 or dtype == "float16"
    assert errors["split16"] < 1e-9 and errors["master32"] == 0
    assert errors["split8"] < errors["kahan"] * 4 or dtype == "float16", "of 19 bits, and 22"
    assert errors["split8"] * 10 < errors["stochastic"] and errors["kahan"] * 10 < errors["native"]


def test_parameters_of_32_bits_are_left_alone() -> None:
    """In one optimizer with parameters of 16, as norms in a model are."""
    params = [np.ones(100, np.float32), np.ones(100, np.float16)]
    opt = gpuopt.SGD(params, lr=0.1, param_format="split8")
    opt.step([np.ones(100, np.float32), np.ones(100, np.float16)])
    states = opt.state_dict()["state"]
    assert "param_low" not in states[0] and states[1]["param_low"].dtype == np.int8
    assert (params[0] == np.float32(0.9)).all()


def test_where_no_parameter_has_16_bits_a_format_is_a_mistake() -> None:
    with pytest.raises(InputError, match=r"param_format = 'split8'.*16 bits.*float32.*native"):
        gpuopt.SGD([np.ones(3, np.float32)], lr=0.1, param_format="split8")
    with pytest.raises(InputError, match=r"param_format = 'split8'.*16 bits"):
        gpuopt.kernel_source("adamw", param_format="split8")
    for backend in ("numba", "cuda", "numba-cuda"):
        source = gpuopt.kernel_source("adamw", backend=backend, param_dtype="bfloat16", param_format="split8")
        assert "code_p" in source and "philox" in source


@pytest.mark.parametrize("name", OF_PARAMETERS)
def test_a_resumed_run_goes_on_with_the_same_bits(name: str) -> None:
    def steps(opt: Any, which: range) -> None:
        for k in which:
            opt.step([np.random.default_rng(k).standard_normal(500).astype(np.float16)])

    options = {"lr": 0.01, "param_format": name, "seed": 3}
    whole, first = np.ones(500, np.float16), np.ones(500, np.float16)
    one, two = gpuopt.Adam([whole], **options), gpuopt.Adam([first], **options)
    steps(one, range(6))
    steps(two, range(2))
    again = gpuopt.Adam([first], **options)
    again.load_state_dict(two.state_dict())
    steps(again, range(2, 6))
    assert whole.tobytes() == first.tobytes()
    ours, theirs = again.state_dict()["state"][0], one.state_dict()["state"][0]
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_states_go_into_another_format() -> None:
    """What shows is the parameter; planes of another format are left behind, and begin anew."""
    p = np.linspace(1, 2, 300).astype(np.float16)
    saved: dict[str, Any] = {}
    for name in ("split8", "native", "master32", "kahan"):
        opt = gpuopt.Adam([p], lr=1e-3, param_format=name)
        if saved:
            opt.load_state_dict(saved)
        opt.step([np.ones(300, np.float16)])
        saved = opt.state_dict()
        assert saved["state"][0]["step"] == 1 + ("split8", "native", "master32", "kahan").index(name)
    assert abs(float(p.astype(np.float32).mean()) - (1.5 - 4e-3)) < 3e-4


def test_a_format_of_ones_own_has_to_go_with_its_planes() -> None:
    with pytest.raises(RuleSyntaxError, match=r"expected one of parameter, same, int8"):
        gpuopt.format(planes={"h": "float8"})

    for planes in ({"low": "int8", "h": "parameter"}, {"h": "parameter", "k": "parameter"}):
        with pytest.raises(RuleSyntaxError, match="expected the first one, and no other, to be 'parameter'"):
            gpuopt.format(planes=planes)

    @gpuopt.format(planes={"h": "parameter"})
    def zero(h: Any) -> Any:
        x = from_bits(h << 16)
        return x

    with pytest.raises(RuleSyntaxError, match=r"format zero has no encode: expected one, under `@zero\.encode`"):
        gpuopt.SGD([np.ones(3, np.float16)], lr=0.1, param_format=zero)

    with pytest.raises(RuleSyntaxError, match="takes `h, low`"):

        @gpuopt.format(planes={"h": "parameter", "low": "int8"})
        def one(h: Any) -> Any:
            x = from_bits(h << 16)
            return x

    with pytest.raises(RuleSyntaxError, match=r"has to be a number: take from_bits"):

        @gpuopt.format(planes={"h": "parameter"})
        def two(h: Any) -> Any:
            x = h << 16
            return x

    with pytest.raises(RuleSyntaxError, match=r"a number stands where a whole number is expected"):

        @gpuopt.format(planes={"h": "parameter"})
        def three(h: Any) -> Any:
            x = from_bits(h << 16)
            y = from_bits(x & 1)
            return y


@gpuopt.format(planes={"h": "parameter", "low": "uint8"})
def truncated(h: Any, low: Any) -> Any:
    """The upper 24 bits of a float32, of which bfloat16 shows 16, all cut off."""
    x = from_bits((h << 16) | (low << 8))
    return x


@truncated.encode
def _(x: Any) -> Any:
    n = bits(x)
    h = n >> 16
    low = n >> 8
    return h, low


@pytest.mark.parametrize("rule", ["adamw", "lamb"])
def test_a_format_of_ones_own_is_as_good_as_ours(rule: str, rng: np.random.Generator) -> None:
    """By both backends of a CPU, in a pickle and a checkpoint."""
    bfloat16 = numpy_dtype("bfloat16")
    start, g = rng.standard_normal(1000).astype(bfloat16), rng.standard_normal(1000).astype(bfloat16)
    ends = []
    for backend in HOST_BACKENDS:
        p = start.copy()
        opt = gpuopt.create(rule, [p], lr=1e-3, backend=backend, param_format=truncated)
        for _ in range(3):
            opt.step([g])
        again = pickle.loads(pickle.dumps(opt))
        again.step([g])
        opt.step([g])
        ends.append((p, opt.state_dict()["state"][0]["param_low"], again.state_dict()["state"][0]["param_low"]))
    assert all(np.array_equal(a, b) for a, b in zip(*ends, strict=True)) and np.array_equal(*ends[0][1:])
    exact = start.astype(np.float32)
    wide = gpuopt.create(rule, [exact], lr=1e-3)
    for _ in range(4):
        wide.step([g.astype(np.float32)])
    found = gpuopt.full_precision(opt)[0]
    assert 0 < np.abs(found - exact).max() < 5 * 2.0**-14
