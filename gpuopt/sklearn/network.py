"""A fully connected network on plain NumPy or CuPy arrays, its outputs and the gradient of a loss, without new arrays in a step.

Called by `training.py` and by the estimators for predictions. A linear model is one without hidden layers. Knows no optimizer,
no loss and nothing of scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Activation(NamedTuple):
    """apply(xp, z, zeros): the activation in the place of z; zeros has its shape. back(xp, d, h): d times the derivative where
    the activation is h, in place. gain: the variance of weights times the inputs of a layer, at the start.
    """

    apply: Callable[[Any, Any, Any], Any]
    back: Callable[[Any, Any, Any], Any]
    gain: float


def _logistic(xp: Any, z: Any, zeros: Any) -> None:
    """1 / (1 + exp(-z)) as (1 + tanh(z / 2)) / 2, which cannot overflow."""
    xp.multiply(z, 0.5, out=z)
    xp.tanh(z, out=z)
    xp.multiply(z, 0.5, out=z)
    xp.add(z, 0.5, out=z)


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(
        lambda xp, z, zeros: xp.maximum(z, zeros, out=z), lambda xp, d, h: xp.multiply(d, h > 0, out=d), 2.0
    ),  # He et al. 2015
    "tanh": Activation(lambda xp, z, zeros: xp.tanh(z, out=z), lambda xp, d, h: xp.multiply(d, 1 - h * h, out=d), 1.0),
    "logistic": Activation(_logistic, lambda xp, d, h: xp.multiply(d, h * (1 - h), out=d), 1.0),
    "identity": Activation(lambda xp, z, zeros: z, lambda xp, d, h: d, 1.0),
}


def initial(
    sizes: Sequence[int], activation: str, intercepts: bool, dtype: Any, rng: np.random.Generator
) -> tuple[list[Array], list[Array]]:
    """Weights, normal with variance gain / inputs, and biases, zero (none where there are no intercepts), of a network of these
    sizes; a network without hidden layers starts from zero, as its loss has one minimum.
    """
    weights = []
    for k, (inputs, outputs) in enumerate(pairwise(sizes)):
        gain = ACTIVATIONS[activation].gain if k < len(sizes) - 2 else 1.0
        scale = np.sqrt(gain / inputs) if len(sizes) > 2 else 0.0
        weights.append((rng.standard_normal((inputs, outputs)) * scale).astype(dtype))
    return weights, [np.zeros(outputs, dtype) for outputs in sizes[1:]] if intercepts else []


class Network:
    """Layers h = activation(h W + b), the last one without activation.

    weights: arrays (inputs, outputs), one a layer. biases: arrays (outputs,), one a layer, or none at all. `weight_gradients` and
    `bias_gradients` hold what `backward` found, always in the same memory.
    """

    def __init__(self, xp: Any, weights: Sequence[Any], biases: Sequence[Any], activation: str) -> None:
        self.xp, self.weights, self.biases, self.activation = xp, list(weights), list(biases), activation
        self._reset()

    def _reset(self) -> None:
        self.weight_gradients = [self.xp.empty_like(w) for w in self.weights]
        self.bias_gradients = [self.xp.empty_like(b) for b in self.biases]
        self._rows = 0
        self._layers: list[Any] = []
        self._deltas: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        """Weights and biases only: the memory of a step is made anew, and all of it can be written."""
        arrays = {"weights": self.weights, "biases": self.biases}
        return {**arrays, "activation": self.activation, "on_gpu": self.xp is not np}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from importlib import import_module

        xp = import_module("cupy") if state.pop("on_gpu") else np
        weights, biases = ([xp.array(array) for array in state[name]] for name in ("weights", "biases"))
        self.__init__(xp, weights, biases, state["activation"])  # type: ignore[misc]

    @property
    def parameters(self) -> list[Any]:
        return self.weights + self.biases

    @property
    def gradients(self) -> list[Any]:
        return self.weight_gradients + self.bias_gradients

    def _room(self, rows: int) -> None:
        """Memory for the activations of that many rows."""
        if rows > self._rows:
            xp, dtype = self.xp, self.weights[0].dtype
            self._layers = [xp.empty((rows, w.shape[1]), dtype) for w in self.weights]
            self._deltas = [xp.empty((rows, w.shape[1]), dtype) for w in self.weights[:-1]]
            self._zeros = [
                xp.zeros_like(d) for d in self._deltas
            ]  # NumPy compares with these faster than with a number
            self._ones = xp.ones((1, rows), dtype)
            self._rows = rows

    def forward(self, x: Any, masks: Sequence[Any] = ()) -> Any:
        """Outputs (n, k) of inputs x (n, features), in memory that the next call writes again; masks: factors of each hidden
        layer's activations, (n, units).
        """
        rows, xp = x.shape[0], self.xp
        self._room(rows)
        apply, last = ACTIVATIONS[self.activation].apply, len(self.weights) - 1
        h = x
        for k, w in enumerate(self.weights):
            z = self._layers[k][:rows]
            xp.matmul(h, w, out=z)
            if self.biases:
                z += self.biases[k]
            if k < last:
                apply(xp, z, self._zeros[k][:rows])
                if masks:
                    z *= masks[k]
            h = z
        return h

    def backward(self, x: Any, dz: Any, masks: Sequence[Any] = (), kept: float = 1.0) -> None:
        """Gradients from dz (n, k), the derivative of the loss by the outputs of the last `forward` with the same x and masks,
        whose factors are 0 or 1 / kept.
        """
        rows, xp = x.shape[0], self.xp
        back = ACTIVATIONS[self.activation].back
        for k in range(len(self.weights) - 1, -1, -1):
            h = self._layers[k - 1][:rows] if k else x
            xp.matmul(h.T, dz, out=self.weight_gradients[k])
            if self.biases:
                xp.matmul(self._ones[:, :rows], dz, out=self.bias_gradients[k][None])
            if k:
                d = self._deltas[k - 1][:rows]
                product = xp.multiply if dz.shape[1] == 1 else xp.matmul  # of one column, the same, and faster
                product(dz, self.weights[k].T, out=d)
                if masks:
                    d *= masks[k - 1]
                    h = h * kept  # the activation itself, where it was kept; elsewhere d is 0
                back(xp, d, h)
                dz = d
