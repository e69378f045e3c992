"""What the constructor arguments of the estimators may be, checked in `fit`, as scikit-learn does. Called by `base.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuopt.errors import InputError
from gpuopt.messages import abbreviated, unknown
from gpuopt.optim.hyper import check_number, check_whole, whole
from gpuopt.rules.language import Rule
from gpuopt.sklearn import rates
from gpuopt.sklearn.network import ACTIVATIONS

RANGES = {
    "l1": "[0, inf)",
    "l2": "[0, inf)",
    "dropout": "[0, 1)",
    "input_noise": "[0, inf)",
    "mixup": "[0, inf)",
    "validation_fraction": "(0, 1)",
    "tol": "[0, inf)",
}
OPTIONAL = ("tol",)
COUNTS = ("max_iter", "patience")
FLAGS = ("early_stopping", "warm_start", "shuffle", "verbose", "fit_intercept")
DTYPES = ("auto", "float32", "float64")


def hidden(sizes: Any) -> tuple[int, ...]:
    """The units of each hidden layer. Raises InputError."""
    sizes = sizes if isinstance(sizes, (tuple, list)) else (sizes,)
    return tuple(check_whole("hidden_layer_sizes", size, 1) for size in sizes)


def parameters(given: Mapping[str, Any]) -> None:
    """Raise InputError naming the argument, what was found and what was expected."""
    for name, value in given.items():
        if name in RANGES and not (value is None and name in OPTIONAL):
            check_number(name, value, ranges=RANGES)
        elif name in COUNTS:
            check_whole(name, value, 1)
        elif name in FLAGS and not isinstance(value, bool) and whole(value) is None:
            raise InputError(f"{name} = {abbreviated(value)}: expected True or False")
    if given["batch_size"] != "auto":
        check_whole("batch_size ('auto', or a number)", given["batch_size"], 1)
    for name, known in (("activation", ACTIVATIONS), ("dtype", DTYPES)):
        if name in given and given[name] not in known:
            raise InputError(unknown(name, given[name], known))
    options = given["optimizer_options"]
    if options is not None and not isinstance(options, Mapping):
        raise InputError(f"optimizer_options = {abbreviated(options)}: expected a dict or None")
    if not isinstance(given["optimizer"], (str, Rule)):
        raise InputError(f"optimizer = {abbreviated(given['optimizer'])}: expected a name or a rule")
    reserved = {"l1", "backend"} & set(options or ())
    if reserved:
        raise InputError(f"optimizer_options: {sorted(reserved)} have arguments of their own: expected them there")
    rates.check(given["lr"], dict(options or {}))
