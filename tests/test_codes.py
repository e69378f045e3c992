"""States in 8 and 4 bits: every code of every format, and what is lost. Bits: test_bits.py; optimizers: test_codes_kept.py."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from gpuopt.formats import OF_STATES, formats, philox
from gpuopt.formats.language import Format

pytestmark = pytest.mark.once

Array = NDArray[Any]
POSITIVE = ("squares8", "sizes8", "squares4")
RANDOM = [name for name in OF_STATES if formats()[name].random]


def encoded(of: Format, x: Array, seed: int = 0) -> list[Array]:
    """The planes of values, as they are stored; each row of x is one of a matrix."""
    random = philox.words(seed, 0, 1, 0, 0, x.size) if of.random else None
    made = of.encoded(x.astype(np.float32).reshape(-1), False, random, x.shape)  # type: ignore[arg-type]
    kinds = [plane.stored if plane.whole else "float32" for plane in of.planes]
    return [np.asarray(found).astype(kind) for found, kind in zip(made, kinds, strict=True)]


def decoded(of: Format, planes: list[Array], shape: tuple[int, int]) -> Array:
    return of.decoded(planes, False, shape)[0].reshape(shape)


def back(name: str, x: Array, seed: int = 0) -> Array:
    """Values as they come out again."""
    of = formats()[name]
    return decoded(of, encoded(of, x, seed), x.shape)  # type: ignore[arg-type]


def samples(name: str, rows: int = 6, width: int = 256, seed: int = 0) -> Array:
    """Rows of values of very different sizes, as the format is for."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, width)) * 10.0 ** rng.uniform(-12, 12, (rows, 1))
    return (x * x if name in POSITIVE else x).astype(np.float32)


# ---------------------------------------------------------------------------------------------------- every code


def test_every_code_of_signed8_comes_back_at_every_scale() -> None:
    of, codes = formats()["signed8"], np.arange(256, dtype=np.uint8)
    tops = np.arange(8, 255, dtype=np.uint8)
    planes = [np.tile(codes, len(tops)), tops]
    values = decoded(of, planes, (len(tops), 256))
    found = encoded(of, values)
    expected = np.where(planes[0] == 128, 0, planes[0])  # of -0
    assert np.array_equal(found[0], expected) and np.array_equal(found[1], tops)
    assert np.isfinite(values).all() and (np.diff(values[:, :128], axis=1) > 0).all()


def test_every_code_of_float8_is_that_of_hardware_and_comes_back() -> None:
    of, codes = formats()["float8"], np.delete(np.arange(256, dtype=np.uint8), [127, 255])
    codes = np.concatenate([codes, codes[:2]])
    top = 127 + 8  # a unit of 1
    values = decoded(of, [codes, np.array([top], np.uint8)], (1, 256))
    assert np.array_equal(values[0], codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32))
    for seed in range(20):
        found = encoded(of, values, seed)
        assert np.array_equal(np.where(codes == 128, 0, codes), found[0]) and found[1][0] == top


def test_every_code_of_signed4_comes_back_at_every_scale() -> None:
    of, codes = formats()["signed4"], np.resize(np.delete(np.arange(16), 8), 32)  # 8 would be -0
    packed = (codes[::2] | codes[1::2] << 4).astype(np.uint8)
    for seed, (begin, step) in enumerate([(0x0100, 1), *((0x0100 + k, 61) for k in range(20))]):
        tops = np.arange(begin, 0x7C83, step, dtype=np.uint16)
        planes = [np.tile(packed, len(tops)), tops]
        values = decoded(of, planes, (len(tops), 32))
        found = encoded(of, values, seed)
        assert np.array_equal(found[0], planes[0]) and np.array_equal(found[1], tops)
        steps = np.unique(values[100]) / values[100].max() * 63
        levels = (np.arange(8) + 1) ** 2 - 1
        assert np.array_equal(steps, [*-levels[:0:-1], *levels])


@pytest.mark.parametrize("name", ["squares8", "sizes8"])
def test_every_code_of_floats_of_eight_bits_comes_back_at_every_scale(name: str) -> None:
    of = formats()[name]
    cases = [(low, shift) for low in range(1, 223) for shift in range(16, 21)]
    low, shift = (np.array(part, np.uint8) for part in zip(*cases, strict=True))
    most = np.where(shift == 20, 251, 254)  # 31.5 octaves at most; room for one more
    codes = np.minimum(np.arange(256), most[:, None]).astype(np.uint8).reshape(-1)
    values = decoded(of, [codes, low, shift], (len(cases), 256))
    for seed in range(3):
        found = encoded(of, values, seed)
        assert [np.array_equal(a, b) for a, b in zip(found, (codes, low, shift), strict=True)] == [True] * 3
    ratios = values[:, 1:250] / values[:, :249]
    assert (ratios > 1).all() and (ratios <= 1 + 2.0 ** (shift[:, None].astype(int) - 23)).all()


def test_every_code_of_squares4_comes_back() -> None:
    of, rng = formats()["squares4"], np.random.default_rng(0)
    top = (10.0 ** rng.uniform(-30, 30, 500)).astype(np.float32)
    low = (top * 10.0 ** -rng.uniform(0.1, 7, 500)).astype(np.float32).view(np.uint32) >> 16
    codes = np.resize(np.arange(16), 256)
    packed = np.tile((codes[::2] | codes[1::2] << 4).astype(np.uint8), 500)
    values = decoded(of, [packed, top, low.astype(np.uint16)], (500, 256))
    assert np.allclose(values.max(axis=1), top, rtol=2e-5) and (np.diff(values[:, :16], axis=1) > 0).all()
    again = encoded(of, values)
    assert np.array_equal(again[2], low.astype(np.uint16))
    assert np.allclose(decoded(of, again, (500, 256)), values, rtol=3e-5)


# ---------------------------------------------------------------------------------------------------- what is lost


@pytest.mark.parametrize("name", OF_STATES)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_no_nan_and_no_infinity_hides(name: str, odd: float) -> None:
    of, width = formats()[name], 2 * formats()[name].block + 44
    x = np.tile(samples(name, 1, width), (3, 1))
    expected = back(name, x)
    for place in (0, 1, of.block - 1):
        x[1, place] = odd
        found = back(name, x)
        if odd > 0 or np.isnan(odd) or name not in POSITIVE:
            assert np.isnan(found[1, place]), "it comes out as NaN, with its block"
        else:
            assert found[1, place] >= 0
        assert np.array_equal(found[[0, 2]], expected[[0, 2]]) and np.isfinite(found[1, of.block :]).all()
        x[1, place] = x[0, place]


@pytest.mark.parametrize("name", OF_STATES)
def test_zeros_stay_zeros_and_subnormals_stay_finite(name: str) -> None:
    assert not back(name, np.zeros((2, 300), np.float32)).any()
    assert not decoded(
        formats()[name], [np.zeros_like(p) for p in encoded(formats()[name], np.ones((2, 300)))], (2, 300)
    ).any()
    tiny = np.full((1, 256), 2.0**-140, np.float32)
    assert np.isfinite(back(name, tiny)).all() and np.abs(back(name, tiny)).max() < 2.0**-110


@pytest.mark.parametrize("name", OF_STATES)
def test_one_huge_value_in_a_block(name: str) -> None:
    x = samples(name, 1, 2 * formats()[name].block)
    x[0, 5] = 2.5e38
    found = back(name, x)
    assert np.isfinite(found).all() and abs(found[0, 5] / 2.5e38 - 1) < 0.15
    if name in POSITIVE:
        assert (found > 0).all(), "what is divided by is never zero"
    other = slice(formats()[name].block, None)
    assert np.abs(found[0, other]).max() < 1e38, "another block knows nothing of it"


BOUNDS = {
    "signed8": 1 / 64,
    "sizes8": 1 / 8,
    "squares8": 1 / 8,
    "float8": 1 / 8,
}  # of a value, where it is no smaller than a unit


@pytest.mark.parametrize("name", sorted(BOUNDS))
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_errors_are_within_their_bounds(name: str, spread: float) -> None:
    rng = np.random.default_rng(3)
    x = np.exp(spread * rng.standard_normal((40, 256))).astype(np.float32)
    x = x if name in POSITIVE else x * np.sign(rng.standard_normal(x.shape)).astype(np.float32)
    found, top = back(name, x), np.abs(x).max(axis=1, keepdims=True)
    unit = {"signed8": 1 / 128, "float8": 2.0**-9}.get(name, 0.0) * top  # the least step
    assert (np.abs(found - x) <= np.maximum(BOUNDS[name] * np.abs(x), unit)).all()
    if name in POSITIVE:  # as many bits as the range leaves
        octaves = np.log2(top / x.min(axis=1, keepdims=True)) + 1
        assert (np.abs(found - x) <= x * 2.0 ** np.ceil(np.log2(octaves * 1.01)) / 128).all()


def test_signed8_takes_the_nearest_of_its_numbers() -> None:
    """Of those at the scale of the block; the scale is such that the largest value is among them too."""
    of, rng = formats()["signed8"], np.random.default_rng(1)
    x = rng.standard_normal((64, 256)).astype(np.float32)
    x[:, 0] = 4 * 2.0 ** rng.uniform(0, 1, 64)
    x[:8, 0] = 8 * (1 - 2.0 ** -np.arange(6, 14, dtype=np.float32))  # just below a power of two
    planes = encoded(of, x)
    every = [decoded(of, [np.arange(256, dtype=np.uint8), top.reshape(1)], (1, 256))[0] for top in planes[1]]
    least = np.stack([np.abs(row[:, None] - numbers).min(axis=1) for row, numbers in zip(x, every, strict=True)])
    assert np.allclose(np.abs(decoded(of, planes, x.shape) - x), least, rtol=0, atol=1e-6)
    largest = np.array([numbers.max() for numbers in every])
    assert (x[:, 0] <= largest * (1 + 1 / 126)).all()


@pytest.mark.parametrize("name", ["squares8", "squares4"])
def test_the_correction_is_the_ratio_of_neighbours_to_the_power_of_two_fifths(name: str) -> None:
    of, width = formats()[name], formats()[name].block
    rng = np.random.default_rng(2)
    for octaves in (0.5, 2, 4, 8, 16, 30):
        x = 2.0 ** rng.uniform(-octaves, 0, (1, width))
        x[0, :2] = 1, 2.0**-octaves
        kappa = of.decoded(encoded(of, x), False, x.shape)[1].reshape(-1)  # type: ignore[arg-type]
        if name == "squares8":
            shift = int(encoded(of, x)[2][0])
            ratio = 2.0**2.0 ** (shift - 23)
        else:
            ends = back(name, x)
            ratio = 2.0 ** (
                (ends.max().view(np.uint32).astype(int) - ends.min().view(np.uint32).astype(int)) / 15 / 2**23
            )
        assert np.allclose(kappa, ratio**0.4, rtol=4e-3) and np.ptp(kappa) == 0 and kappa[0] > 1


def steps(found: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """Between the numbers of a block next to x, of which one may never have been drawn; of eight bits, the least of all."""
    every = [np.unique(found[:, row]) for row in range(len(x))]
    if len(every[0]) > 16:
        return np.stack([np.full(len(of), np.diff(levels).min()) for levels, of in zip(every, x, strict=True)])
    above = [np.clip(np.searchsorted(levels, of), 1, len(levels) - 1) for levels, of in zip(every, x, strict=True)]
    return np.stack([levels[k] - levels[k - 1] for levels, k in zip(every, above, strict=True)])


@pytest.mark.parametrize("name", RANDOM)
def test_rounding_is_right_on_average_and_to_a_neighbour(name: str) -> None:
    draws, x = 3000, samples(name, 2, 256, seed=5)
    found = np.stack([back(name, x, seed) for seed in range(draws)]).astype(np.float64)
    kinds = [len(np.unique(found[:, r, c])) for r in range(2) for c in range(0, 256, 5)]
    assert max(kinds) == 2, "one of two neighbours"
    inside = (x != x.max(axis=1, keepdims=True)) & (x != x.min(axis=1, keepdims=True))
    block = formats()[name].block
    least = np.stack([steps(found[:, :, c : c + block], x[:, c : c + block]) for c in range(0, 256, block)], axis=1)
    step = np.maximum(found.max(axis=0) - found.min(axis=0), least.reshape(2, 256))[inside]
    away = (found.mean(axis=0) - x)[inside] / np.maximum(step, 0.2 * np.abs(x[inside]))
    coarse = 1 / 512 if formats()[name].random == 8 else 2e-5  # a random number of 8 bits is so far from what is right
    assert np.abs(away).max() < 5 * 0.5 / draws**0.5 + coarse, "4 sigma and more, of hundreds"
    assert abs(away.mean()) < 4 * 0.5 / (draws * away.size) ** 0.5 + coarse
    assert np.array_equal(back(name, x, 7), back(name, x, 7)) and not np.array_equal(back(name, x, 7), back(name, x, 8))


@pytest.mark.parametrize(("name", "least", "most"), [("squares8", 0.97, 1.02), ("squares4", 0.96, 1.06)])
@pytest.mark.parametrize("beta2", [0.999, 0.95])
def test_an_average_of_squares_follows_float32_and_its_root_is_not_biased(
    name: str, least: float, most: float, beta2: float
) -> None:
    """Without what a format says the state is to be multiplied with, a stochastic second moment of four bits is a rate that is 10 %
    larger and more.
    """
    of, rng, shape = formats()[name], np.random.default_rng(0), (8, 256)
    size = np.exp(rng.standard_normal(shape)).astype(np.float32) * 1e-3
    exact, kept = np.zeros(shape, np.float32), encoded(of, np.zeros(shape))
    seen, plain, means = [], [], []
    steps = 2500 if beta2 > 0.99 else 500
    for step in range(steps):
        square = (size * rng.standard_normal(shape).astype(np.float32)) ** 2
        exact += (square - exact) * np.float32(1 - beta2)
        v, kappa = (part.reshape(shape) for part in of.decoded(kept, False, shape))
        v = v + (square - v) * np.float32(1 - beta2)
        kept = encoded(of, v, step)
        if step > steps // 2:
            seen.append(np.mean(np.sqrt(exact / (v * kappa))))
            plain.append(np.mean(np.sqrt(exact / v)))
            means.append(np.mean(v / exact))
    assert least < np.mean(seen) < most and abs(np.mean(means) - 1) < 0.03
    assert name == "squares8" or np.mean(plain) > 1.08


@pytest.mark.parametrize(("spread", "least", "most"), [(0, 0.08, 0.1), (0.5, 0.08, 0.14), (1, 0.06, 0.13)])
def test_the_noise_of_momenta_in_four_bits_is_a_tenth_of_their_variance(
    spread: float, least: float, most: float
) -> None:
    """Sizes of gradients are log-normal. With even steps and blocks of 128 elements it is 0.16, 0.34 and 0.61."""
    of, rng, shape = formats()["signed4"], np.random.default_rng(0), (8, 256)
    size = np.exp(spread * rng.standard_normal(shape)).astype(np.float32)
    exact, kept, noise = np.zeros(shape, np.float32), encoded(of, np.zeros(shape)), []
    for step in range(200):
        g = 0.1 * size * rng.standard_normal(shape).astype(np.float32)
        exact = np.float32(0.9) * exact + g
        m = np.float32(0.9) * decoded(of, kept, shape) + g
        kept = encoded(of, m, step)
        noise.append(np.var(m - exact) / np.var(exact))
    assert least < np.mean(noise[50:]) < most and abs(np.mean(m - exact)) < 0.01
