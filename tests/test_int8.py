"""`gpuopt.training.quantize`: exact scales, errors of half a scale, accuracy on the digits, estimators, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import gpuopt
from gpuopt.demos import digits
from gpuopt.training import QuantizedArray, dequantize, quantize
from test_pruning import train
from training_problems import images


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scales_are_exact_and_errors_at_most_half_of_one(dtype: type, axis: int, rng: np.random.Generator) -> None:
    w = rng.normal(size=(30, 20)).astype(dtype)
    found = quantize(w, axis=axis)
    others = 1 - axis % 2
    assert found.codes.dtype == np.int8 and found.scale.dtype == dtype
    np.testing.assert_array_equal(found.scale, abs(w).max(others, keepdims=True) / dtype(127))
    assert (abs(found.codes.astype(int)).max(others) == 127).all(), "nothing is cut off and nothing wasted"
    error = abs(found.dequantize().astype(float) - w.astype(float))
    assert (error <= 0.5 * found.scale.astype(float) + abs(w.astype(float)) * np.finfo(dtype).eps).all()
    assert found.nbytes == w.size + found.scale.size * w.itemsize


def test_it_is_symmetric_and_zeros_stay_zeros() -> None:
    w = np.array([[1.0, 0.0, 0.0], [-0.3, 0.0, 1e-320], [0.7, 0.0, 0.0]])
    one, other = quantize(w), quantize(-w)
    np.testing.assert_array_equal(one.codes, -other.codes)
    np.testing.assert_array_equal(one.dequantize()[:, 1], 0)
    assert np.isfinite(one.dequantize()).all()


def test_containers_keep_their_form_and_biases(rng: np.random.Generator) -> None:
    given = {"layers": [rng.normal(size=(4, 3)), rng.normal(size=3)], "kernel": rng.normal(size=(5, 2, 3))}
    found = quantize(given)
    assert isinstance(found["layers"][0], QuantizedArray) and found["layers"][1] is given["layers"][1]
    assert found["kernel"].scale.shape == (1, 1, 3)
    back = dequantize(found)
    assert back["layers"][1] is given["layers"][1]
    np.testing.assert_allclose(back["kernel"], given["kernel"], atol=found["kernel"].scale.max() / 2)


def test_on_the_digits_within_half_a_percent() -> None:
    accuracy, params = train(10, 0)
    _, test, _, labels = images()
    kept = {name: a.tobytes() for name, a in params.items()}
    codes = quantize(params)
    assert {name: a.tobytes() for name, a in params.items()} == kept, "what is given stays as it is"
    assert digits.accuracy(dequantize(codes), test, labels, np) >= accuracy - 0.005
    assert codes["w1"].nbytes < params["w1"].nbytes / 3.5


@pytest.mark.parametrize("kind", ["network", "linear", "linear with one output"])
def test_a_fitted_estimator(kind: str) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    train_x, test_x, y, y_test = images()
    if kind == "linear with one output":
        y, y_test = y > 4, y_test > 4
    make = MLPClassifier(max_iter=30, random_state=0) if kind == "network" else LogisticRegression(max_iter=200)
    with pytest.warns(UserWarning) if kind == "network" else np.errstate():
        fitted = make.fit(train_x, y)
    small = quantize(fitted)
    assert small is not fitted and small.score(test_x, y_test) >= fitted.score(test_x, y_test) - 0.005
    name = "coefs_" if kind == "network" else "coef_"
    assert not np.array_equal(getattr(small, name)[0], getattr(fitted, name)[0])
    assert all(q.codes.dtype == np.int8 for q in small.quantized_coefs_)
    if kind != "network":
        assert small.coef_.shape == fitted.coef_.shape and len(small.quantized_coefs_[0].scale) == len(fitted.coef_)


def test_what_is_refused() -> None:
    from sklearn.cluster import KMeans

    for wrong, words in (
        ([np.ones(3)], "weights: expected an array of two or more axes"),
        ([], "weights: expected at least one array"),
        (np.array([[1.0, np.nan]]), "weights: NaN or infinity"),
        (np.array([[1.0, np.inf]]), "weights: NaN or infinity"),
        (KMeans(), "weights: a KMeans without coefs_ or coef_"),
        (None, "weights = None"),
    ):
        with pytest.raises(gpuopt.InputError, match=words):
            quantize(wrong)
    for wrong_axis in (2, "last", True):
        with pytest.raises(gpuopt.InputError, match="axis = "):
            quantize(np.ones((2, 2)), axis=wrong_axis)  # type: ignore[arg-type]
    for dtype in (int, complex):
        with pytest.raises(gpuopt.DtypeError, match="weights"):
            quantize(np.ones((2, 2), dtype))
    with pytest.raises(gpuopt.InputError, match="expected what quantize returned"):
        dequantize(3)
