"""`gpuopt.training.StochasticWeightAverage` of arrays: the mean, back and forth bit for bit, digits, calls out of turn."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt.training import StochasticWeightAverage
from training_problems import digits_mlp


@pytest.mark.parametrize(("start", "frequency", "taken"), [(0, 1, range(12)), (4, 1, range(4, 12)), (3, 4, (3, 7, 11))])
def test_it_is_the_mean_of_what_is_taken(start: int, frequency: int, taken: Any, rng: np.random.Generator) -> None:
    values = rng.normal(size=(12, 3, 4))
    p = {"w": np.zeros((3, 4))}
    swa = StochasticWeightAverage(p, start=start, frequency=frequency)
    for value in values:
        p["w"][...] = value
        swa.update()
    assert swa.count == len(taken)
    np.testing.assert_allclose(swa.averaged_params()["w"], values[list(taken)].mean(0), rtol=1e-13)


def test_one_of_them_is_itself() -> None:
    p = [np.array([0.1, 1e-30], np.float32), np.array([1 + 2j])]
    swa = StochasticWeightAverage(p)
    p[0][...], p[1][...] = [0.7, 3e20], 1e-9j
    swa.update()
    assert [a.tobytes() for a in swa.averaged_params()] == [a.tobytes() for a in p]


def test_sixteen_bits_are_averaged_in_more() -> None:
    p = np.ones(1, np.float16)
    swa = StochasticWeightAverage(p)
    for k in range(4001):
        p[0] = 1 + (k % 2) * 0.0009765625  # one unit in the last place
        swa.update()
    assert swa._mean.means[0][0] == pytest.approx(1 + 0.0009765625 / 2, abs=1e-6)
    assert swa.averaged_params().dtype == np.float16


def test_into_the_parameters_and_back_bit_for_bit(rng: np.random.Generator) -> None:
    p = [rng.normal(size=5), rng.normal(size=(2, 2)).astype(np.float32)]
    swa = StochasticWeightAverage(p)
    swa.update()
    for a in p:
        a += 1
    swa.update()
    last, mean = [a.tobytes() for a in p], [a.tobytes() for a in swa.averaged_params()]
    swa.eval()
    swa.eval()
    assert [a.tobytes() for a in p] == mean != last
    with pytest.raises(
        gpuopt.OptionError, match=r"update: the parameters are the average now: expected train\(\) before"
    ):
        swa.update()
    swa.train()
    swa.train()
    assert [a.tobytes() for a in p] == last
    with pytest.raises(KeyError), swa.averaged():
        assert [a.tobytes() for a in p] == mean
        raise KeyError
    assert [a.tobytes() for a in p] == last


def test_it_smooths_what_a_constant_rate_leaves_rough() -> None:
    """On the digits the mean of the last two passes has a lower loss than the weights it is made of."""
    problem = digits_mlp()
    opt = gpuopt.SGD(problem.params, lr=0.5, momentum=0.9, backend="numba")
    swa = StochasticWeightAverage(problem.params, start=100)
    losses = []
    for step in range(150):
        opt.step(problem.loss(problem.params, step)[1])
        swa.update()
        if step >= 100:
            losses.append(problem.whole(problem.params))
    with swa.averaged():
        assert problem.whole(problem.params) < np.median(losses)


def test_what_is_refused() -> None:
    for wrong, words in (
        ({"params": []}, "params: expected at least one array"),
        ({"params": 3.0}, "params"),
        ({"start": -1}, "start = -1: expected a whole number, 0 or more"),
        ({"frequency": 0}, "frequency = 0: expected a whole number, 1 or more"),
    ):
        with pytest.raises(gpuopt.GpuoptError, match=words):
            StochasticWeightAverage(**({"params": [np.ones(3)]} | wrong))
    swa = StochasticWeightAverage([np.ones(3)], start=5)
    swa.update()
    for call in (swa.averaged_params, swa.eval):
        with pytest.raises(gpuopt.OptionError, match="expected more than `start` steps"):
            call()
    with pytest.raises(gpuopt.InputError, match="update_bn: arrays have no normalisation layers"):
        swa.update_bn([])


def test_it_goes_on_from_what_was_saved(rng: np.random.Generator) -> None:
    """Also from JSON: the same bits as if nothing had been saved, from a mean that is wider than its parameter."""
    values = rng.normal(size=(9, 4)).astype(np.float16)

    def run(swa: StochasticWeightAverage, p: Any, steps: range) -> StochasticWeightAverage:
        for k in steps:
            p[...] = values[k]
            swa.update()
        return swa

    def made(p: Any) -> StochasticWeightAverage:
        return StochasticWeightAverage(p, start=2, frequency=2)

    p = np.zeros(4, np.float16)
    whole = run(made(p), p, range(9)).state_dict()
    saved = run(made(p), p, range(5)).state_dict()
    as_text = json.dumps(saved | {"means": [mean.tolist() for mean in saved["means"]]})
    assert saved["means"][0].dtype == np.float32
    for given in (saved, json.loads(as_text)):
        later = made(p)
        later.load_state_dict(given)
        assert later.count == 2
        found = run(later, p, range(5, 9)).state_dict()
        assert found["calls"] == 9 and found["count"] == whole["count"] == 4
        assert np.array_equal(found["means"][0], whole["means"][0])


def test_nothing_is_saved_or_loaded_while_the_parameters_are_the_average() -> None:
    swa = StochasticWeightAverage([np.ones(3)])
    swa.update()
    saved = swa.state_dict()
    swa.eval()
    for call in (swa.state_dict, lambda: swa.load_state_dict(saved)):
        with pytest.raises(gpuopt.OptionError, match=r"state_dict: the parameters are the average now: expected train"):
            call()
    swa.train()
    for wrong, words in (
        (saved | {"count": 1.5}, "state_dict: count = 1.5: expected a whole number"),
        (saved | {"means": [np.ones(4)]}, r"state_dict: means\[0\]: shape \(4,\): expected \(3,\)"),
    ):
        with pytest.raises(gpuopt.InputError, match=words):
            swa.load_state_dict(wrong)
    assert swa.count == 1 and swa.averaged_params()[0].tolist() == [1, 1, 1]
