"""What the four estimators share: from data to minibatches, an optimizer for the network, the training, what is left of it.

Subclassed in `estimators.py`. Knows neither how a loss or a network computes nor how the loop goes round.

The network that is trained sees the targets of a regression less their mean, over their standard deviation; both are put into
its last layer when it becomes `coef_` or `coefs_`. These are copies: whoever changes them changes predictions, and what training
goes on from.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

import gpuopt
from gpuopt import rules, spaces
from gpuopt.errors import InputError
from gpuopt.optim.hyper import own_defaults
from gpuopt.sklearn import checks, rates, training
from gpuopt.sklearn.batches import Augmentation, Batches, Data, automatic_size
from gpuopt.sklearn.losses import Loss
from gpuopt.sklearn.network import Network, initial

Array = np.ndarray[Any, Any]
PREDICTED = 4096  # rows at a time
SMALL = 1 << 14  # numbers in X up to which float64 data are trained on in float64, which takes no longer
FLOATS = [np.float64, np.float32]


class Estimator(BaseEstimator):  # type: ignore[misc]
    """The parts of `fit`, `partial_fit` and predictions that do not depend on whether numbers or classes are predicted."""

    optimizer: Any
    lr: Any
    optimizer_options: Any
    batch_size: Any
    max_iter: int
    l1: float
    l2: float
    dropout: float = 0.0  # a linear model has none
    input_noise: float
    mixup: float
    early_stopping: bool
    validation_fraction: float
    patience: int
    tol: float | None
    warm_start: bool
    shuffle: bool
    random_state: Any
    verbose: bool
    dtype: str
    backend: str | None
    activation: str = "identity"
    fit_intercept: bool = True
    _network: Network
    _dtype: str

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # ------------------------------------------------------------------------- what the classes say

    def _hidden(self) -> tuple[int, ...]:
        """Units of each hidden layer."""
        raise NotImplementedError

    def _publish(self, weights: list[Array], biases: list[Array]) -> None:
        """Set `coef_` or `coefs_` and the intercepts."""
        raise NotImplementedError

    def _published(self) -> tuple[list[Array], list[Array]]:
        """What `_publish` was given, as it is now."""
        raise NotImplementedError

    def _targets(self, y: Any, first: bool, classes: Any, weights: Array | None) -> tuple[Array, int, int]:
        """Targets as `Data` takes them, their number of classes (0: numbers), and of outputs; first: nothing is known yet."""
        raise NotImplementedError

    def _weights(self, y: Array, weights: Array | None) -> Array | None:
        """Weights of the rows, with those of their classes."""
        return weights

    def _loss(self) -> Loss:
        raise NotImplementedError

    def _scale(self) -> tuple[Any, Any]:
        """What is taken off the targets, and what they are divided by."""
        return 0.0, 1.0

    def _scorer(self, data: Data) -> Any:
        """A function of the network's outputs (n, k) on these data: the validation score."""
        raise NotImplementedError

    # ------------------------------------------------------------------------- training

    def _fit(self, X: Any, y: Any, sample_weight: Any, partial: bool = False, classes: Any = None) -> Any:
        """The whole of `fit`, or of `partial_fit`."""
        checks.parameters(self.get_params(deep=False))
        if partial and self.early_stopping:
            raise InputError("partial_fit makes one pass over what it is given: expected early_stopping=False")
        known = hasattr(self, "_network")
        goes_on, warm = (
            partial and known,
            self.warm_start and known,
        )  # with the same optimizer; from the same coefficients
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=FLOATS, order="C", reset=not goes_on, **self._kind_of_y()
        )
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float64)
        y, count, outputs = self._targets(y, not (goes_on or warm), classes, weights)
        weights = self._weights(y, weights)
        data = Data(X, y, weights if partial else _normalised(weights), count)
        if not goes_on:
            self._rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31 - 1))
            self.loss_curve_: list[float] = []
            self.n_iter_ = 0
        data, held_out = self._split(data) if self.early_stopping else (data, None)
        if not (goes_on or warm):
            exact = X.dtype == np.float64 and X.shape[0] * X.shape[1] <= SMALL
            self._dtype = ("float64" if exact else "float32") if self.dtype == "auto" else self.dtype
        self._prepare((X.shape[1], *self._hidden(), outputs), goes_on or warm)
        return self._run(data, held_out, partial, fresh=not goes_on)

    def _kind_of_y(self) -> dict[str, Any]:
        """Arguments of `validate_data`."""
        return {}

    def _split(self, data: Data) -> tuple[Data, Data]:
        """A training and a validation part."""
        seed = int(self._rng.integers(2**31 - 1))
        rows, held = train_test_split(
            np.arange(len(data)),
            test_size=self.validation_fraction,
            random_state=seed,
            stratify=data.y if data.classes else None,
        )
        parts = []
        for index in (rows, held):
            weights = None if data.weights is None else data.weights[index]
            parts.append(Data(data.x[index], data.y[index], weights, data.classes))
        return parts[0], parts[1]

    def _prepare(self, sizes: Sequence[int], known: bool) -> None:
        """The network to train: a new one, or that of before with the coefficients that are there now."""
        centre, scale = self._scale()
        if known:
            weights, biases = self._published()
            if [w.shape for w in weights] != list(pairwise(sizes)):
                raise InputError(
                    f"training goes on from layers of shapes {[w.shape for w in weights]}: expected those of {tuple(sizes)}; "
                    "with warm_start=False, fit starts anew"
                )
            weights, biases = [*weights], [*biases]
            weights[-1] = weights[-1] / scale
            if biases:
                biases[-1] = (biases[-1] - centre) / scale
            for array, value in zip(self._network.parameters, weights + biases, strict=True):
                array[...] = self._network.xp.asarray(value, dtype=array.dtype)
            return
        xp = self._namespace()
        given = initial(sizes, self.activation, self.fit_intercept, self._dtype, self._rng)
        weights, biases = ([xp.asarray(array) for array in part] for part in given)
        self._network = Network(xp, weights, biases, self.activation)

    def _namespace(self) -> Any:
        """NumPy, or CuPy where a backend of a GPU is asked for by name: data come from the host."""
        wanted = self.backend or os.environ.get("GPUOPT_BACKEND") or "auto"
        return np if wanted == "auto" else spaces.choose(wanted, type(self).__name__).xp

    def _run(self, data: Data, held_out: Data | None, partial: bool, fresh: bool) -> Any:
        """Train and publish what was found."""
        network, xp = self._network, self._network.xp
        rows = len(data) if self.batch_size != "auto" and self.batch_size > len(data) else self.batch_size
        rows = automatic_size(len(data), not self._hidden()) if rows == "auto" else rows
        augmentation = Augmentation(self.input_noise, self.mixup)
        batches = Batches(
            data, rows, self._rng, shuffle=self.shuffle, augmentation=augmentation, dtype=self._dtype, xp=xp
        )
        passes = 1 if partial else self.max_iter
        follow = self._optimizer(passes * len(batches), partial, fresh)
        plan = training.Plan(
            passes=passes,
            validate=None if held_out is None else self._validation(held_out),
            tol=self.tol if held_out is not None or follow is None else None,
            patience=self.patience,
            follow=follow,
            l1=self._l1(),
            l2=self.l2,
            dropout=self.dropout,
            verbose=bool(self.verbose) and not partial,
            name=type(self).__name__,
        )
        training.mode(self.optimizer_, "train")
        record = training.train(network, self.optimizer_, self._loss(), batches, plan)
        self._keep(record, held_out is not None)
        return self

    def _l1(self) -> float:
        """The L1 penalty on weights of the network, which sees targets of deviation 1."""
        return self.l1

    def _optimizer(self, steps: int, partial: bool, fresh: bool) -> Any:
        """Make `optimizer_` where a fresh one is needed; what changes its rate, or None."""
        rule = rules.get(self.optimizer) if isinstance(self.optimizer, str) else self.optimizer
        options = dict(self.optimizer_options or {})
        own = own_defaults(rule)
        named = "lr" in own and (self.lr is None or isinstance(self.lr, str))
        follow = None
        if named:
            peak = rates.peak_of(rule.name, options, own["lr"], not self._hidden())
            name = "constant" if partial else self.lr or rates.DEFAULT
            options["lr"] = peak
            follow = None if name == "constant" else rates.Follower(rates.NAMES[name](peak, steps), steps)
        elif self.lr is not None:
            options["lr"] = self.lr
        if fresh:
            self._made_by = rule, options | self._decay(options, own), self.backend
            self.optimizer_ = self._made()
        elif named:
            for group in self.optimizer_.param_groups:
                group["lr"] = options["lr"]
        return follow

    def _decay(self, options: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
        """Options of the penalties: l2 as a decay that is coupled to the gradient, in the place of the optimizer's default."""
        found: dict[str, Any] = {"l1": self._l1()} if self.l1 else {}
        if self.l2 and "weight_decay" in options:
            raise InputError(f"l2 = {self.l2} and optimizer_options['weight_decay']: expected one of them")
        if self.l2:
            return found | {"weight_decay": self.l2, "weight_decay_mode": "coupled"}
        if "weight_decay" not in options and own.get("weight_decay"):
            found["weight_decay"] = 0.0
        return found

    def _made(self) -> Any:
        """A new optimizer: biases are in a group of their own, without penalties, where there are any."""
        network, (rule, options, backend) = self._network, self._made_by
        if network.biases and (options.get("l1") or options.get("weight_decay")):
            free = {"params": network.biases, "weight_decay": 0.0} | ({"l1": 0.0} if "l1" in options else {})
            return gpuopt.optimizer(rule, [{"params": network.weights}, free], backend=backend, **options)
        return gpuopt.optimizer(rule, network.parameters, backend=backend, **options)

    def _validation(self, held_out: Data) -> Any:
        """The score of the network as it is on these data."""
        score, network = self._scorer(held_out), self._network
        return lambda: score(_outputs(network, held_out.x, self._dtype))

    def _keep(self, record: training.Record, validated: bool) -> None:
        """Set the attributes that `fit` leaves."""
        network, (centre, scale) = self._network, self._scale()
        weights = [spaces.to_host(w) for w in network.weights]
        biases = [spaces.to_host(b) for b in network.biases]
        weights[-1] = (weights[-1] * scale).astype(self._dtype)
        if biases:
            biases[-1] = (biases[-1] * scale + centre).astype(self._dtype)
        self._publish(weights, biases)
        self.loss_curve_ += record.losses
        self.n_iter_ += record.passes
        if validated:
            self.validation_scores_ = record.scores
            self.best_validation_score_ = max(record.scores, default=None)
        if record.interrupted:
            kept = "the best weights so far" if record.kept is not None else "the last weights"
            warnings.warn(f"training was interrupted after {record.passes} whole passes; {kept} are kept", stacklevel=5)

    def __getstate__(self) -> dict[str, Any]:
        """For pickles and copies: the optimizer as its state, since what is read back may lie in memory that cannot be written."""
        state = dict(super().__getstate__())
        if "optimizer_" in state:
            state["optimizer_"] = state["optimizer_"].state_dict()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "optimizer_" in state:
            self.optimizer_ = self._made()
            self.optimizer_.load_state_dict(state["optimizer_"])

    # ------------------------------------------------------------------------- predictions

    def _predictions(self, X: Any) -> Array:
        """Outputs of the network, (n, k), for rows of X."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=FLOATS, reset=False)
        xp = self._namespace()
        weights, biases = ([xp.asarray(array) for array in part] for part in self._published())
        return _outputs(Network(xp, weights, biases, self.activation), X, self._dtype)


def _outputs(network: Network, x: Any, dtype: Any) -> Array:
    """Outputs (n, k) on the host, some rows at a time."""
    parts = np.empty((x.shape[0], network.weights[-1].shape[1]), network.weights[-1].dtype)
    for begin in range(0, x.shape[0], PREDICTED):
        rows = x[begin : begin + PREDICTED]
        rows = rows if isinstance(rows, np.ndarray) else rows.toarray()
        found = network.forward(network.xp.asarray(rows, dtype=dtype))
        parts[begin : begin + PREDICTED] = spaces.to_host(found)
    return parts


def _normalised(weights: Array | None) -> Array | None:
    """Weights of mean 1. Raises InputError where all are zero."""
    if weights is None:
        return None
    mean = float(np.mean(weights))
    if not mean > 0:
        raise InputError(f"sample_weight: of mean {mean}: expected a mean above 0")
    return np.asarray(weights / mean)
