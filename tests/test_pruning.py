"""`gpuopt.training.MagnitudePruning`: masks that are changed in place hold in the fused step, the schedule, digits at 90 %."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import training
from gpuopt.demos import digits
from gpuopt.spaces import one_blas_thread
from gpuopt.training import MagnitudePruning, cubic_sparsity
from training_problems import digits_mlp, images

pytestmark = pytest.mark.once

BACKENDS = ("numpy", "numba")
EPOCH = 23  # batches of 64 in the digits' 1437 training images


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["C", "F", "transposed", "reversed"])
def test_a_mask_changed_in_place_holds_from_the_next_step_on(
    backend: str, layout: str, rng: np.random.Generator
) -> None:
    """The optimizer reads it where it lies, in any memory order; states go on as if nothing had happened."""
    values = rng.normal(size=(6, 5)) + 3
    made = {
        "C": values,
        "F": np.asfortranarray(values),
        "transposed": values.T.copy().T,
        "reversed": values[::-1, ::-1],
    }
    p, twin = made[layout], values.copy()
    pruning = MagnitudePruning(p, 0.5, 1, 2)
    opt = gpuopt.AdamW(p, lr=0.1, mask=pruning.mask, backend=backend)
    other = gpuopt.AdamW(twin, lr=0.1, backend=backend)
    for k in range(4):
        gradient = rng.normal(size=p.shape)
        opt.step(gradient)
        other.step(gradient)
        if k == 1:
            pruning.mask[1, 2] = pruning.mask[4, 0] = False
            p[1, 2] = p[4, 0] = 7  # what the next step puts to zero
    expected = np.where(pruning.mask, twin, 0) if layout != "reversed" else p
    assert p[1, 2] == 0 and p[4, 0] == 0 and np.count_nonzero(p) == 28
    np.testing.assert_array_equal(p, expected)


@pytest.mark.parametrize("optimizer", ["sgd", "lion", "lamb", "adafactor"])
def test_every_optimizer_keeps_the_pruned_weights_at_zero(optimizer: str, rng: np.random.Generator) -> None:
    p = {"w": rng.normal(size=(20, 10)), "b": rng.normal(size=10)}
    pruning = MagnitudePruning(p, 0.8, 2, 6, frequency=2)
    opt = gpuopt.create(optimizer, p, lr=0.01, mask=pruning.mask)
    for _ in range(9):
        opt.step({"w": rng.normal(size=(20, 10)), "b": rng.normal(size=10)})
        pruning.step()
    assert np.count_nonzero(p["w"]) == 40 and np.count_nonzero(p["b"]) == 10
    assert pruning.sparsity == pytest.approx(0.8) and pruning.steps == 9
    assert (p["w"][~pruning.mask["w"]] == 0).all() and pruning.mask["b"] is None


def test_the_least_go_exactly_so_many_and_stay_away() -> None:
    p = np.array([[3.0, -1.0, 0.5, -4.0], [2.0, -0.1, 6.0, -5.0]])
    pruning = MagnitudePruning([p], 0.5, 1, 3, frequency=1)
    pruning.prune(0.25)
    assert p.tolist() == [[3, -1, 0, -4], [2, 0, 6, -5]]
    pruning.prune(0.5)
    assert p.tolist() == [[3, 0, 0, -4], [0, 0, 6, -5]] and pruning.sparsity == 0.5
    pruning.prune(0.5)
    assert np.count_nonzero(p) == 4
    pruning.prune(1.0)
    assert not p.any() and not pruning.mask[0].any()


def test_equal_weights_are_pruned_exactly_so_many() -> None:
    p = np.ones((10, 10), np.float32)
    MagnitudePruning(p, 0.5, 1, 3).prune(0.37)
    assert np.count_nonzero(p) == 63


@pytest.mark.parametrize(("scope", "counts"), [("layer", [50, 50]), ("global", [100, 0])])
def test_layer_by_layer_or_all_together(scope: str, counts: list[int], rng: np.random.Generator) -> None:
    p = [1 + rng.random((10, 10)), 10 + rng.random((10, 10)), np.ones(5)]
    pruning = MagnitudePruning(p, 0.5, 1, 3, scope=scope)
    pruning.prune(0.5)
    assert [100 - np.count_nonzero(a) for a in p[:2]] == counts and p[2].all()


def test_what_is_pruned_can_be_chosen(rng: np.random.Generator) -> None:
    p = {"first": rng.normal(size=(4, 4)), "last": rng.normal(size=(4, 4))}
    pruning = MagnitudePruning(p, 0.5, 1, 3, prune=lambda path, array: path == ("first",))
    pruning.prune(0.5)
    assert np.count_nonzero(p["first"]) == 8 and np.count_nonzero(p["last"]) == 16 and pruning.mask["last"] is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "complex64"])
def test_other_dtypes(dtype: str, rng: np.random.Generator) -> None:
    """Both parts of a complex number go together."""
    import ml_dtypes

    p = rng.normal(size=(8, 8)).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    p = p * (1 + 1j) if dtype == "complex64" else p
    pruning = MagnitudePruning(p, 0.5, 1, 3)
    opt = gpuopt.SGD(p, lr=0.01, mask=pruning.mask)
    pruning.prune(0.5)
    opt.step(np.ones_like(p))
    assert np.count_nonzero(p) == 32 and pruning.sparsity == 0.5


def test_the_schedule_is_the_papers() -> None:
    assert [cubic_sparsity(s, 0.8, 10, 20) for s in (0, 10, 20, 99)] == pytest.approx([0, 0, 0.8, 0.8])
    assert cubic_sparsity(15, 0.8, 10, 20, 0.4) == pytest.approx(0.8 - 0.4 / 8)
    p = np.random.default_rng(0).normal(size=(100, 10))
    pruning, seen = MagnitudePruning(p, 0.9, 3, 12, frequency=4), []
    for _ in range(14):
        pruning.step()
        seen.append(round(pruning.sparsity, 3))
    at = [cubic_sparsity(s, 0.9, 3, 12) for s in (7, 11, 12)]
    assert seen == pytest.approx([0] * 6 + at[:1] * 4 + at[1:2] + at[2:] * 3, abs=1e-3)


def train(epochs: int, sparsity: float) -> tuple[float, Any]:
    """(accuracy on the test images, parameters) of the demo's network, pruned between the second and eighth tenth of training."""
    problem = digits_mlp()
    steps, p = epochs * EPOCH, problem.params
    pruning = MagnitudePruning(p, sparsity, steps // 5, 4 * steps // 5) if sparsity else None
    opt = gpuopt.AdamW(p, lr=0.003, mask=pruning and pruning.mask)
    with one_blas_thread():
        for step in range(steps):
            opt.step(problem.loss(p, step)[1])
            if pruning is not None:
                pruning.step()
    _, test, _, labels = images()
    return digits.accuracy(p, test, labels, np), p


def test_nine_of_ten_weights_less_and_as_good_on_the_digits() -> None:
    dense, _ = train(30, 0)
    sparse, params = train(30, 0.9)
    for name in ("w1", "w2"):
        assert np.count_nonzero(params[name]) == params[name].size - round(0.9 * params[name].size)
    assert dense > 0.95 and sparse >= dense - 0.01


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sparsity": 1.0}, r"sparsity = 1.0: expected a number in \[0, 1\)"),
        ({"sparsity": "most"}, "sparsity = 'most'"),
        ({"begin_step": -1}, "begin_step = -1: expected a whole number, 0 or more"),
        ({"end_step": 1}, "end_step = 1: expected a whole number, 2 or more"),
        ({"frequency": 0}, "frequency = 0: expected a whole number, 1 or more"),
        ({"initial_sparsity": 0.95}, "initial_sparsity = 0.95: expected at most sparsity"),
        ({"scope": "row"}, "scope = 'row': expected one of 'layer', 'global'"),
        ({"prune": 3}, "prune = 3: expected a function"),
        ({"params": np.ones(3)}, "params: nothing to prune"),
        ({"params": []}, "params: expected at least one array"),
    ],
)
def test_what_is_refused(wrong: dict[str, Any], words: str) -> None:
    given = {"params": np.ones((3, 3)), "sparsity": 0.9, "begin_step": 1, "end_step": 10} | wrong
    with pytest.raises(gpuopt.InputError, match=words):
        training.MagnitudePruning(**given)


def test_a_share_that_is_none_is_refused() -> None:
    pruning = MagnitudePruning(np.ones((3, 3)), 0.5, 1, 3)
    with pytest.raises(gpuopt.InputError, match=r"sparsity = 1.5: expected a number in \[0, 1\]"):
        pruning.prune(1.5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"step": -1}, r"step = -1: expected a number in \[0, inf\)"),
        ({"sparsity": 1.0}, "sparsity = 1.0"),
        ({"begin_step": 1.5}, "begin_step = 1.5"),
        ({"end_step": 5}, "end_step = 5: expected a whole number, 6 or more"),
        ({"initial_sparsity": 0.9}, "initial_sparsity = 0.9: expected at most sparsity"),
    ],
)
def test_a_schedule_that_is_none_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(gpuopt.InputError, match=words):
        cubic_sparsity(**({"step": 7, "sparsity": 0.8, "begin_step": 5, "end_step": 9} | wrong))


def test_it_goes_on_from_what_was_saved(rng: np.random.Generator) -> None:
    """In an optimizer that has its masks already: bits as if nothing had been saved."""
    start, grads = {"w": rng.normal(size=(8, 6)), "b": rng.normal(size=6)}, rng.normal(size=(12, 8, 6))

    def made(p: Any) -> tuple[MagnitudePruning, Any]:
        pruning = MagnitudePruning(p, 0.8, 2, 11, frequency=3)
        return pruning, gpuopt.AdamW(p, lr=0.05, mask=pruning.mask)

    def run(p: Any, pruning: MagnitudePruning, opt: Any, steps: range) -> None:
        for k in steps:
            opt.step({"w": grads[k], "b": grads[k, 0]})
            pruning.step()

    whole = {name: value.copy() for name, value in start.items()}
    run(whole, *made(whole), range(12))
    first = {name: value.copy() for name, value in start.items()}
    pruning, opt = made(first)
    run(first, pruning, opt, range(6))
    saved = pickle.loads(pickle.dumps((pruning.state_dict(), opt.state_dict(), first)))
    pruning.prune(1.0)  # what was saved is a copy
    later, opt = made(saved[2])
    later.load_state_dict(saved[0])
    opt.load_state_dict(saved[1])
    assert later.steps == 6 and 0 < later.sparsity < 0.8
    run(saved[2], later, opt, range(6, 12))
    assert all(np.array_equal(saved[2][name], whole[name]) for name in whole) and later.sparsity > 0.79


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (3, r"state_dict: found int: expected what state_dict\(\) returned"),
        ({"masks": [None]}, "state_dict: steps is missing"),
        ({"steps": -1, "masks": [None]}, "state_dict: steps = -1: expected a whole number, 0 or more"),
        ({"steps": 1, "masks": 3}, "state_dict: masks: found int: expected a list of 1"),
        ({"steps": 1, "masks": []}, "state_dict: masks: found 0 arrays: expected a list of 1"),
        ({"steps": 1, "masks": [np.ones(3, bool)]}, r"state_dict: masks\[0\]: shape \(3,\): expected \(3, 3\)"),
        ({"steps": 1, "masks": [None]}, r"state_dict: masks\[0\]: shape None: expected \(3, 3\)"),
    ],
)
def test_what_was_never_saved_is_refused(wrong: Any, words: str) -> None:
    pruning = MagnitudePruning(np.arange(9.0).reshape(3, 3), 0.5, 1, 3)
    pruning.prune(0.5)
    with pytest.raises(gpuopt.InputError, match=words):
        pruning.load_state_dict(wrong)
    assert pruning.steps == 0 and int(pruning.mask.sum()) == 5
