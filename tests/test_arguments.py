"""What is given to a constructor in the wrong way: every mistake is one GpuoptError, at once, in both APIs, and none is taken in
silence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from samples import HOST_BACKENDS

TITLES = ("GD", "SGD", "DGD", "Adagrad", "RMSprop", "Adam", "AdamW", "Lion")
BOTH = pytest.mark.parametrize("title", TITLES)
BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)


def on_arrays(title: str, *args: Any, **options: Any) -> Any:
    return getattr(gpuopt, title)([np.zeros(2)], *args, **({} if args else {"lr": 0.1}), **options)


def on_torch(title: str, *args: Any, **options: Any) -> Any:
    params = [torch.nn.Parameter(torch.zeros(2))]
    return getattr(gpuopt.torch, title)(params, *args, **({} if args else {"lr": 0.1}), **options)


APIS = pytest.mark.parametrize("make", [on_arrays, on_torch])


@APIS
@BOTH
def test_arguments_that_python_itself_would_refuse(title: str, make: Callable[..., Any]) -> None:
    """Never the second of two values in silence."""
    with pytest.raises(gpuopt.ArgumentError, match=f"{title} is given lr twice") as caught:
        make(title, 0.1, lr=0.2)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(gpuopt.ArgumentError, match="by position, 50 values were given"):
        make(title, *[0.1] * 50)
    module = gpuopt if make is on_arrays else gpuopt.torch
    with pytest.raises(gpuopt.ArgumentError, match=f"{title} needs params"):
        getattr(module, title)(lr=0.1)
    with pytest.raises(gpuopt.InputError, match=r"'learning_rate'.* it takes"):
        make(title, learning_rate=0.1)
    with pytest.raises(TypeError, match=rf"{title}\.__init__\(\)"):
        getattr(module, title)([], params=[])


@pytest.mark.parametrize("module", [gpuopt, gpuopt.torch])
@pytest.mark.parametrize("name", [None, 3, gpuopt.AdamW, b"adamw", ["adamw"]])
def test_what_is_no_name_of_an_optimizer(name: Any, module: Any) -> None:
    with pytest.raises(gpuopt.InputError, match=r"unknown optimizer .* expected one of adabelief, adadelta"):
        module.create(name, [np.zeros(2)])


@pytest.mark.parametrize("module", [gpuopt, gpuopt.torch])
def test_a_misspelt_class_is_suggested(module: Any) -> None:
    with pytest.raises(AttributeError, match="did you mean 'AdamW'"):
        _ = module.Adamw
    with pytest.raises(AttributeError, match=r"attribute '__adamw__'$"):
        _ = module.__adamw__


@pytest.mark.parametrize("module", [gpuopt, gpuopt.torch])
def test_an_optimizer_is_no_rule(module: Any) -> None:
    for found in (gpuopt.AdamW, gpuopt.torch.AdamW, on_arrays("AdamW"), on_torch("AdamW")):
        with pytest.raises(gpuopt.InputError, match="AdamW is an optimizer already: expected a rule"):
            module.make_optimizer(found)


SEEDS = ("1", 1.0, -1, 2**64, None, True, np.array([3, 4]), np.array(0.5), torch.tensor([1, 2]), torch.tensor(-1), [1])
# Option -> values that it cannot have.
WRONG: dict[str, tuple[Any, ...]] = {
    "state_format": ("no", "", None, np.float32, 3, {"m": "no"}, {3: "float32", "x": "float32"}, ["float32"]),
    "param_format": ("no", None, ["native"]),
    "seed": SEEDS,
    "skip_nonfinite": ("no", "True", None, 0.5, 1, [True]),
    "max_grad_norm": ("1", True, np.float64("nan"), np.float32(-1), np.bool_(True), np.array([1.0, 2.0]), -1, 10**400, 1j,
                      np.complex64(1), torch.tensor(-1.0)),
    "grad_scale": (0, -1, np.float64("nan"), np.array([0.0]), np.array(-1.0), np.array([np.nan]), np.array(["a"]), [1.0],
                   torch.tensor(0.0), torch.tensor([np.inf]), np.array([1.0, 2.0]), True, np.complex64(1), np.bool_(True)),
    "lr": (np.complex128(1), np.bool_(True), np.array(True), torch.tensor(True), torch.tensor(1j), np.float64("nan")),
    "weight_decay": (np.complex128(1), np.bool_(True), "0", None, [0.0], np.float64("-inf")),
}  # fmt: skip


@APIS
@BOTH
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("option", WRONG)
def test_a_value_that_an_option_cannot_have(option: str, title: str, make: Callable[..., Any]) -> None:
    for value in WRONG[option]:
        with pytest.raises(gpuopt.InputError, match=f"^({title}: )?{option}"):
            make(title, value) if option == "lr" else make(title, **{option: value})


@APIS
def test_values_of_numpy_and_torch_that_are_numbers(make: Callable[..., Any]) -> None:
    for seed in (3, np.int64(3), np.array(3), torch.tensor(3), np.uint64(2**64 - 1)):
        make("AdamW", seed=seed)
    for on in (True, np.bool_(True)):
        make("AdamW", skip_nonfinite=on)
    for bound in (1, np.float32(1), np.array(1.0), torch.tensor(1.0), np.inf, np.float64("inf")):
        make("AdamW", max_grad_norm=bound)
    for scale in (1, np.float32(2), np.array(2.0), np.array([2.0]), np.array([[2.0]]), torch.tensor([2.0])):
        make("AdamW", grad_scale=scale)


def test_one_state_under_both_its_names() -> None:
    with pytest.raises(gpuopt.InputError, match="one state twice, 'm' and 'exp_avg'"):
        on_arrays("AdamW", state_format={"m": "float32", "exp_avg": "bfloat16"})
    on_arrays("AdamW", state_format={"m": "bfloat16", "exp_avg": "bfloat16"})


@BACKENDS
def test_a_scale_that_changes_in_itself_is_checked_at_every_step(backend: str) -> None:
    for scale in (np.array([2.0]), np.array(2.0), np.array(2.0, np.float32), torch.tensor([2.0])):
        w = np.zeros(2)
        opt = gpuopt.GD(w, lr=1.0, grad_scale=scale, backend=backend)
        opt.step(np.ones(2))
        for wrong in (0.0, -1.0, np.nan, np.inf):
            scale[...] = wrong
            with pytest.raises(gpuopt.InputError, match=r"grad_scale = .*: expected a number in \(0, inf\)"):
                opt.step(np.ones(2))
        scale[...] = 4.0
        opt.step(np.ones(2))
        assert w.tolist() == [-0.75, -0.75]


REMEDIES: dict[str, tuple[Callable[[], Any], str]] = {
    "parameter": (lambda: gpuopt.GD(None, lr=0.1), "float32.*, and keep the array, which is updated in place"),
    "gradient": (lambda: on_arrays("GD").step([[1.0, 2.0]]), r"found list: use numpy.asarray\(..., numpy.float32\)$"),
    "mask": (lambda: on_arrays("GD", mask=[[True, False]]), r"found list: use numpy.asarray\(..., bool\)$"),
}


@pytest.mark.parametrize("what", REMEDIES)
def test_what_is_no_array_is_told_how_to_make_one(what: str) -> None:
    make, words = REMEDIES[what]
    with pytest.raises(gpuopt.DtypeError, match=words):
        make()


def test_keys_are_quoted_once() -> None:
    opt = gpuopt.GD({"a": np.zeros(2), 3: np.zeros(1)}, lr=0.1)
    with pytest.raises(gpuopt.InputError, match=r"expected a dict with the keys 'a', 3 as in params, found 'b'$"):
        opt.step({"b": np.zeros(2)})
    with pytest.raises(gpuopt.InputError, match=r"as in params, found none$"):
        opt.step({})
