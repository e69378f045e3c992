"""Post-training quantization: the weights of a trained network in 8 bits, one scale for each output. Jacob et al. 2018.

Called by users as `gpuopt.training.quantize`. Knows arrays, estimators with `coefs_` and torch.nn.Linear; nothing of training.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from gpuopt import arrays
from gpuopt.errors import InputError, entry
from gpuopt.messages import abbreviated
from gpuopt.optim import trees
from gpuopt.training.codes import QuantizedArray, quantized
from gpuopt.training.problem import is_model, leaves_of


@entry
def quantize(weights: Any, *, axis: int = -1) -> Any:
    """Weights in int8, symmetric, with one scale for each output channel: greatest magnitude / 127, so that nothing is cut off.

    weights: an array of two or more axes, or a container of arrays, in which those of fewer axes (biases) stay as they are; returns
    `QuantizedArray`s in the same container (`dequantize` gives arrays back). Or a fitted estimator with `coefs_` or `coef_`, as of
    gpuopt.sklearn and scikit-learn; returns a copy that predicts with the quantized weights, which are its `quantized_coefs_`. Or a
    torch.nn.Module; returns a copy in which every torch.nn.Linear keeps int8 weights.
    axis: of the output channels of arrays (-1: the last, as in `x @ w`).

    Source: Jacob et al. 2018, Quantization and training of neural networks for efficient integer-arithmetic-only inference. Raises
    InputError naming the argument, DtypeError for what is no array of real numbers.
    """
    if is_model(weights):
        from gpuopt.training.int8_torch import quantized_model

        return quantized_model(weights)
    if hasattr(weights, "get_params"):
        return quantized_estimator(weights)
    structure, leaves = leaves_of(weights, "weights")
    found = [quantized(a, axis, label) if a.ndim > 1 else a for label, a in leaves]
    if all(array.ndim < 2 for _, array in leaves):
        raise InputError("weights: expected an array of two or more axes, found none")
    return trees.rebuilt(structure, iter(found))


@entry
def dequantize(weights: Any) -> Any:
    """What `quantize` made of a container as arrays again, the others as they are."""
    if isinstance(weights, QuantizedArray):
        return weights.dequantize()
    if isinstance(weights, dict):
        return {key: dequantize(value) for key, value in weights.items()}
    if isinstance(weights, (list, tuple)):
        return type(weights)(dequantize(value) for value in weights)
    if not arrays.is_array(weights):
        raise InputError(f"weights: {abbreviated(weights)}: expected what quantize returned")
    return weights


def quantized_estimator(estimator: Any) -> Any:
    """A copy of a fitted estimator, its weights replaced by those that int8 codes stand for."""
    made = copy.deepcopy(estimator)
    if hasattr(made, "coefs_"):
        made.quantized_coefs_ = [quantized(w, -1, f"coefs_[{k}]") for k, w in enumerate(made.coefs_)]
        made.coefs_ = [q.dequantize() for q in made.quantized_coefs_]
    elif hasattr(made, "coef_"):
        rows = np.atleast_2d(made.coef_)  # one for each output, as scikit-learn's linear models have it
        made.quantized_coefs_ = [quantized(rows, 0, "coef_")]
        made.coef_ = made.quantized_coefs_[0].dequantize().reshape(made.coef_.shape)
    else:
        name = type(estimator).__name__
        raise InputError(f"weights: a {name} without coefs_ or coef_: expected a fitted network or linear model")
    return made
