"""The training of `gpuopt.sklearn`: gradients, minibatches, when it stops and what it keeps, Ctrl-C, and going on."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

import gpuopt
from gpuopt.sklearn import LinearRegressor, LogisticClassifier, MLPClassifier, MLPRegressor, batches, losses, training
from gpuopt.sklearn.batches import Augmentation, Batches, Data, automatic_size
from gpuopt.sklearn.network import ACTIVATIONS, Network, initial

pytestmark = pytest.mark.once

Array = np.ndarray[Any, Any]


def digits(rows: int = 400) -> tuple[Array, Array]:
    X, y = load_digits(return_X_y=True)
    return StandardScaler().fit_transform(X)[:rows], y[:rows]


# ------------------------------------------------------------------------------------------------- arithmetic

LOSSES = {"squared": (losses.SQUARED, 2), "logistic": (losses.LOGISTIC, 1), "softmax": (losses.SOFTMAX, 3)}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dropout", [False, True])
def test_gradients_agree_with_differences(activation: str, name: str, dropout: bool, rng: np.random.Generator) -> None:
    loss, outputs = LOSSES[name]
    network = Network(np, *initial((4, 6, 5, outputs), activation, True, "float64", rng), activation)
    for bias in network.biases:
        bias[...] = rng.normal(size=bias.shape)
    x, y = rng.normal(size=(7, 4)), rng.dirichlet(np.ones(max(outputs, 2)), 7)[:, :outputs]
    masks = [(rng.random((7, n)) < 0.7) / 0.7 for n in (6, 5)] if dropout else []

    def value() -> float:
        return float(loss.rows(np, network.forward(x, masks), y).sum())

    z = network.forward(x, masks)
    loss.rows(np, z, y)
    network.backward(x, z, masks, 0.7 if dropout else 1.0)
    for array, gradient in zip(network.parameters, [g.copy() for g in network.gradients], strict=True):
        direction, size = rng.normal(size=array.shape), 1e-6
        array += size * direction
        above = value()
        array -= 2 * size * direction
        below = value()
        array += size * direction
        assert (above - below) / (2 * size) == pytest.approx((gradient * direction).sum(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ["logistic", "softmax"])
def test_losses_of_huge_outputs_are_finite(name: str) -> None:
    loss, outputs = LOSSES[name]
    z = np.array([[1e4] * (outputs - 1) + [-1e4], [-1e4] * (outputs - 1) + [1e4]], np.float32)
    target = np.full_like(z, 1 / max(outputs, 2))
    assert np.isfinite(loss.outputs(np, z)).all()
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(loss.rows(np, z, target)).all() and np.isfinite(z).all()


def test_a_step_makes_no_new_memory_for_activations_or_gradients(rng: np.random.Generator) -> None:
    """Gradients stay where they are, which is what makes the optimizer's step short."""
    network = Network(np, *initial((4, 6, 2), "relu", True, "float32", rng), "relu")
    x = rng.normal(size=(7, 4)).astype(np.float32)
    seen = set()
    for rows in (7, 5, 7):
        z = network.forward(x[:rows])
        network.backward(x[:rows], z)
        seen.add((z.ctypes.data, *(g.ctypes.data for g in network.gradients)))
    assert len(seen) == 1


# ------------------------------------------------------------------------------------------------- minibatches


def passes(made: Batches, count: int) -> list[Array]:
    """First features of all rows, in the order of each pass."""
    return [np.concatenate([x[:, 0].copy() for x, _, _ in made]) for _ in range(count)]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", ["float32", "float64", "sparse"])
def test_a_pass_has_every_row_once_with_its_target_and_weight(
    large: bool, kind: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "NEAR", 0 if large else 1 << 40)
    monkeypatch.setattr(batches, "RUNS", 1)
    n = 103
    numbers = np.arange(1, n + 1.0)
    x = np.stack([numbers, -numbers], axis=1)
    x = sparse.csr_array(x) if kind == "sparse" else x.astype(kind)
    made = Batches(Data(x, 2 * numbers[:, None], 3 * numbers), 10, rng)
    assert len(made) == 11
    for _ in range(2):
        for inputs, y, weights in made:
            assert inputs.dtype == np.float32 and inputs.flags.c_contiguous and len(inputs) in (9, 10)
            assert np.array_equal(y, 2 * inputs[:, :1]) and np.array_equal(weights, 3 * inputs[:, :1])
    first, second = passes(made, 2)
    assert not np.array_equal(first, second) and not np.array_equal(first, numbers)
    assert np.array_equal(np.sort(first), numbers) and np.array_equal(np.sort(second), numbers)
    together = np.mean(np.diff(first) == 1)  # rows that follow each other as they lie
    assert together > 0.8 if large and kind != "sparse" else together < 0.1


def test_runs_of_rows_are_in_random_order_and_none_is_left_out(rng: np.random.Generator) -> None:
    for count, run in ((103, 8), (8, 8), (5, 8), (64, 1)):
        order = batches.shuffled(count, run, rng)
        assert np.array_equal(np.sort(order), np.arange(count))
        inside = np.flatnonzero(np.diff(order) != 1) + 1
        assert all(order[k] % run == 0 for k in inside), "only whole runs begin elsewhere"


def test_without_shuffle_rows_come_as_they_lie_and_are_not_copied(rng: np.random.Generator) -> None:
    x = np.arange(50, dtype=np.float32).reshape(-1, 1)
    made = Batches(Data(x, x), 8, rng, shuffle=False)
    assert np.array_equal(passes(made, 1)[0], x[:, 0]) and all(np.shares_memory(b[0], x) for b in made)


@pytest.mark.parametrize("option", [{"input_noise": 0.5}, {"mixup": 0.4}])
def test_augmentation_leaves_the_data_alone(option: dict[str, float], rng: np.random.Generator) -> None:
    x = rng.normal(3, 2, size=(40_000, 2)).astype(np.float32)
    y = (x[:, 0] > 3).astype(np.intp)
    kept = x.copy()
    made = Batches(Data(x, y, None, 3), 40_000, rng, augmentation=Augmentation(**option))
    ((inputs, shares, _),) = list(made)
    assert np.array_equal(x, kept) and not np.array_equal(inputs, x)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    if "input_noise" in option:
        np.testing.assert_allclose((inputs - x).std(axis=0), 0.5 * x.std(axis=0), rtol=0.02)
    else:
        assert 0 < shares.max(axis=1).min() < 1, "two classes in their shares"


def test_rows_of_a_minibatch() -> None:
    assert [automatic_size(n, False) for n in (5, 64, 65, 1437, 50_000, 10**6)] == [5, 64, 32, 32, 64, 512]
    assert [automatic_size(n, True) for n in (1437, 50_000, 10**6)] == [32, 512, 8192]


@pytest.mark.parametrize("read", ["float32", "float64"])
@pytest.mark.parametrize("written", ["float32", "float64"])
def test_gathered_rows_are_those_asked_for_rounded_to_nearest(
    read: str, written: str, rng: np.random.Generator
) -> None:
    array = np.asfortranarray(rng.normal(size=(50, 37)) * 10.0 ** rng.integers(-44, 37, (50, 37))).astype(read)
    gathered = batches.Gathered(array, written, 16)
    for rows in (rng.integers(0, 50, 16), np.array([49, 0])):
        found = gathered.take(rows)
        with np.errstate(over="ignore"):
            expected = array[rows].astype(written)
        assert found.dtype == written and np.array_equal(found, expected) and np.shares_memory(found, gathered.out)


# ------------------------------------------------------------------------------------------------- stopping


def scored(scores: list[float], **options: Any) -> tuple[training.Record, list[Array], Network]:
    """A training whose validation gives these scores; and the weights of every pass."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3))
    network = Network(np, *initial((3, 1), "identity", True, "float64", rng), "identity")
    weights: list[Array] = []
    given = iter(scores)

    def validate() -> float:
        weights.append(network.weights[0].copy())
        return next(given)

    plan = training.Plan(passes=len(scores), validate=validate, **options)
    made = Batches(Data(x, x[:, :1] * 2), 5, rng, dtype="float64")
    optimizer = gpuopt.GD(network.parameters, lr=0.05)
    return training.train(network, optimizer, losses.SQUARED, made, plan), weights, network


@pytest.mark.parametrize(
    ("scores", "tol", "patience", "stops", "best"),
    [
        ([0.1, 0.5, 0.4, 0.3, 0.2, 0.9], 0.0, 3, 5, 1),
        ([0.1, 0.5, 0.4, 0.3, 0.6, 0.5, 0.5], 0.0, 3, 7, 4),
        ([0.5, 0.51, 0.52, 0.53, 0.9], 0.05, 2, 3, 2),  # better, but not by more than tol: kept, and yet stale
        ([0.3, 0.2, 0.1], None, 1, 3, 0),
        ([-5.0, -4.0, -6.0, -6.0], 0.0, 2, 4, 1),
    ],
)
def test_it_stops_where_the_scores_say_and_keeps_the_best_bits(
    scores: list[float], tol: float | None, patience: int, stops: int, best: int
) -> None:
    record, weights, network = scored(scores, tol=tol, patience=patience)
    assert record.passes == stops and record.scores == scores[:stops] and record.best == scores[best]
    assert np.array_equal(network.weights[0], weights[best])
    assert not np.array_equal(weights[best], weights[-1]) or best == stops - 1


def test_what_is_validated_are_the_averaged_weights(rng: np.random.Generator) -> None:
    x = rng.normal(size=(20, 3))
    network = Network(np, *initial((3, 1), "identity", True, "float64", rng), "identity")
    optimizer = gpuopt.ScheduleFreeSGD(network.parameters, lr=0.1)
    modes: list[bool] = []

    def validate() -> float:
        modes.append(optimizer.param_groups[0]["train_mode"])
        return 0.0

    made = Batches(Data(x, x[:, :1]), 5, rng, dtype="float64")
    training.train(network, optimizer, losses.SQUARED, made, training.Plan(passes=3, validate=validate))
    assert modes == [False] * 3


def held_out_rows(model: Any, X: Array) -> list[Array]:
    """The matrices that a fit of a copy of this model validates on."""
    seen = []
    original = type(model)._scorer
    made = type(model)(**model.get_params())
    made._scorer = lambda part: seen.append(part) or original(made, part)
    made.fit(X, model._y)
    return seen


@pytest.mark.parametrize("kind", [MLPClassifier, LogisticClassifier, MLPRegressor, LinearRegressor])
@pytest.mark.parametrize("optimizer", ["adam", "schedulefreeadamw"])
def test_early_stopping_follows_the_validation_curve(kind: type, optimizer: str) -> None:
    """And the model that is left has the best score on the rows that were held out."""
    X, y = digits()
    model = kind(optimizer=optimizer, early_stopping=True, patience=3, tol=0.0, max_iter=60, random_state=0)
    model._y = y
    seen = held_out_rows(model, X)[0]
    model.fit(X, y)
    scores = model.validation_scores_
    best = int(np.argmax(scores))
    assert model.n_iter_ == len(scores) == min(best + 1 + 3, 60) and model.best_validation_score_ == scores[best]
    truth = model.classes_[seen.y] if hasattr(model, "classes_") else seen.y * model._deviation + model._centre
    assert len(seen) == 40 and model.score(seen.x, truth) == pytest.approx(scores[best], rel=1e-5)


def test_a_constant_rate_stops_by_the_training_loss_and_a_schedule_does_not() -> None:
    X, y = digits(100)
    options = {"tol": 1e-2, "patience": 2, "max_iter": 80, "random_state": 0}
    assert MLPClassifier(lr=0.01, **options).fit(X, y).n_iter_ < 80
    assert MLPClassifier(lr="cosine", **options).fit(X, y).n_iter_ == 80
    assert MLPClassifier(lr=0.01, **options | {"tol": None}).fit(X, y).n_iter_ == 80


class Interrupting:
    """A rate that sends this process the signal of Ctrl-C at one step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, step: int) -> float:
        if step == self.at:
            before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.signal(signal.SIGINT, before)
        return 0.01


@pytest.mark.parametrize("early", [False, True])
def test_ctrl_c_leaves_what_was_found(early: bool) -> None:
    X, y = digits()
    per_pass = -(-(360 if early else 400) // 32)
    options = {"batch_size": 32, "random_state": 0, "early_stopping": early, "tol": None}
    with pytest.warns(UserWarning, match="interrupted after 5 whole passes; the (best|last) weights") as caught:
        model = MLPClassifier(lr=Interrupting(5 * per_pass + 3), max_iter=50, **options).fit(X, y)
    assert caught[0].filename == __file__, "where fit was called"
    assert model.n_iter_ == 5 == len(model.loss_curve_) and model.score(X, y) > 0.8
    if early:
        whole = MLPClassifier(lr=Interrupting(-1), max_iter=5, **options).fit(X, y)
        assert all(np.array_equal(a, b) for a, b in zip(model.coefs_, whole.coefs_, strict=True))


def test_ctrl_c_in_the_first_pass_leaves_a_fitted_model() -> None:
    X, y = digits()
    with pytest.warns(UserWarning, match="interrupted after 0 whole passes"):
        model = LogisticClassifier(lr=Interrupting(2), early_stopping=True).fit(X, y)
    assert model.predict(X).shape == y.shape and model.best_validation_score_ is None


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("kind", [MLPRegressor, LinearRegressor])
def test_a_loss_that_is_no_number_is_an_error(kind: type) -> None:
    X, y = digits()
    with pytest.raises(gpuopt.InputError, match=r"training diverged: the loss of pass \d+ is (nan|inf).*lower lr"):
        kind(optimizer="gd", lr=1e6, max_iter=100).fit(X, y)


# ------------------------------------------------------------------------------------------------- going on


def test_partial_fit_is_a_fit_in_pieces() -> None:
    X, y = digits()
    whole = MLPClassifier(lr=0.01, max_iter=4, random_state=0, tol=None).fit(X, y)
    pieces = MLPClassifier(lr=0.01, random_state=0)
    for _ in range(4):
        pieces.partial_fit(X, y, classes=np.arange(10))
    assert all(np.array_equal(a, b) for a, b in zip(whole.coefs_, pieces.coefs_, strict=True))
    assert pieces.n_iter_ == 4 and pieces.loss_curve_ == whole.loss_curve_


def test_training_goes_on_from_coefficients_that_were_changed() -> None:
    X, y = digits()
    target = y * 7.0 + 100
    for model, values in ((MLPClassifier(max_iter=5), y), (MLPRegressor(max_iter=5), target)):
        model.fit(X, values)
        before = model.predict(X)
        for array in [*model.coefs_, *model.intercepts_]:
            array[...] = 0
        assert not np.array_equal(model.predict(X), before), "predictions are those of the coefficients"
        model.partial_fit(X, values)
        assert np.abs(model.coefs_[0]).max() < 0.1


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor, LinearRegressor])
@pytest.mark.parametrize("optimizer", ["adam", "schedulefreeadamw"])
def test_warm_start_begins_where_the_last_fit_ended(kind: type, optimizer: str) -> None:
    X, y = digits()
    model = kind(optimizer=optimizer, max_iter=20, warm_start=True, random_state=0).fit(X, y)
    first = model.loss_curve_[0]
    assert model.fit(X, y).loss_curve_[0] < 0.7 * first
    assert model.set_params(warm_start=False).fit(X, y).loss_curve_[0] == first
    assert model.n_iter_ == 20


def test_a_progress_bar(capfd: pytest.CaptureFixture[str]) -> None:
    X, y = digits(100)
    LogisticClassifier(max_iter=3, verbose=True).fit(X, y)
    assert "LogisticClassifier" in (err := capfd.readouterr().err) and "3/3" in err
    LogisticClassifier(max_iter=3).fit(X, y)
    assert capfd.readouterr().err == ""


def test_arithmetic_asks_another_namespace_for_everything() -> None:
    """As it would ask CuPy: none of NumPy's functions is called by its own name, and arrays go there and back."""
    asked: set[str] = set()

    class Space(SimpleNamespace):
        def __getattr__(self, name: str) -> Any:
            asked.add(name)
            return getattr(np, name)

    X, y = digits(100)
    space = Space()
    rng = np.random.default_rng(0)
    network = Network(space, *initial((64, 5, 10), "relu", True, "float32", rng), "relu")
    made = Batches(Data(X, y, np.ones(100), 10), 20, rng, xp=space, augmentation=Augmentation(0.1, 0.1))
    plan = training.Plan(passes=3, dropout=0.2)
    record = training.train(network, gpuopt.Adam(network.parameters, lr=0.01), losses.SOFTMAX, made, plan)
    assert record.losses[-1] < record.losses[0]
    assert {"matmul", "maximum", "exp", "log", "asarray", "empty", "ones", "empty_like"} <= asked
