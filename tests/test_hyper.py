"""Hyperparameters, options and names that cannot be used: the error names the value and the allowed range."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
from samples import HOST_BACKENDS, bits, gradients, parameters, refused

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
SHAPES = [(3,), (2, 2)]
# optimizer, option, bad value, the allowed range as the message says it
VALUES: list[tuple[str, str, Any, str]] = [
    *(("SGD", "lr", v, "[0, inf)") for v in (-1e-3, -1, math.nan, math.inf, -math.inf)),
    *(("SGD", "lr", v, "a number") for v in ("fast", None, True, [0.1], 1j)),
    *(("Adam", "betas", v, "[0, 1)") for v in ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, 1.5), (0.9, math.nan))),
    *(("AdamW", "betas", v, "2 numbers in [0, 1)") for v in ((0.9,), (0.9, 0.9, 0.9), 0.9, "ab", None)),
    ("Lion", "betas", (0.9, 1.0), "[0, 1)"),
    *(("Adam", "eps", v, "[0, inf)") for v in (-1e-8, math.nan, math.inf)),
    *(("AdamW", "weight_decay", v, "[0, inf)") for v in (-0.1, math.nan, math.inf)),
    *(("SGD", "momentum", v, "[0, inf)") for v in (-0.9, math.nan)),
    ("SGD", "dampening", math.nan, "(-inf, inf)"),
    *(("SGD", "nesterov", v, "(False, True)") for v in ("yes", 2, None, 0.5)),
    ("Adam", "amsgrad", "no", "(False, True)"),
    ("RMSprop", "alpha", -0.1, "[0, 1]"),
    ("RMSprop", "alpha", 1.1, "[0, 1]"),
    ("RMSprop", "centered", 3, "(False, True)"),
    ("Adagrad", "lr_decay", -1.0, "[0, inf)"),
    ("Adagrad", "initial_accumulator_value", -1.0, "[0, inf)"),
    ("DGD", "lr_decay", -0.9, "[0, inf)"),
    *(("SGD", "l1", v, "[0, inf)") for v in (-0.1, math.nan)),
    *(("SGD", "clip_value", v, "[0, inf]") for v in (-1.0, math.nan)),
    ("SGD", "maximize", "yes", "(False, True)"),
]
# Options of the whole optimizer; they cannot differ by group.
SETTINGS: list[tuple[str, Any, str]] = [
    *(("max_grad_norm", v, "[0, inf]") for v in (-1.0, math.nan)),
    ("max_grad_norm", "big", "a number"),
    *(("grad_scale", v, "(0, inf)") for v in (0, 0.0, -2.0, math.nan, math.inf)),
    ("grad_scale", np.ones(2), "one element"),
    ("state_format", "float99", "float32"),
    ("state_format", {"exp_avg": "float99"}, "float32"),
    ("state_format", {"nonsense": "float32"}, "nonsense"),
    ("param_format", "rounded", "native"),
    ("backend", "tpu", "auto, cuda, numpy, numba, cupy, numba-cuda"),
]


def offending(value: Any) -> Any:
    """The one of two betas that is out of range, else the whole value."""
    return next(b for b in value if not 0 <= b < 1) if isinstance(value, tuple) and len(value) == 2 else value


@pytest.mark.parametrize(("title", "option", "value", "allowed"), VALUES, ids=lambda x: str(x).replace(" ", ""))
def test_hyperparameter_out_of_range(title: str, option: str, value: Any, allowed: str) -> None:
    """In the constructor, in a group, in add_param_group, and set between two steps."""
    cls, words = getattr(gpuopt, title), (option, repr(offending(value)), allowed)
    needed = {"lr": 0.1} if title == "DGD" and option != "lr" else {}
    for params in (np.ones(3), [{"params": np.ones(3), option: value}]):
        with pytest.raises(gpuopt.InputError) as caught:
            cls(params, backend="numpy", **needed, **({} if isinstance(params, list) else {option: value}))
        assert all(word in str(caught.value) for word in words), caught.value
    optimizer = cls([{"params": p} for p in parameters(SHAPES)], backend="numpy", **needed)
    optimizer.step(gradients(0, SHAPES))
    with refused(optimizer, gpuopt.InputError, "param_groups[2]", *words):
        optimizer.add_param_group({"params": np.ones(3), option: value})
    before = optimizer.param_groups[1][option]
    optimizer.param_groups[1][option] = value
    with refused(optimizer, gpuopt.InputError, "param_groups[1]", *words):
        optimizer.step(gradients(1, SHAPES))
    optimizer.param_groups[1][option] = before
    optimizer.step(gradients(1, SHAPES))


@pytest.mark.parametrize("others", [{}, {"momentum": 0.9, "dampening": 0.1}])
def test_nesterov_needs_a_momentum_and_no_dampening(others: dict[str, float]) -> None:
    """As in torch; each of the values by itself is allowed."""
    words = ("nesterov with momentum", "expected a momentum and no dampening")
    with pytest.raises(ValueError, match="Nesterov"):
        torch.optim.SGD([torch.ones(3)], nesterov=True, **others)
    with pytest.raises(gpuopt.InputError, match=words[1]):
        gpuopt.SGD(np.ones(3), nesterov=True, backend="numpy", **others)
    optimizer = gpuopt.SGD(parameters(SHAPES), momentum=0.9, nesterov=True, backend="numpy")
    optimizer.step(gradients(0, SHAPES))
    optimizer.param_groups[0].update({"momentum": 0.0, **others})
    with refused(optimizer, gpuopt.InputError, "param_groups[0]", *words):
        optimizer.step(gradients(1, SHAPES))


def test_a_rule_of_ones_own_may_refuse_a_combination() -> None:
    @gpuopt.rule()
    def careful(p, g, *, lr, gain):
        p = p - lr * gain * g
        return p

    @careful.require
    def _(*, lr, gain):
        return f"lr * gain = {lr * gain}: expected at most 1" if lr * gain > 1 else None

    group = {"params": np.ones(3), "lr": 0.5, "gain": 2.0}
    optimizer = gpuopt.optimizer(careful, [group], backend="numpy")  # both are given in the group only
    optimizer.step([np.ones(3)])
    with pytest.raises(gpuopt.InputError, match=r"param_groups\[1\]: lr \* gain = 1.5: expected at most 1"):
        optimizer.add_param_group(group | {"params": np.ones(3), "gain": 3.0})

    careful.require(lambda *, gian: None)
    with pytest.raises(gpuopt.RuleSyntaxError, match="require asks for 'gian': expected one of gain, lr"):
        gpuopt.optimizer(careful, np.ones(3), lr=0.5, gain=1.0, backend="numpy")


@BACKENDS
def test_values_that_change_in_themselves_are_read_at_every_step(backend: str) -> None:
    betas, rate = [0.9, 0.99], np.array(0.1)
    found, expected = parameters(SHAPES), parameters(SHAPES)
    ours = gpuopt.Adam(found, lr=rate, betas=betas, backend=backend)
    usual = gpuopt.Adam(expected, lr=0.1, betas=(0.9, 0.99), backend=backend)
    for step in range(4):
        if step == 2:
            betas[0], rate[...] = 0.5, 0.2
            usual.param_groups[0].update(betas=(0.5, 0.99), lr=0.2)
        for optimizer in (ours, usual):
            optimizer.step(gradients(step, SHAPES))
    assert bits(found) == bits(expected)


@pytest.mark.parametrize(("option", "value", "allowed"), SETTINGS, ids=str)
def test_option_of_the_whole_optimizer(option: str, value: Any, allowed: str) -> None:
    with pytest.raises(gpuopt.InputError) as caught:
        gpuopt.Adam(np.ones(3), **{"backend": "numpy"} | {option: value})
    assert all(word in str(caught.value) for word in (option, allowed)), caught.value


@pytest.mark.parametrize("name", ["lr", "eps", "betas", "weight_decay", "l1", "clip_value", "max_grad_norm"])
@pytest.mark.parametrize(
    "value", ["fast", b"1", True, None, [[0.1], [0.2]], {}, object()], ids=lambda v: type(v).__name__
)
def test_what_is_no_number_at_all_is_a_type_error_too(name: str, value: Any) -> None:
    if value is None and name in ("clip_value", "max_grad_norm"):  # which means none
        return
    with pytest.raises(gpuopt.InputError, match=name) as caught:
        gpuopt.Adam(np.ones(3), **{"lr": 0.1, "backend": "numpy", name: value})
    assert isinstance(caught.value, TypeError)


@BACKENDS
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "fast", None])
def test_lr_callable_that_gives_a_bad_value(value: Any, backend: str) -> None:
    optimizer = gpuopt.Adam(parameters(SHAPES), lr=lambda taken: value if taken == 2 else 0.1, backend=backend)
    for step in range(2):
        optimizer.step(gradients(step, SHAPES))
    for _ in range(2):
        with refused(optimizer, gpuopt.InputError, "lr", repr(value), "expected a number"):
            optimizer.step(gradients(2, SHAPES))


@BACKENDS
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_lr_callable_that_raises(call: int, backend: str) -> None:
    """In any of its calls, with two groups and two dtypes: nothing is written, and no step counted."""
    calls = iter(range(1, 100))
    failing = {"at": 0}

    def schedule(taken: int) -> float:
        if next(calls) == failing["at"]:
            raise LookupError("no rate")
        return 0.1

    params = [*parameters(SHAPES), *parameters(SHAPES, np.float32)]
    grads = [*gradients(0, SHAPES), *gradients(0, SHAPES, np.float32)]
    groups = [{"params": p, "lr": schedule} for p in params]
    optimizer = gpuopt.Adam(groups, backend=backend)
    optimizer.step(grads)
    failing["at"] = next(calls) + call
    with refused(optimizer, LookupError, "no rate"):
        optimizer.step(grads)
    optimizer.step(grads)
    assert optimizer.state_dict()["state"][3]["step"] == 2


@pytest.mark.parametrize("name", ["learning_rate", "beta1", "foo", "has_momentum", "gain"])
def test_unknown_option(name: str) -> None:
    with pytest.raises(gpuopt.InputError, match=f"unknown option '{name}' of SGD; it takes lr, momentum, dampening"):
        gpuopt.SGD(np.ones(3), backend="numpy", **{name: 0.1})
    with pytest.raises(gpuopt.InputError, match=rf"param_groups\[1\].*'{name}'"):
        gpuopt.SGD([{"params": np.ones(3)}, {"params": np.ones(3), name: 0.1}], backend="numpy")
    with pytest.raises(gpuopt.InputError, match=f"unknown option '{name}' of SGD"):
        gpuopt.kernel_source("sgd", **{name: 0.1})


@pytest.mark.parametrize("title", ["GD", "DGD"])
def test_required_option(title: str) -> None:
    with pytest.raises(gpuopt.InputError, match=f"{title} needs lr"):
        getattr(gpuopt, title)(np.ones(3), backend="numpy")
    getattr(gpuopt, title)([{"params": np.ones(3), "lr": 0.1}], backend="numpy")


def test_too_many_or_doubled_arguments() -> None:
    with pytest.raises(TypeError, match=r"GD takes params and .* by position, 30 values were given"):
        gpuopt.GD(np.ones(3), *[0.1] * 30)
    with pytest.raises(TypeError, match="lr"):
        gpuopt.GD(np.ones(3), 0.1, lr=0.1)
