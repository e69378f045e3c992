"""States in 16 bits: rounded at random, so that they never stall, by random numbers that depend on nothing but their place.

The generator against the published vectors, rounding against its definition, and every optimizer against its own float32 run.
That all backends and launch shapes give the same bits is in test_bits.py and test_bits_device.py.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import gpuopt
import gpuopt.torch
from covering import REPRESENTATIVES, each
from gpuopt import rules
from gpuopt.compiler.parts import Coded
from gpuopt.compiler.program import drawn as allotment
from gpuopt.compiler.program import share
from gpuopt.errors import InputError
from gpuopt.formats import formats, philox
from gpuopt.formats.dtypes import numpy_dtype
from gpuopt.formats.stochastic import stochastic
from samples import HOST_BACKENDS, bits

# Random123's own test: counter, key, words.
PUBLISHED = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
WITH_STATES = [n for n in rules.NAMES if rules.get(n).states]
FLAGS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "rmsprop": {"momentum": 0.9, "centered": True, "eps": 1e-3},
}
FLAGS |= {"dgd": {"lr_decay": 1.0}, "adam": {"amsgrad": True}, "adamw": {"amsgrad": True}}


def numbers(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_the_generator_is_philox4x32_10(counter: str, key: str, expected: str) -> None:
    a, b, c, d = numbers(counter)
    low, high = numbers(key)
    made = philox.philox((np.array([a | b << 32], np.uint64), 0, c, d), (low, high))
    assert made.tolist() == [numbers(expected)]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(first=st.integers(0, 2**40), count=st.integers(1, 70), cut=st.integers(0, 70), bits=st.sampled_from([16, 32]))
def test_a_word_belongs_to_its_element(first: int, count: int, cut: int, bits: int) -> None:
    """Whatever the range that is asked for."""
    whole = philox.words(5, 3, 7, 0, first, count, bits)
    cut = min(cut, count)
    parts = [philox.words(5, 3, 7, 0, first, cut, bits), philox.words(5, 3, 7, 0, first + cut, count - cut, bits)]
    assert np.array_equal(np.concatenate(parts), whole)
    some = np.random.default_rng(count).permutation(count)
    assert np.array_equal(philox.words_of(5, 3, 7, 0, first + some, bits), whole[some])


def test_halves_of_words_are_those_of_memory() -> None:
    """The bits of elements are those of the words, one after another: element 2 k has the lower half of the k-th word."""
    made = philox.words(5, 3, 7, 1, 0, 1000)
    halves = philox.words(5, 3, 7, 1, 0, 2000, bits=16)
    assert np.array_equal(made.astype("<u4").view("<u2"), halves)


def test_every_argument_gives_other_words() -> None:
    """Seed and element in 64 bits, tensor, step and stream: none of them repeats another's numbers."""
    given = [
        (0, 0, 1, 0, 0),
        (1, 0, 1, 0, 0),
        (2**32, 0, 1, 0, 0),
        (2**63, 0, 1, 0, 0),
        (0, 1, 1, 0, 0),
        (0, 0, 2, 0, 0),
    ]
    given += [(0, 0, 1, 1, 0), (0, 0, 1, 2, 0), (0, 0, 1, 0, 64), (0, 0, 1, 0, 2**34), (0, 2**31, 1, 0, 0)]
    made = np.concatenate([philox.words(*g, 64) for g in given])
    assert len(set(made.tolist())) == made.size
    mean = philox.words(0, 0, 1, 0, 0, 100_000) / 2**32
    assert abs(mean.mean() - 0.5) < 4 * (1 / 12 / mean.size) ** 0.5


def bfloat16(values: NDArray[np.float32], random: NDArray[np.uint32]) -> NDArray[Any]:
    """Rounded as the format says."""
    (codes,) = stochastic.encoded(values, False, random)
    return codes.astype(np.uint16).view(numpy_dtype("bfloat16"))


def neighbours(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The two bfloat16 numbers around each."""
    below = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return below, (values.view(np.uint32) + 0x10000 & 0xFFFF0000).view(np.float32)


def test_rounding_is_to_a_neighbour_and_right_on_average(rng: np.random.Generator) -> None:
    values = (rng.standard_normal(200_000) * 10.0 ** rng.integers(-30, 30, 200_000)).astype(np.float32)
    found = bfloat16(values, philox.words(0, 0, 1, 0, 0, values.size)).astype(np.float32)
    below, above = neighbours(values)
    assert ((found == below) | (found == above)).all()
    gap = (above - below).astype(np.float64)
    share, up = (values - below) / gap, found == above
    deviation = (up - share).sum() / np.sqrt((share * (1 - share)).sum())
    assert abs(deviation) < 4


def test_what_has_no_neighbour_stays() -> None:
    exact = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, 2.0**-133], np.float32)
    ones = np.full(exact.size, 0xFFFFFFFF, np.uint32)
    assert bits(bfloat16(exact, ones).astype(np.float32)) == bits(exact)
    nans = np.array([0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(bfloat16(nans, ones[:3]).astype(np.float32)).all()


@pytest.mark.parametrize("count", range(1, 8))
def test_no_two_states_share_random_bits(count: int) -> None:
    made = allotment(tuple(Coded(f"s{k}", stochastic, (f"s{k}",), False, True) for k in range(count)))
    assert list(made) == list(range(count))
    taken = {(d.stream, d.shift + bit) for d in made.values() for bit in range(16)}
    assert len(taken) == 16 * count and max(bit for _, bit in taken) < 32


def coded(parameter: str, *states: str) -> tuple[Coded, ...]:
    """A parameter ("" where it is kept as it is) and states in these formats."""
    shown = [Coded("p", formats()[parameter], ("p",), False, True)] if parameter else []
    return (*shown, *(Coded(f"s{k}", formats()[s], (f"s{k}",), False, True) for k, s in enumerate(states)))


@pytest.mark.parametrize(
    ("given_formats", "expected", "bits"),
    [
        (("", "signed8", "squares8"), [None, (0, 0)], 16),
        (("", "float8", "float8"), [(0, 0), (0, 8)], 16),
        (("stochastic",), [(0, 0)], 16),
        (("split8",), [(0, 0)], 16),
        (("", "stochastic", "stochastic"), [(0, 0), (0, 16)], 32),
        (("split8", "signed8", "squares8"), [(0, 0), None, (0, 0)], 16),  # the lowest eight of 16
        (("split8", "stochastic", "stochastic"), [(0, 0), (0, 0), (0, 16)], 32),
        (("split8", "float8"), [(0, 0), (0, 8)], 16),  # eight of eight would be the same
        (("split8", "signed4", "squares4"), [(0, 8), (0, 0), (0, 8)], 32),
        (("stochastic", "signed8", "squares8"), [(0, 0), None, (0, 16)], 32),
    ],
)
def test_the_allotment_of_random_bits(given_formats: tuple[str, ...], expected: list[Any], bits: int) -> None:
    """Stream and place of each value's, and how many of a word an element has."""
    made = allotment(coded(*given_formats))
    places = [(made[k].stream, made[k].shift) if k in made else None for k in range(len(expected))]
    assert places == expected and share(coded(*given_formats)) == bits


def test_a_parameter_goes_its_own_way_with_bits_of_a_state() -> None:
    """split8 has the lowest eight of the 16 bits of squares8: rounded up or down independently, as far as 200,000 values tell. With
    the highest eight the correlation would be 0.8.
    """
    count = 200_192
    rng, random = np.random.default_rng(0), philox.words(0, 0, 1, 0, 0, count, bits=16)
    v = rng.uniform(1, 4, (count // 256, 256)).astype(np.float32)
    v[:, 0], v[:, 1] = 1, 3.999  # so that all blocks have the same numbers
    v = v.reshape(-1)
    code, low, shift = formats()["squares8"].encoded(v, False, random, (count // 256, 256))
    assert (low == low[0]).all() and (shift == shift[0]).all()
    exact = (v.view(np.uint32) - (low[0] << np.uint32(23))) / 2.0 ** shift[0]
    of_state = code - exact
    p = rng.uniform(1, 2, count).astype(np.float32)
    h, rest = formats()["split8"].encoded(p, False, random)
    (kept,) = formats()["split8"].decoded([h, rest & np.uint32(0xFF)], False)
    of_parameter = (kept.astype(np.float64) - p) * 2**15
    assert abs(of_state).max() <= 1 and abs(of_parameter).max() <= 1
    for error in (of_state, of_parameter):
        assert abs(error.mean()) < 4 * error.std() / count**0.5
    assert abs(np.corrcoef(of_state, of_parameter)[0, 1]) < 0.0028 + 4 / count**0.5


# ------------------------------------------------------------------------------------------------ optimizers


def run(name: str, state_format: str, steps: list[float], backend: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A constant gradient for a while, and another: what became of the parameters (a spread of them), and the states."""
    p = np.zeros(256, np.float32)
    options = {"lr": 1e-3, **FLAGS.get(name, {}), **options}
    opt = gpuopt.create(name, [p], state_format=state_format, backend=backend, **options)
    for g in steps:
        opt.step([np.full(256, g, np.float32)])
    return p, opt.state_dict()["state"][0]


# What rounds a state knows nothing of the rule: a third of them, and those that have every kind of state.
SMALL_STEPS = [
    p if p.values[0] in (*REPRESENTATIVES, *WITH_STATES[::3]) else pytest.param(*p.values, marks=pytest.mark.long)
    for p in each(WITH_STATES, HOST_BACKENDS, single=True)
]


@pytest.mark.parametrize(("name", "backend"), SMALL_STEPS)
def test_states_follow_float32_over_thousands_of_small_steps(name: str, backend: str) -> None:
    """Each step changes a moment by less than half of what 16 bits resolve; up for a while and down again. States of fewer
    elements than the parameter's and exact ones stay float32.
    """
    rounded = {state.key for state in rules.get(name).states if state.walked and not state.exact}
    slow = {"betas": (0.9, 0.999)} if name in ("adam", "adamw") else {"betas": (0.9, 0.995)} if name == "lion" else {}
    slow |= {"alpha": 0.999} if name == "rmsprop" else {}
    slow |= {"dampening": 0.999, "momentum": 0.999} if name == "sgd" else {}
    steps = [1.0] * 1000 + [0.1] * 2000
    wide, narrow = (run(name, f, steps, backend, **slow) for f in ("float32", "bfloat16"))
    for key, expected in wide[1].items():
        if key == "step":
            continue
        found = narrow[1][key]
        assert found.dtype == numpy_dtype("bfloat16" if key in rounded else "float32")
        mean, true = found.astype(np.float64).mean(), float(expected.flat[0])
        size = abs(true) if abs(true) > 1e-30 else 1e-3  # 0: Adan's difference to a gradient that is itself rounded
        assert abs(mean - true) < 0.02 * size, (key, mean, true)
    assert abs(narrow[0].mean() / wide[0][0] - 1) < 0.02


def test_torch_states_neither_stall_nor_freeze() -> None:
    moved = {}
    for state_format in ("float32", "bfloat16"):
        p = torch.nn.Parameter(torch.zeros(64))
        opt = gpuopt.torch.AdamW([p], lr=1e-3, weight_decay=0.0, state_format=state_format)
        for k in range(3300):
            p.grad = torch.full((64,), 1.0 if k < 300 else 0.1)
            opt.step()
        moved[state_format] = p.mean().item(), opt.state[p]["exp_avg_sq"].double().mean().item()
    (wide, v), (narrow, w) = moved["float32"], moved["bfloat16"]
    assert abs(narrow / wide - 1) < 0.02 and abs(w / v - 1) < 0.02


def after(params: list[NDArray[Any]], steps: int = 3, grouped: bool = False, **options: Any) -> list[Any]:
    """Bits of parameters and states after a few steps."""
    given = [{"params": [p]} for p in params] if grouped else params
    opt = gpuopt.AdamW(given, lr=0.01, state_format="bfloat16", **options)
    for step in range(steps):
        grads = [np.random.default_rng([step, p.size]).standard_normal(p.shape).astype(np.float32) for p in params]
        opt.step([[g] for g in grads] if grouped else grads)
    states = opt.state_dict()["state"]
    return [bits([p, states[k]["exp_avg"], states[k]["exp_avg_sq"]]) for k, p in enumerate(params)]


def made(*sizes: int) -> list[NDArray[Any]]:
    return [np.ones(n, np.float32) for n in sizes]


@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_a_tensor_is_rounded_alike_in_any_company(backend: str) -> None:
    """More tensors behind it, groups of their own, a part of the gradients missing: the same bits."""
    alone = after(made(1000, 33_000), backend=backend)
    assert after(made(1000, 33_000, 7, 0, 512), backend=backend)[:2] == alone
    assert after(made(1000, 33_000, 7), backend=backend, grouped=True)[:2] == alone
    swapped = after(made(33_000, 1000), backend=backend)
    assert swapped[1] != alone[0]  # its number is another


@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_equal_tensors_and_equal_states_are_rounded_differently(backend: str) -> None:
    one, other = after(made(1000, 1000), backend=backend)
    assert one[0] == one[0] and one[1] != other[1] and one[2] != other[2]


@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_the_seed_decides(backend: str) -> None:
    first = after(made(1000), backend=backend)
    assert after(made(1000), backend=backend, seed=0) == first
    seeds = [1, 2**32, 2**63, 2**64 - 1, np.int64(5)]
    results = [first, *(after(made(1000), backend=backend, seed=seed) for seed in seeds)]
    assert len({str(r) for r in results}) == len(results)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "1", None])
def test_what_is_no_seed(seed: Any) -> None:
    with pytest.raises(InputError, match=r"seed = .*expected a whole number from 0 to 2\*\*64 - 1"):
        gpuopt.AdamW(np.ones(3), seed=seed)
    with pytest.raises(InputError, match="seed = "):
        gpuopt.torch.AdamW([torch.nn.Parameter(torch.ones(3))], seed=seed)


def test_torch_and_arrays_round_alike() -> None:
    """The same seed, the same numbers; another one, others."""
    p = np.ones(5000, np.float32)
    g = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    found = {}
    for seed in (3, 4):
        q, r = p.copy(), torch.nn.Parameter(torch.from_numpy(p.copy()))
        ours = gpuopt.AdamW([np.ones(2, np.float32), q], state_format="bfloat16", seed=seed)
        theirs = gpuopt.torch.AdamW([torch.nn.Parameter(torch.ones(2)), r], state_format="bfloat16", seed=seed)
        for _ in range(3):
            r.grad = torch.from_numpy(g)
            ours.step([np.ones(2, np.float32), g])
            theirs.param_groups[0]["params"][0].grad = torch.ones(2)
            theirs.step()
        found[seed] = ours.state_dict()["state"][1]["exp_avg_sq"].view(np.uint16)
        assert np.array_equal(theirs.state[r]["exp_avg_sq"].view(torch.uint16).numpy(), found[seed])
        assert np.array_equal(r.detach().numpy(), q)
    assert not np.array_equal(found[3], found[4])


def test_gradient_release_rounds_as_a_step_does() -> None:
    """Each parameter has its own engine there, and keeps its number."""
    results = []
    for release in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 1))
        opt = gpuopt.torch.AdamW(model.parameters(), lr=0.01, state_format="bfloat16", seed=9)
        end = gpuopt.torch.release_gradients(model, opt) if release else None
        for _ in range(3):
            model(torch.ones(4, 8)).square().mean().backward()
            opt.step()
            opt.zero_grad()
        if end is not None:
            end()
        results.append([opt.state[p]["exp_avg_sq"].view(torch.uint16).tolist() for p in model.parameters()])
    assert results[0] == results[1]


@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_a_resumed_run_goes_on_with_the_same_numbers(backend: str) -> None:
    def steps(opt: Any, which: range) -> None:
        for k in which:
            opt.step([np.random.default_rng(k).standard_normal(3000).astype(np.float32)])

    whole, first = made(3000), made(3000)
    options = {"lr": 0.01, "state_format": "bfloat16", "backend": backend, "seed": 7}
    one, two = gpuopt.Adam(whole, **options), gpuopt.Adam(first, **options)
    steps(one, range(10))
    steps(two, range(4))
    again = gpuopt.Adam(first, **options)
    again.load_state_dict(two.state_dict())
    steps(again, range(4, 10))
    assert bits(first) == bits(whole) and bits(again.state_dict()) == bits(one.state_dict())


def test_float64_parameters_keep_float64_states() -> None:
    p = np.ones(10)
    opt = gpuopt.Adam([p], state_format="bfloat16")
    opt.step([np.ones(10)])
    assert opt.state_dict()["state"][0]["exp_avg"].dtype == np.float64


def test_parameters_of_16_bits_are_still_rounded_to_nearest() -> None:
    """Only what accumulates small changes is not."""
    expected, found = (np.ones(1000, np.float32).astype(numpy_dtype("bfloat16")) for _ in range(2))
    for p, state_format in ((expected, "float32"), (found, "bfloat16")):
        opt = gpuopt.SGD([p], lr=1e-4, momentum=0.5, state_format=state_format)
        for _ in range(20):
            opt.step([np.ones(1000, np.float32)])
    assert (expected == 1).all() and (found == 1).all()


def test_the_scratch_of_a_walk_lives_as_long_as_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba frees an array behind its last use, whoever has its address: another thread would be given the same memory."""
    from gpuopt.compiler import numba_cpu

    compiled, as_c = [], numba_cpu.as_c
    monkeypatch.setattr(
        numba_cpu, "as_c", lambda *given, **options: compiled.append(as_c(*given, **options)) or compiled[-1]
    )
    monkeypatch.setenv("GPUOPT_CACHE", "0")
    numba_cpu.walk_address.cache_clear()
    after(made(50), backend="numba")
    numba_cpu.walk_address.cache_clear()
    blocks = re.split(r"\n(?=\S+:)", compiled[0].inspect_llvm())
    freeing = [block for block in blocks if "call void @NRT_decref" in block]
    assert len(freeing) == 1 and "br i1" not in freeing[0]  # on the way out, not before a loop
