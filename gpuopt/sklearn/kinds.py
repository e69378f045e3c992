"""What a classifier and a regressor are, whatever the network: targets, losses, scores, predictions. Used by `estimators.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import column_or_1d
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from gpuopt.errors import InputError
from gpuopt.messages import abbreviated
from gpuopt.sklearn.base import Array, Estimator
from gpuopt.sklearn.batches import Data
from gpuopt.sklearn.losses import LOGISTIC, SOFTMAX, SQUARED, Loss

WHOLE = "biu"  # kinds of dtypes
CLOSE = 1024  # values, a byte each


class Classifier(ClassifierMixin, Estimator):  # type: ignore[misc]
    """Classes of any kind that NumPy can sort; one output for two of them, else one each."""

    class_weight: Any
    classes_: Array

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train on X (n, features), dense or sparse, and classes y (n,); sample_weight: (n,). Returns self.

        Raises InputError where an argument cannot be used or the loss becomes NaN or infinite, and scikit-learn's ValueError for
        data that cannot be used. Ctrl-C ends training early with a warning; what was found until then stays.
        """
        return self._fit(X, y, sample_weight)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Any:
        """One pass over these data, going on from the last call with the same optimizer; the first call needs all `classes`.

        The rate is the peak where `lr` is None or a name, since nobody knows how many calls will follow. Returns self.
        """
        return self._fit(X, y, sample_weight, True, classes)

    def decision_function(self, X: Any) -> Array:
        """Outputs before the probabilities: (n,) for two classes, positive for the second one, else (n, classes)."""
        found = self._predictions(X)
        return found[:, 0] if len(self.classes_) == 2 else found

    def predict_proba(self, X: Any) -> Array:
        """Probabilities (n, classes), in the order of `classes_`."""
        found = self._predictions(X)  # first: it says so where nothing was fitted
        found = self._loss().outputs(np, found)
        return np.hstack([1 - found, found]) if len(self.classes_) == 2 else found

    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of `predict_proba`; -inf where that is 0."""
        with np.errstate(divide="ignore"):
            found: Array = np.log(self.predict_proba(X))
        return found

    def predict(self, X: Any) -> Array:
        """The most probable class of each row, (n,)."""
        found = self._predictions(X)  # first, as above
        return self.classes_[_labels(found)]

    def _targets(self, y: Any, first: bool, classes: Any, weights: Array | None) -> tuple[Array, int, int]:
        y = column_or_1d(y, warn=True)
        if y.dtype.kind not in WHOLE:  # those may be classes whatever they are
            check_classification_targets(y)
        if first:
            self.classes_ = distinct(np.asarray(y if classes is None else classes))
        elif classes is not None and not np.array_equal(self.classes_, np.unique(classes)):
            raise InputError(f"classes = {abbreviated(classes)}: expected those of the first call, {self.classes_}")
        labels = numbered(y, self.classes_)
        unknown = y[self.classes_[labels] != y]
        if len(unknown):
            raise InputError(
                f"y: class {unknown[0]} is none of {self.classes_}; partial_fit needs all of them as classes"
            )
        count = len(self.classes_)
        if count < 2:
            raise InputError(f"y: one class, {self.classes_[0]}: expected two classes or more")
        return labels, count, 1 if count == 2 else count

    def _weights(self, y: Array, weights: Array | None) -> Array | None:
        if self.class_weight is None:
            return weights
        if self.class_weight == "balanced" and len(np.unique(y)) < len(self.classes_):
            raise InputError(
                "class_weight = 'balanced' in a call without rows of every class: expected a dict of weights"
            )
        labels = self.classes_[y]
        known = compute_class_weight(self.class_weight, classes=self.classes_, y=labels, sample_weight=weights)
        return np.asarray(known[y] if weights is None else known[y] * weights)

    def _loss(self) -> Loss:
        return LOGISTIC if len(self.classes_) == 2 else SOFTMAX

    def _scorer(self, data: Data) -> Callable[[Array], float]:
        return lambda outputs: float(accuracy_score(data.y, _labels(outputs), sample_weight=data.weights))


class Regressor(RegressorMixin, Estimator):  # type: ignore[misc]
    """One number or several for each row."""

    _centre: Array
    _deviation: Array
    _flat: bool

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train on X (n, features), dense or sparse, and numbers y (n,) or (n, outputs); sample_weight: (n,). Returns self.

        Raises InputError where an argument cannot be used or the loss becomes NaN or infinite, and scikit-learn's ValueError for
        data that cannot be used. Ctrl-C ends training early with a warning; what was found until then stays.
        """
        return self._fit(X, y, sample_weight)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """One pass over these data, going on from the last call with the same optimizer; the first one gives the scale of y.

        The rate is the peak where `lr` is None or a name, since nobody knows how many calls will follow. Returns self.
        """
        return self._fit(X, y, sample_weight, True)

    def predict(self, X: Any) -> Array:
        """Numbers (n,), or (n, outputs) where y was so."""
        found = self._predictions(X)
        return found[:, 0] if self._flat else found

    def _kind_of_y(self) -> dict[str, Any]:
        return {"multi_output": True, "y_numeric": True}

    def _targets(self, y: Any, first: bool, classes: Any, weights: Array | None) -> tuple[Array, int, int]:
        y = column_or_1d(y, warn=True)[:, None] if y.ndim == 1 or y.shape[1] == 1 else y
        y = y.astype(np.float64)
        if first:
            self._flat = y.shape[1] == 1
            self._centre = np.average(y, axis=0, weights=weights) if self.fit_intercept else np.zeros(y.shape[1])
            variances = np.average((y - self._centre) ** 2, axis=0, weights=weights)
            if self.l1 and not self._hidden():  # one threshold for all of them
                variances[:] = variances.mean()
            self._deviation = np.where(variances > 0, np.sqrt(variances), 1.0)
        return (y - self._centre) / self._deviation, 0, y.shape[1]

    def _loss(self) -> Loss:
        return SQUARED

    def _scale(self) -> tuple[Array, Array]:
        return self._centre, self._deviation

    def _scorer(self, data: Data) -> Callable[[Array], float]:
        return lambda outputs: float(r2_score(data.y, outputs, sample_weight=data.weights))


def distinct(y: Array) -> Array:
    """The values in y, sorted; of whole numbers that lie close together without sorting all of them."""
    if y.dtype.kind not in "iu" or not y.size or int(y.max()) - int(y.min()) >= CLOSE:
        return np.unique(y)
    least, there = y.min(), np.zeros(CLOSE, bool)
    there[np.subtract(y, least, dtype=np.int64 if y.dtype.kind == "i" else y.dtype)] = True
    return np.asarray(np.flatnonzero(there).astype(y.dtype) + least)


def numbered(y: Array, classes: Array) -> Array:
    """The place of each value among these classes, or, where it is none of them, some place."""
    if len(classes) == 2:  # a search takes an unforeseeable turn for each
        return np.asarray(y == classes[1], np.intp)
    return np.asarray(np.minimum(np.searchsorted(classes, y), len(classes) - 1))


def _labels(outputs: Array) -> Array:
    """Numbers of classes, of outputs (n, 1) or (n, classes)."""
    return (outputs[:, 0] > 0).astype(np.intp) if outputs.shape[1] == 1 else outputs.argmax(axis=1)
