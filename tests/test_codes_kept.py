"""What optimizers over arrays keep in 8 and 4 bits: which states, checkpoints, errors, and formats of a user's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gpuopt
from gpuopt import rules
from gpuopt.errors import InputError, LayoutError, RuleSyntaxError
from gpuopt.formats import formats
from gpuopt.formats.language import Format
from gpuopt.rules.primitives import bits, block_max, from_bits
from own_formats import OWN, linear

pytestmark = pytest.mark.once

Array = NDArray[Any]


def model(seed: int = 0) -> list[Array]:
    """A matrix in codes, one that is too small, a vector, and a kernel of a convolution."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in ((24, 300), (20, 20), (5000,), (16, 8, 6, 6))]


def steps(opt: Any, p: list[Array], which: range) -> None:
    for k in which:
        rng = np.random.default_rng(k)
        opt.step([0.1 * x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) for x in p])


def test_small_tensors_and_vectors_stay_float32() -> None:
    p = model()
    opt = gpuopt.AdamW(p, lr=1e-2, state_format="int8")
    steps(opt, p, range(2))
    state = opt.state_dict()["state"]
    assert sorted(state[1]) == sorted(state[2]) == ["exp_avg", "exp_avg_sq", "step"]
    own = {"exp_avg_signed8_code", "exp_avg_signed8_top"}
    own |= {f"exp_avg_sq_squares8_{plane}" for plane in ("code", "low", "shift")}
    assert set(state[0]) == set(state[3]) == own | {"step"}
    assert state[0]["exp_avg_signed8_code"].shape == (24, 300) and state[0]["exp_avg_signed8_top"].shape == (24, 2)
    assert state[3]["exp_avg_sq_squares8_low"].shape == (16, 2)
    assert opt.nbytes == 8 * (400 + 5000) + 2 * (7200 + 4608) + 3 * (24 * 2 + 16 * 2)
    assert opt.launches == 2


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("kept", ["int8", "int4", "float8", "auto8", "auto4", {"m": "int4", "exp_avg_sq": "int8"}])
def test_training_stays_near_float32(backend: str, kept: Any) -> None:
    found = {}
    for each in ("float32", kept):
        p = model()
        steps(gpuopt.AdamW(p, lr=1e-2, backend=backend, state_format=each), p, range(60))
        found[str(each)] = p
    exact, ours = found["float32"], found[str(kept)]
    assert np.array_equal(exact[1], ours[1]) and np.array_equal(exact[2], ours[2])
    assert all(np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1] > 0.99 for a, b in zip(exact, ours, strict=True))


def test_what_only_grows_is_not_kept_in_four_bits() -> None:
    p = model()
    opt = gpuopt.Adam(p, lr=1e-2, amsgrad=True, state_format="int4")
    steps(opt, p, range(3))
    assert {"max_exp_avg_sq_sizes8_code", "exp_avg_signed4_code", "exp_avg_sq_squares4_code"} <= set(
        opt.state_dict()["state"][0]
    )


def test_momenta_have_eight_bits_in_auto4() -> None:
    p = model()
    opt = gpuopt.Adam(p, lr=1e-2, amsgrad=True, state_format="auto4")
    steps(opt, p, range(3))
    state = opt.state_dict()["state"][0]
    assert {"max_exp_avg_sq_sizes8_code", "exp_avg_signed8_code", "exp_avg_sq_squares4_code"} <= set(state)


@pytest.mark.parametrize("kept", ["int8", "int4", "float8"])
def test_a_resumed_run_goes_on_with_the_same_bits(kept: str) -> None:
    p, q = model(), model()
    one = gpuopt.AdamW(p, lr=1e-2, state_format=kept, seed=5)
    steps(one, p, range(6))
    two = gpuopt.AdamW(q, lr=1e-2, state_format=kept, seed=5)
    steps(two, q, range(3))
    again = gpuopt.AdamW(q, lr=1e-2, state_format=kept, seed=5)
    again.load_state_dict(pickle.loads(pickle.dumps(two.state_dict())))
    steps(again, q, range(3, 6))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(p, q, strict=True))
    other = copy.deepcopy(one)
    mine, theirs = one.state_dict()["state"], other.state_dict()["state"]
    assert all(np.array_equal(mine[k][key], theirs[k][key]) for k in mine for key in mine[k])


def test_states_go_from_format_to_format_through_values() -> None:
    p = model()
    opt = gpuopt.AdamW(p, lr=1e-2)
    steps(opt, p, range(40))
    exact = opt.state_dict()["state"][0]
    saved = opt.state_dict()
    for kept in ("int8", "bfloat16", "float8", "int4", "int8", "float32"):
        opt = gpuopt.AdamW(p, lr=1e-2, state_format=kept)
        opt.load_state_dict(saved)
        saved = opt.state_dict()
        assert saved["state"][0]["step"] == 40
    found = saved["state"][0]
    assert sorted(found) == sorted(exact)
    for key in ("exp_avg", "exp_avg_sq"):
        assert np.corrcoef(found[key].reshape(-1), exact[key].reshape(-1))[0, 1] > 0.9
    steps(opt, p, range(40, 42))


def test_codes_become_values_where_the_same_format_keeps_none() -> None:
    """A checkpoint in int8 for parameters of float64, whose states int8 does not touch."""
    p = model()
    opt = gpuopt.AdamW(p, lr=1e-2, state_format="int8")
    steps(opt, p, range(5))
    wide = gpuopt.AdamW([x.astype(np.float64) for x in p], lr=1e-2, state_format="int8")
    wide.load_state_dict(opt.state_dict())
    plain = gpuopt.AdamW(p, lr=1e-2)
    plain.load_state_dict(opt.state_dict())
    found, expected = (o.state_dict()["state"][0] for o in (wide, plain))
    assert sorted(found) == ["exp_avg", "exp_avg_sq", "step"]
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_what_is_observed_between_steps_is_kept_in_codes() -> None:
    p = model()
    opt = gpuopt.SophiaG(p, lr=1e-3, state_format={"exp_avg": "int8", "hessian": "int8"})
    opt.update_hessian([np.full_like(x, 0.5) for x in p])
    state = opt.state_dict()["state"][0]
    assert state["hessian_squares8_code"].any() or state["hessian_squares8_low"].any()
    exact = gpuopt.SophiaG(p, lr=1e-3)
    exact.load_state_dict(opt.state_dict())
    other = gpuopt.SophiaG(p, lr=1e-3)
    other.update_hessian([np.full_like(x, 0.5) for x in p])
    found, expected = (o.state_dict()["state"][0]["hessian"] for o in (exact, other))
    assert np.allclose(found, expected, rtol=0.01)


def test_a_state_that_begins_as_another_number_begins_so_in_codes() -> None:
    p = model()
    opt = gpuopt.Adagrad(p, lr=0.0, initial_accumulator_value=0.3, state_format="int8")
    opt.step([np.zeros_like(x) for x in p])
    saved = opt.state_dict()
    plain = gpuopt.Adagrad(p, lr=0.0, initial_accumulator_value=0.3)
    plain.load_state_dict(saved)
    assert np.allclose(plain.state_dict()["state"][0]["sum"], 0.3, rtol=0.01)


def test_what_cannot_be_is_said() -> None:
    wide = np.asfortranarray(np.ones((64, 100), np.float32))
    opt = gpuopt.AdamW([wide], lr=0.1, state_format="int8")
    with pytest.raises(LayoutError, match=r"keeps states in blocks of rows.*C order.*contiguous copy"):
        opt.step([wide.copy(order="F")])
    with pytest.raises(InputError, match=r"state_format = 'int7': expected one of float32, bfloat16, int8"):
        gpuopt.AdamW([wide], lr=0.1, state_format="int7")
    with pytest.raises(InputError, match="format of parameters: expected one of states"):
        gpuopt.AdamW([wide], lr=0.1, state_format=formats()["split8"])
    with pytest.raises(InputError, match="format of states: expected one whose first plane is the parameter"):
        gpuopt.AdamW([wide], lr=0.1, param_format=formats()["signed8"])


def test_float64_and_complex_numbers_are_not_kept_in_codes() -> None:
    for dtype in (np.float64, np.complex64):
        p = np.ones((80, 100), dtype)
        opt = gpuopt.AdamW([p], lr=0.1, state_format="int8")
        opt.step([p.copy()])
        assert set(opt.state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


# ---------------------------------------------------------------------------------------------------- of one's own


@gpuopt.format(planes={"x": "float32"}, per_block={"unused": "uint8"}, block=32)
def fourfold(x: Any, unused: Any) -> Any:
    y = x + 0.0
    return y, 4.0


@fourfold.encode
def _(x: Any) -> Any:
    return x, bits(block_max(x)) & 0


@pytest.mark.parametrize("of", OWN, ids=[of.name for of in OWN])
def test_a_format_of_ones_own_gives_the_same_bits(of: Format) -> None:
    """With blocks and without, two codes a byte: what a step leaves is what the next one finds."""
    found = {}
    for backend in ("numpy", "numba"):
        p = model()
        opt = gpuopt.SGD(p, lr=0.01, momentum=0.9, backend=backend, state_format=of)
        steps(opt, p, range(10))
        state = opt.state_dict()["state"][0]
        found[backend] = [x.tobytes() for x in (*p, *(state[key] for key in state if key != "step"))]
    assert found["numpy"] == found["numba"]
    kept = [state[key] for key in state if key != "step"]
    assert kept and all(array.any() for array in kept), "what was computed is stored"


def test_the_planes_of_a_format_of_ones_own_are_found_by_name() -> None:
    p = model()
    opt = gpuopt.SGD(p, lr=0.01, momentum=0.9, state_format=linear)
    steps(opt, p, range(1))
    assert opt.state_dict()["state"][0]["momentum_buffer_linear_unit"].shape == (24, 5)
    assert "__shfl_xor_sync" in gpuopt.kernel_source("sgd", momentum=0.9, state_format={"b": linear})


@gpuopt.format(planes={"x": "float32"}, per_block={"unused": "uint8"}, block=32)
def fourfold(x: Any, unused: Any) -> Any:
    y = x + 0.0
    return y, 4.0


@fourfold.encode
def _(x: Any) -> Any:
    return x, bits(block_max(x)) & 0


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_correction_is_of_the_uses_of_a_state_and_not_of_its_next_value(backend: str) -> None:
    """v four times as large where it is used, and not in its own average: half of every step."""
    moved, kept = [], []
    for each in ("float32", {"v": fourfold}):
        p = [np.zeros((64, 64), np.float32)]
        opt = gpuopt.Adam(p, lr=1.0, eps=0.0, backend=backend, state_format=each)
        for _ in range(2):
            opt.step([np.full((64, 64), 0.5, np.float32)])
        moved.append(p[0][0, 0])
        state = opt.state_dict()["state"][0]
        kept.append(state.get("exp_avg_sq", state.get("exp_avg_sq_fourfold_x"))[0, 0])
    assert moved[0] == pytest.approx(-2.0, rel=1e-5) and moved[1] == pytest.approx(-1.0, rel=1e-5)
    assert kept[0] == kept[1]


def test_a_format_of_ones_own_has_to_go_with_its_blocks() -> None:
    with pytest.raises(RuleSyntaxError, match=r"block = 100: expected one of 32, 64, 128, 256"):
        gpuopt.format(planes={"n": "int8"}, per_block={"unit": "float32"}, block=100)
    with pytest.raises(RuleSyntaxError, match=r"block = 0: expected one of"):
        gpuopt.format(planes={"n": "int8"}, per_block={"unit": "float32"})
    with pytest.raises(RuleSyntaxError, match="expected one of int8"):
        gpuopt.format(planes={"n": "int8"}, per_block={"unit": "parameter"}, block=32)

    @gpuopt.format(planes={"n": "int8"}, per_block={"unit": "float32"}, block=32)
    def one(n: Any, unit: Any) -> Any:
        x = unit * from_bits(n)
        return x

    with pytest.raises(RuleSyntaxError, match="unit is one number of a block"):

        @one.encode
        def _(x: Any) -> Any:
            return bits(x), x

    with pytest.raises(RuleSyntaxError, match="block_max of what follows from such a value"):

        @one.encode
        def _(x: Any) -> Any:
            top = block_max(x)
            unit = block_max(x - top)
            return bits(x), unit

    @gpuopt.format(planes={"n": "int8"})
    def two(n: Any) -> Any:
        x = from_bits(n)
        return x

    with pytest.raises(RuleSyntaxError, match="this format has no blocks: give it block=256"):

        @two.encode
        def _(x: Any) -> Any:
            return bits(x / block_max(x))


def test_what_a_state_holds_is_checked_and_declared() -> None:
    with pytest.raises(RuleSyntaxError, match=r"state 'v': holds = 'roots': expected one of numbers, squares, sizes"):
        gpuopt.rule(state={"v": gpuopt.State("v", "v", holds="roots")})
    for name in rules.NAMES:
        for state in rules.get(name).states:
            if state.walked and ("_sq" in state.key or "square" in state.key):
                expected = "sizes" if state.key.startswith("max_") else "squares"
                assert state.holds == expected or state.when == "not matrix", (name, state.key)
