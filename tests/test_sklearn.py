"""`gpuopt.sklearn` against scikit-learn: its tools, and the optima that its own solvers find."""

from __future__ import annotations

import pickle
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, make_classification, make_regression
from sklearn.ensemble import BaggingClassifier, VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401  makes the next import possible
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import Lasso, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gpuopt
import gpuopt.sklearn
from gpuopt import schedules
from gpuopt.sklearn import LinearRegressor, LogisticClassifier, MLPClassifier, MLPRegressor

ALL = (LinearRegressor, LogisticClassifier, MLPClassifier, MLPRegressor)
CLASSIFIERS = (LogisticClassifier, MLPClassifier)


def data(classes: int, rows: int = 300) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Standardized, classes or numbers, the same in every run."""
    if classes:
        X, y = make_classification(rows, 8, n_informative=5, n_classes=classes, random_state=0)
    else:
        X, y = make_regression(rows, 8, noise=5.0, random_state=0)
    return StandardScaler().fit_transform(X), y


def suited(kind: type) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return data(3 if kind in CLASSIFIERS else 0)


def arrays_of(model: Any) -> list[Any]:
    return [*model.coefs_, *model.intercepts_] if hasattr(model, "coefs_") else [model.coef_, model.intercept_]


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(arrays_of(a), arrays_of(b), strict=True))


# ------------------------------------------------------------------------------------------------- the optima


def test_ridge_has_the_same_coefficients() -> None:
    X, y = data(0)
    ours = LinearRegressor(l2=0.3, batch_size=300, max_iter=1500, dtype="float64").fit(X, y)
    theirs = Ridge(alpha=0.3 * len(y)).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-6)
    assert ours.intercept_ == pytest.approx(theirs.intercept_)


def test_lasso_has_the_same_zeros_and_coefficients() -> None:
    """Whatever the scale of the targets, which training does not see."""
    X, y = make_regression(200, 12, n_informative=4, noise=3.0, random_state=1)
    for factor in (0.01, 100.0):
        options = {"optimizer": "gd", "lr": 0.3, "tol": None, "batch_size": 200, "max_iter": 800, "dtype": "float64"}
        ours = LinearRegressor(l1=factor * 2, **options).fit(X, factor * y)
        theirs = Lasso(alpha=factor * 2, tol=1e-10).fit(X, factor * y)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-6, atol=1e-6 * factor)
        assert 0 < np.count_nonzero(ours.coef_ == 0) == np.count_nonzero(theirs.coef_ == 0)


def test_lasso_of_several_numbers_has_one_penalty_for_all() -> None:
    X, y = make_regression(200, 6, n_informative=3, n_targets=2, noise=3.0, random_state=1)
    y = y * [1, 10]
    options = {"optimizer": "gd", "lr": 0.3, "tol": None, "batch_size": 200, "max_iter": 800, "dtype": "float64"}
    ours = LinearRegressor(l1=30.0, **options).fit(X, y)
    np.testing.assert_allclose(ours.coef_, Lasso(alpha=30.0, tol=1e-10).fit(X, y).coef_, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("intercept", [True, False])
def test_logistic_regression_has_the_same_coefficients(classes: int, intercept: bool) -> None:
    X, y = data(classes)
    weights = np.linspace(0.5, 2, len(y))
    descent = {"optimizer": "gd", "lr": 0.5, "tol": None, "batch_size": 300, "max_iter": 3000}
    ours = LogisticClassifier(
        l2=0.01, dtype="float64", **descent, fit_intercept=intercept, class_weight="balanced"
    ).fit(X, y, weights)
    theirs = LogisticRegression(
        C=1 / (0.01 * weights.sum()), tol=1e-10, max_iter=1000, fit_intercept=intercept, class_weight="balanced"
    ).fit(X, y, weights)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-5)


def test_several_numbers_at_once_are_what_each_alone_is() -> None:
    X, y = make_regression(200, 6, n_targets=3, noise=1.0, random_state=0)
    y = y * [1, 10, 100] + [0, 5, -700]
    options = {"batch_size": 200, "max_iter": 1500, "dtype": "float64"}
    together = LinearRegressor(**options).fit(X, y)
    assert together.coef_.shape == (3, 6) and together.predict(X).shape == y.shape
    for k in range(3):
        alone = LinearRegressor(**options).fit(X, y[:, k])
        np.testing.assert_allclose(together.coef_[k], alone.coef_, rtol=1e-4)
    assert MLPRegressor(random_state=0, max_iter=50).fit(X, y).score(X, y) > 0.9


def test_sparse_data_give_the_numbers_of_dense_ones() -> None:
    X, y = data(3)
    X[np.abs(X) < 1] = 0
    dense = MLPClassifier(random_state=0, max_iter=3, input_noise=0.1, mixup=0.2).fit(X, y)
    thin = MLPClassifier(random_state=0, max_iter=3, input_noise=0.1, mixup=0.2).fit(sparse.csr_array(X), y)
    for a, b in zip(arrays_of(dense), arrays_of(thin), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(dense.predict_proba(X), thin.predict_proba(sparse.csr_matrix(X)), rtol=1e-6)


# ------------------------------------------------------------------------------------------------- its tools


def test_searches_over_a_pipeline() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), LogisticClassifier(max_iter=5, random_state=0))
    grid = {"logisticclassifier__optimizer": ["adam", "lion"], "logisticclassifier__l2": [0.0, 1e-3]}
    search = GridSearchCV(pipeline, grid, cv=3, error_score="raise").fit(X, y)
    assert search.best_score_ > 0.95 and len(search.cv_results_["params"]) == 4
    halving = HalvingGridSearchCV(
        MLPClassifier((16,), random_state=0),
        {"activation": ["relu", "tanh"], "dropout": [0.0, 0.2]},
        resource="max_iter",
        max_resources=8,
        min_resources=2,
        factor=2,
        cv=2,
        error_score="raise",
        random_state=0,
    ).fit(StandardScaler().fit_transform(X), y)
    assert halving.best_score_ > 0.9 and halving.best_estimator_.n_iter_ == 8


def test_ensembles() -> None:
    X, y = data(3)
    bag = BaggingClassifier(MLPClassifier((16,), max_iter=10), n_estimators=3, random_state=0).fit(X, y)
    vote = VotingClassifier([("a", LogisticClassifier()), ("b", MLPClassifier(max_iter=20))], voting="soft").fit(X, y)
    assert bag.score(X, y) > 0.6 and vote.score(X, y) > 0.6


def test_interpretation() -> None:
    X, y = load_diabetes(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    model = MLPRegressor((16,), random_state=0, max_iter=30).fit(X, y)
    importance = permutation_importance(model, X, y, n_repeats=3, random_state=0).importances_mean
    assert {2, 8} & set(np.argsort(importance)[-3:]), "body mass and s5 matter most"
    curve = partial_dependence(model, X, [2], grid_resolution=5)["average"][0]
    assert curve[-1] > curve[0]


@pytest.mark.parametrize("kind", ALL)
def test_cross_validation_clone_and_pickle(kind: type) -> None:
    X, y = suited(kind)
    model = kind(max_iter=5, random_state=0).fit(X, y)
    assert cross_val_score(clone(model).set_params(max_iter=20), X, y, cv=3).mean() > 0.5
    assert same(clone(model).fit(X, y), model), "the same seed gives the same bits"
    assert not same(clone(model).set_params(random_state=1).fit(X, y), model)
    again = pickle.loads(pickle.dumps(model))
    assert same(again, model) and np.array_equal(again.predict(X), model.predict(X))
    assert same(again.partial_fit(X, y), model.partial_fit(X, y)), "with the states of the optimizer"


# ------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("name", gpuopt.optimizers())
def test_every_optimizer_trains(name: str) -> None:
    """Better than nothing at its own rate, or that of the table; prodigy finds its own late, sophiag sees no curvature."""
    X, y = data(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = MLPClassifier((8,), optimizer=name, max_iter=8, random_state=0, backend="numpy").fit(X, y)
    assert model.optimizer_.rule.name == name and np.isfinite(model.predict_proba(X)).all()
    assert model.loss_curve_[-1] < model.loss_curve_[0]


@pytest.mark.parametrize("lr", [*sorted(gpuopt.sklearn.rates.NAMES), None, 0.01, schedules.cosine(0.01, 100)])
def test_every_rate_trains(lr: Any) -> None:
    X, y = data(2)
    model = LogisticClassifier(lr=lr, max_iter=20, random_state=0).fit(X, y)
    assert model.score(X, y) > 0.7


def test_a_named_schedule_ends_where_it_says() -> None:
    X, y = data(2)
    falling = LogisticClassifier(lr="linear", optimizer_options={"lr": 1.0}, max_iter=100).fit(X, y)
    constant = LogisticClassifier(lr="constant", optimizer_options={"lr": 0.5}, max_iter=3).fit(X, y)
    assert 0 < falling.optimizer_.param_groups[0]["lr"] < 0.02
    assert constant.optimizer_.param_groups[0]["lr"] == 0.5
    assert falling.partial_fit(X, y).optimizer_.param_groups[0]["lr"] == 1.0


def test_penalties_are_options_of_the_optimizer_and_leave_intercepts_alone() -> None:
    X, y = data(0)
    weights, biases = LinearRegressor(l1=0.1, l2=0.2, max_iter=1).fit(X, y).optimizer_.param_groups
    assert (weights["weight_decay"], weights["weight_decay_mode"], biases["weight_decay"]) == (0.2, "coupled", 0.0)
    assert weights["l1"] == pytest.approx(0.1 / y.std()) and biases["l1"] == 0
    plain = MLPRegressor(optimizer="adamw", l2=0.0, max_iter=1).fit(X, y).optimizer_.param_groups
    assert len(plain) == 1 and plain[0]["weight_decay"] == 0, "no decay that nobody asked for"
    own = MLPRegressor(optimizer="adamw", l2=0.0, optimizer_options={"weight_decay": 0.1}, max_iter=1).fit(X, y)
    assert own.optimizer_.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("option", [{"dropout": 0.5}, {"input_noise": 0.5}, {"mixup": 1.0}, {"shuffle": False}])
def test_random_options_change_training_and_repeat_with_the_seed(option: dict[str, Any]) -> None:
    X, y = data(3)
    runs = [MLPClassifier(max_iter=3, random_state=0, **option).fit(X, y) for _ in range(2)]
    assert same(*runs)
    assert not same(runs[0], MLPClassifier(max_iter=3, random_state=0).fit(X, y))


def test_the_gpu_is_used_where_it_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data come from the host, so that a GPU that is there is no reason."""
    asked: list[str] = []
    monkeypatch.setattr(
        gpuopt.sklearn.base.spaces, "choose", lambda name, who: asked.append(name) or SimpleNamespace(xp=np)
    )
    X, y = data(2)
    monkeypatch.delenv("GPUOPT_BACKEND", raising=False)
    LogisticClassifier(max_iter=1).fit(X, y)
    assert not asked
    LogisticClassifier(max_iter=1, backend="numpy").fit(X, y)
    monkeypatch.setenv("GPUOPT_BACKEND", "numba")
    LogisticClassifier(max_iter=1).fit(X, y)
    assert asked == ["numpy", "numba"]


def test_a_rule_of_ones_own() -> None:
    X, y = data(2)
    model = MLPClassifier(optimizer=gpuopt.Lion(np.ones(1)).rule, lr=1e-3, random_state=0, max_iter=5).fit(X, y)
    assert same(model, MLPClassifier(optimizer="lion", lr=1e-3, random_state=0, max_iter=5).fit(X, y))


BAD = [
    ({"optimizer": "adm"}, "unknown optimizer 'adm'.*did you mean"),
    ({"optimizer": 3}, "optimizer = 3: expected a name or a rule"),
    ({"lr": "cosin"}, "lr: unknown schedule 'cosin'.*did you mean 'cosine'"),
    ({"lr": -1.0}, r"lr = -1.0: expected a number in \[0, inf\)"),
    ({"lr": 0.1, "optimizer_options": {"lr": 0.1}}, "expected one of them"),
    ({"optimizer_options": {"beta": 1}}, "unknown option 'beta'"),
    ({"optimizer_options": {"l1": 1}}, "have arguments of their own"),
    ({"optimizer_options": 3}, "optimizer_options = 3: expected a dict"),
    ({"l2": 0.1, "optimizer_options": {"weight_decay": 0.1}}, "expected one of them"),
    ({"batch_size": 0}, "batch_size .* = 0: expected a whole number"),
    ({"max_iter": 0}, "max_iter = 0: expected a whole number, 1 or more"),
    ({"patience": 1.5}, "patience = 1.5: expected a whole number"),
    ({"l1": -1}, r"l1 = -1: expected a number in \[0, inf\)"),
    ({"dropout": 1.0}, r"dropout = 1.0: expected a number in \[0, 1\)"),
    ({"input_noise": "a"}, "input_noise = 'a': expected a number"),
    ({"mixup": float("nan")}, "mixup = nan"),
    ({"validation_fraction": 1.0}, "validation_fraction = 1.0"),
    ({"tol": -1}, "tol = -1"),
    ({"early_stopping": "yes"}, "early_stopping = 'yes': expected True or False"),
    ({"activation": "gelu"}, "unknown activation 'gelu'"),
    ({"dtype": "float16"}, "unknown dtype 'float16'"),
    ({"backend": "tpu"}, "unknown backend 'tpu'"),
    ({"hidden_layer_sizes": (3, 0)}, "hidden_layer_sizes = 0: expected a whole number"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=[next(iter(given)) for given, _ in BAD])
def test_bad_arguments_are_named(given: dict[str, Any], message: str) -> None:
    X, y = data(2)
    with pytest.raises(gpuopt.InputError, match=message):
        MLPClassifier(**given).fit(X, y)


def test_bad_calls_are_named() -> None:
    X, y = data(3)
    with pytest.raises(gpuopt.InputError, match="one class"):
        LogisticClassifier().fit(X, np.zeros(len(y)))
    with pytest.raises(gpuopt.InputError, match="class 2 is none of"):
        LogisticClassifier().partial_fit(X, y, classes=[0, 1])
    with pytest.raises(gpuopt.InputError, match=r"classes = .*expected those of the first call"):
        LogisticClassifier().partial_fit(X, y).partial_fit(X, y, classes=[0, 1, 2, 3])
    with pytest.raises(gpuopt.InputError, match="early_stopping=False"):
        LogisticClassifier(early_stopping=True).partial_fit(X, y)
    with pytest.raises(gpuopt.InputError, match="layers of shapes"):
        MLPClassifier((8,), warm_start=True, max_iter=1).fit(X, y).set_params(hidden_layer_sizes=(9,)).fit(X, y)
    with pytest.raises(gpuopt.InputError, match="'balanced' in a call without rows of every class"):
        LogisticClassifier(class_weight="balanced").partial_fit(X[y < 2], y[y < 2], classes=[0, 1, 2])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(gpuopt.GpuoptError, match=r"scikit-learn.*python -m pip install '\.\[sklearn\]'"):
        importlib.reload(gpuopt.sklearn)
