"""What the chapters of the report share: how much work, the seed, the backend, and the data. Called by them; knows none of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

import gpuopt
from gpuopt.demos import digits

BATCH = 64


@dataclass
class Setting:
    """quick: a fraction of the work. seed: of weights, batches and splits. backend: as in `gpuopt.create`."""

    quick: bool
    seed: int
    backend: str | None

    @cached_property
    def backend_name(self) -> str:
        """The backend that runs arrays of the host."""
        return str(gpuopt.create("sgd", [np.zeros(1, np.float32)], lr=1.0, backend=self.backend).backend)

    @cached_property
    def images(self) -> tuple[Any, Any, Any, Any]:
        """The digits in float32: training images, test images, labels of both."""
        x, test, y, y_test = digits.load()
        return x.astype(np.float32), test.astype(np.float32), y, y_test

    @cached_property
    def patients(self) -> tuple[Any, Any, list[str]]:
        """The diabetes data, standardized: (442, 10), progression of the disease, names of the measurements."""
        from sklearn.datasets import load_diabetes

        found = load_diabetes(scaled=False)
        x = (found.data - found.data.mean(0)) / found.data.std(0)
        return x.astype(np.float32), found.target, list(found.feature_names)

    def passes(self, many: int) -> int:
        """So many passes over the data, or a sixth of them."""
        return max(2, many // 6) if self.quick else many

    def network(self) -> dict[str, Any]:
        """Weights to begin with, of the network of `digits.py`."""
        return digits.initial_weights(np, np.dtype(np.float32), np.random.default_rng(self.seed))

    def loss(self, params: Any, rows: Any) -> Any:
        """(loss, gradients) of these training images."""
        x, _, y, _ = self.images
        return digits.loss_and_gradients(params, x[rows], y[rows], np)

    def accuracy(self, params: Any) -> float:
        """On the test images."""
        _, test, _, labels = self.images
        return digits.accuracy(params, test, labels, np)

    def batches(self, passes: int) -> Iterator[Any]:
        """Rows of minibatches, so many times over all training images in random order."""
        rng, count = np.random.default_rng(self.seed), len(self.images[2])
        for _ in range(passes):
            order = rng.permutation(count)
            for first in range(0, count, BATCH):
                yield order[first : first + BATCH]

    def classifier(self, **options: Any) -> Any:
        """An MLPClassifier of gpuopt.sklearn for the digits."""
        from gpuopt.sklearn import MLPClassifier

        given: dict[str, Any] = {
            "max_iter": self.passes(20),
            "random_state": self.seed,
            "backend": self.backend,
        } | options
        return MLPClassifier(**given)

    @cached_property
    def fitted(self) -> Any:
        """One that is fitted, with accuracy on the test images as its score."""
        x, _, y, _ = self.images
        return self.classifier(optimizer="adamw").fit(x, y)

    @cached_property
    def regressor(self) -> Any:
        """An MLPRegressor of gpuopt.sklearn, fitted to the patients."""
        from gpuopt.sklearn import MLPRegressor

        x, y, _ = self.patients
        given: dict[str, Any] = {
            "l2": 0.03,
            "max_iter": self.passes(60),
            "random_state": self.seed,
            "backend": self.backend,
        }
        return MLPRegressor((32,), **given).fit(x, y)
