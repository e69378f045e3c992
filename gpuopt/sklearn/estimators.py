"""The four estimators, `from gpuopt.sklearn import MLPClassifier`: their arguments, and the names of what they found.

Public. What they do is in `base.py` and `kinds.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpuopt.rules.language import Rule
from gpuopt.sklearn import checks
from gpuopt.sklearn.base import Array, Estimator
from gpuopt.sklearn.batches import MOST, PARTS
from gpuopt.sklearn.kinds import Classifier, Regressor

Rate = float | str | Callable[[int], float] | None

_ARGUMENTS = """
    Arguments; they are looked at in `fit`, as scikit-learn's are.

    {first}optimizer: a name of `gpuopt.optimizers()`, or a rule of your own. optimizer_options: a dict of more arguments for
    it, such as {{"betas": (0.9, 0.99)}}.
    lr: a number; a function of the number of steps taken, as `gpuopt.schedules` makes them; or the name of a schedule over all
    steps of a fit: "constant", "cosine", "linear", "rex", "one_cycle", "inverse_sqrt", "warmup_cosine", "warmup_stable_decay".
    None is "cosine", half a cosine from the peak to 0. The peak is optimizer_options["lr"] where it is given, else that of a
    table (`rates.PEAKS`), else the optimizer's own. A named schedule holds its rate for a fiftieth of the fit.
    batch_size: rows in a minibatch. "auto": all up to 64, else the power of two near a {parts}th of the rows, from 32 to {most}.
    max_iter: passes over the data.
    l1, l2: l1 |w| + l2 / 2 w^2 is added to the mean loss for all weights w but intercepts, inside of the optimizer's own step:
    l1 as a soft threshold of lr * l1, l2 in the gradient. A regression's loss is half the squared error{scaled}.
    {dropout}input_noise: Gaussian noise on the inputs while training, in standard deviations of each feature. mixup: alpha
    of Beta(alpha, alpha), by which rows of a minibatch are mixed in pairs (Zhang et al. 2018); 0 is none.
    early_stopping: hold out `validation_fraction` of the rows, {score} on them after each pass, stop when that has not become
    better by more than `tol` for `patience` passes in a row, and keep the weights of the best pass. Without it, the same is
    done with the training loss, where lr is a number or "constant": a schedule has an end. tol: None stops nothing.
    warm_start: `fit` begins with the coefficients of the last one. {weights}shuffle: rows, as `batches.py` says.
    random_state: of weights, order, splits and noise; the same one gives the same bits. verbose: a progress bar.
    dtype: "float32" or "float64", of all arithmetic; "auto": float64 for an X of float64 with up to 16,384 numbers, where it
    takes no longer, else float32. backend: as in `gpuopt.create`; "cuda" puts arrays on the GPU (CuPy).

    Attributes: {attributes}, `n_features_in_`, `feature_names_in_`, `n_iter_` (whole passes), `loss_curve_` (mean loss of each
    pass, penalties included{curve}), `validation_scores_` and
    `best_validation_score_` (with early_stopping), `optimizer_` (gpuopt's).
    {of_class}"""


def _documented(**words: str) -> Callable[[type], type]:
    """A class whose docstring goes on with the arguments."""
    filled = dict.fromkeys(("first", "scaled", "dropout", "weights", "curve", "of_class"), "")
    linear = not words.get("first")
    filled |= {"most": str(MOST[linear]), "parts": str(PARTS[linear])} | words

    def add(made: type) -> type:
        made.__doc__ = f"{made.__doc__}\n{_ARGUMENTS.format(**filled)}"
        return made

    return add


def _set(estimator: Any, given: dict[str, Any]) -> None:
    """Arguments as attributes of their names."""
    for name, value in given.items():
        if name not in ("self", "__class__"):
            setattr(estimator, name, value)


class _Linear(Estimator):
    """One layer, published as `coef_` and `intercept_`."""

    coef_: Array
    intercept_: Any

    def _hidden(self) -> tuple[int, ...]:
        return ()

    def _publish(self, weights: list[Array], biases: list[Array]) -> None:
        self.coef_ = np.ascontiguousarray(weights[0].T)
        self.intercept_ = biases[0] if biases else np.zeros(len(self.coef_), self.coef_.dtype)

    def _published(self) -> tuple[list[Array], list[Array]]:
        weights = np.asarray(self.coef_, self._dtype).reshape(-1, self.coef_.shape[-1]).T
        biases = np.asarray(self.intercept_, self._dtype).reshape(-1)
        return [np.ascontiguousarray(weights)], [biases] if self.fit_intercept else []


class _MLP(Estimator):
    """Layers, published as `coefs_` and `intercepts_`."""

    hidden_layer_sizes: Any
    coefs_: list[Array]
    intercepts_: list[Array]

    def _hidden(self) -> tuple[int, ...]:
        return checks.hidden(self.hidden_layer_sizes)

    def _publish(self, weights: list[Array], biases: list[Array]) -> None:
        self.coefs_, self.intercepts_ = weights, biases

    def _published(self) -> tuple[list[Array], list[Array]]:
        return [np.asarray(w, self._dtype) for w in self.coefs_], [np.asarray(b, self._dtype) for b in self.intercepts_]


@_documented(
    curve=", targets in standard deviations",
    score="score R^2",
    attributes="`coef_` (features,), or (outputs, features) where y has two axes, `intercept_`",
)
class LinearRegressor(_Linear, Regressor):
    """Least squares with both penalties; targets of any scale, since training sees them standardized."""

    def __init__(
        self,
        *,
        optimizer: str | Rule = "adam",
        lr: Rate = None,
        optimizer_options: dict[str, Any] | None = None,
        batch_size: int | str = "auto",
        max_iter: int = 100,
        l1: float = 0.0,
        l2: float = 0.0,
        input_noise: float = 0.0,
        mixup: float = 0.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        tol: float | None = 1e-4,
        warm_start: bool = False,
        fit_intercept: bool = True,
        shuffle: bool = True,
        random_state: Any = None,
        verbose: bool = False,
        dtype: str = "auto",
        backend: str | None = None,
    ) -> None:
        _set(self, locals())

    def _l1(self) -> float:
        """So that it is that of `coef_`: the loss is divided by the square of the deviation, and l2 with it."""
        return float(self.l1 / self._deviation[0])

    def _publish(self, weights: list[Array], biases: list[Array]) -> None:
        super()._publish(weights, biases)
        if self._flat:
            self.coef_, self.intercept_ = self.coef_[0], float(self.intercept_[0])


@_documented(
    score="score the accuracy",
    attributes="`coef_` (1 or classes, features), `intercept_` (1 or classes,)",
    weights='class_weight: a dict of classes and their weights, or "balanced". ',
    of_class="`classes_`: sorted.",
)
class LogisticClassifier(_Linear, Classifier):
    """Logistic regression, multinomial for more than two classes."""

    def __init__(
        self,
        *,
        optimizer: str | Rule = "adam",
        lr: Rate = None,
        optimizer_options: dict[str, Any] | None = None,
        batch_size: int | str = "auto",
        max_iter: int = 100,
        l1: float = 0.0,
        l2: float = 0.0,
        input_noise: float = 0.0,
        mixup: float = 0.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        tol: float | None = 1e-4,
        warm_start: bool = False,
        fit_intercept: bool = True,
        class_weight: dict[Any, float] | str | None = None,
        shuffle: bool = True,
        random_state: Any = None,
        verbose: bool = False,
        dtype: str = "auto",
        backend: str | None = None,
    ) -> None:
        _set(self, locals())


@_documented(
    score="score the accuracy",
    attributes="`coefs_`, one (inputs, outputs) a layer, `intercepts_`, one (outputs,) a layer",
    first='hidden_layer_sizes: units of each hidden layer. activation: "relu", "tanh", "logistic" or "identity".\n    ',
    dropout="dropout: the share of hidden units that are left out for each row while training. ",
    weights='class_weight: a dict of classes and their weights, or "balanced". ',
    of_class="`classes_`: sorted.",
)
class MLPClassifier(_MLP, Classifier):
    """A fully connected network that classifies: softmax, or one logistic output for two classes."""

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        *,
        activation: str = "relu",
        optimizer: str | Rule = "adam",
        lr: Rate = None,
        optimizer_options: dict[str, Any] | None = None,
        batch_size: int | str = "auto",
        max_iter: int = 100,
        l1: float = 0.0,
        l2: float = 1e-4,
        dropout: float = 0.0,
        input_noise: float = 0.0,
        mixup: float = 0.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        tol: float | None = 1e-4,
        warm_start: bool = False,
        class_weight: dict[Any, float] | str | None = None,
        shuffle: bool = True,
        random_state: Any = None,
        verbose: bool = False,
        dtype: str = "auto",
        backend: str | None = None,
    ) -> None:
        _set(self, locals())


@_documented(
    curve=", targets in standard deviations",
    score="score R^2",
    attributes="`coefs_`, one (inputs, outputs) a layer, `intercepts_`, one (outputs,) a layer",
    first='hidden_layer_sizes: units of each hidden layer. activation: "relu", "tanh", "logistic" or "identity".\n    ',
    dropout="dropout: the share of hidden units that are left out for each row while training. ",
    scaled=", here\n    of targets divided by their standard deviation",
)
class MLPRegressor(_MLP, Regressor):
    """A fully connected network for one number or several; targets of any scale, since training sees them standardized."""

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        *,
        activation: str = "relu",
        optimizer: str | Rule = "adam",
        lr: Rate = None,
        optimizer_options: dict[str, Any] | None = None,
        batch_size: int | str = "auto",
        max_iter: int = 100,
        l1: float = 0.0,
        l2: float = 1e-4,
        dropout: float = 0.0,
        input_noise: float = 0.0,
        mixup: float = 0.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        tol: float | None = 1e-4,
        warm_start: bool = False,
        shuffle: bool = True,
        random_state: Any = None,
        verbose: bool = False,
        dtype: str = "auto",
        backend: str | None = None,
    ) -> None:
        _set(self, locals())
