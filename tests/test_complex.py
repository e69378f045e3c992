"""Complex arrays: each number is stepped as a pair of real ones, as in torch; on NumPy arrays here, on CuPy's in test_gpu.py."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from covering import each
from gpuopt import rules
from gpuopt.errors import DtypeError, InputError
from gpuopt.source import program
from samples import HOST_BACKENDS, bits, refused
from shim.variants import richest

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
DTYPES = pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
REAL = {np.complex64: np.float32, np.complex128: np.float64}
Array = Any
ORDERS: dict[str, Callable[[Array], Array]] = {
    "C": lambda a: a,
    "F": np.asfortranarray,
    "reversed": lambda a: a.copy()[::-1],
    "transposed": lambda a: np.ascontiguousarray(a.transpose(1, 2, 0)).transpose(2, 0, 1),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"clip_value": 0.3, "weight_decay": 0.1},
    "by norm": {"max_grad_norm": 0.7, "maximize": True},
    "sparse": {"l1": 0.1},
    "bfloat16": {"state_format": "bfloat16", "seed": 5},
}


def number(step: int, dtype: Any, shape: tuple[int, ...] = (4, 3, 5)) -> Array:
    source = np.random.default_rng(step)
    return (source.normal(size=shape) + 1j * source.normal(size=shape)).astype(dtype)


def pairs(array: Array) -> Array:
    """A copy as real numbers, in C order."""
    return np.stack([array.real, array.imag], -1)


def stepped(name: str, p: Array, backend: str, options: dict[str, Any], of: Callable[[Array], Array]) -> Any:
    own = "weight_decay" in rules.get(name).hyperparameters
    options = {k: v for k, v in options.items() if own or k != "weight_decay"}
    opt = gpuopt.create(name, [p], lr=0.1, backend=backend, **options)
    for step in range(1, 4):
        opt.step([of(number(step, np.complex128).astype(np.complex64))])
    return opt


@pytest.mark.parametrize(
    ("name", "option", "order", "dtype", "backend"),
    each(gpuopt.optimizers(), OPTIONS, ORDERS, REAL, HOST_BACKENDS, whole=["adamw"]),
)
def test_a_complex_array_is_stepped_as_its_real_numbers(
    name: str, option: str, order: str, dtype: Any, backend: str
) -> None:
    options = OPTIONS[option]
    p = ORDERS[order](number(0, dtype))
    flat = (-1,) if rules.get(name).definition().along else (*p.shape, 2)  # pairs are no matrices
    real = pairs(p).reshape(flat)
    if order != "C" and option == "bfloat16":  # random numbers follow the elements in memory
        options = options | {"state_format": "float32"}
    ours = stepped(name, p, backend, options, lambda g: g.astype(dtype))
    twin = stepped(name, real, backend, options, lambda g: pairs(g.astype(dtype)).reshape(flat))
    kept, expected = ours.state_dict()["state"][0], twin.state_dict()["state"][0]
    if order == "C" or not (
        option == "by norm" or program(name, **richest(name)).cuts
    ):  # sums go in the order of memory
        assert pairs(p).tobytes() == real.tobytes()
    np.testing.assert_allclose(pairs(p).reshape(flat), real, rtol=1e-5, atol=1e-6)
    of = {s.key: s for s in rules.get(name).states}
    for key, state in kept.items():
        if key != "step":
            rounded = options.get("state_format") == "bfloat16" and not of[key].exact
            if of[key].cell:
                assert state.shape == () and state.dtype == REAL[dtype]
            elif not rounded or dtype is np.complex128:
                assert state.dtype == dtype and state.shape == p.shape
                state = pairs(state).reshape(flat)
            np.testing.assert_allclose(
                state.astype(float).ravel(), expected[key].astype(float).ravel(), rtol=1e-5, atol=1e-6
            )


@BACKENDS
@DTYPES
@pytest.mark.parametrize(
    ("title", "options"),
    [
        ("Adam", {"amsgrad": True}),
        ("AdamW", {}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("RMSprop", {"momentum": 0.5, "centered": True}),
        ("Adagrad", {"initial_accumulator_value": 0.3}),
    ],
)
def test_as_torch(title: str, options: dict[str, Any], dtype: Any, backend: str) -> None:
    p = number(0, dtype)
    theirs = torch.nn.Parameter(torch.tensor(p))
    opt = getattr(gpuopt, title)([p], lr=0.1, weight_decay=0.05, backend=backend, **options)
    usual = getattr(torch.optim, title)([theirs], lr=0.1, weight_decay=0.05, **options)
    for step in range(1, 6):
        g = number(step, dtype)
        theirs.grad = torch.tensor(g)
        opt.step([g])
        usual.step()
    tight = 1e-5 if dtype is np.complex64 else 1e-12
    np.testing.assert_allclose(p, theirs.detach().numpy(), rtol=tight, atol=tight)
    for key, state in usual.state_dict()["state"][0].items():
        if key != "step" and state is not None:
            np.testing.assert_allclose(opt.state_dict()["state"][0][key], state.numpy(), rtol=tight, atol=tight)


@BACKENDS
def test_a_mask_is_of_numbers(backend: str) -> None:
    p, mask = number(0, np.complex64, (6,)), np.array([True, False] * 3)
    twin = pairs(p)
    opt = gpuopt.AdamW([p], lr=0.1, mask=[mask], backend=backend)
    other = gpuopt.AdamW([twin], lr=0.1, mask=[np.stack([mask, mask], -1)], backend=backend)
    g = number(1, np.complex64, (6,))
    opt.step([g])
    other.step([pairs(g)])
    assert pairs(p).tobytes() == twin.tobytes() and (p[1::2] == 0).all() and (p[::2] != 0).all()


@BACKENDS
@pytest.mark.parametrize("form", ["float32", "bfloat16"])
def test_training_goes_on_from_a_checkpoint(form: str, backend: str) -> None:
    p = number(0, np.complex64)
    opt = gpuopt.Adagrad([p], lr=0.1, initial_accumulator_value=0.1, state_format=form, backend=backend)
    opt.step([number(1, np.complex64)])
    q = p.copy()
    again = gpuopt.Adagrad([q], lr=0.1, initial_accumulator_value=0.1, state_format=form, backend=backend)
    again.load_state_dict(opt.state_dict())
    copied = pickle.loads(pickle.dumps(opt))
    for one in (opt, again, copied):
        one.step([number(2, np.complex64)])
    assert p.tobytes() == q.tobytes() == copied.param_groups[0]["params"][0].tobytes()


@BACKENDS
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128, np.float32, np.float64])
def test_tensors_of_torch(dtype: Any, backend: str) -> None:
    """As parameters, and as gradients of an array of NumPy; states begin at a value of their own, and go through JSON."""
    p, g = (number(seed, np.complex128).astype(dtype) for seed in (0, 1))
    q, tensor = p.copy(), torch.tensor(p)
    made = {"lr": 0.1, "initial_accumulator_value": 0.1, "backend": backend}
    for param, grad in ((q, torch.tensor(g)), (tensor, torch.tensor(g)), (p, g)):
        opt = gpuopt.Adagrad([param], **made)
        opt.step([grad])
        again, saved = gpuopt.Adagrad([param], **made), opt.state_dict()
        saved["state"][0]["sum"] = saved["state"][0]["sum"].tolist()
        again.load_state_dict(saved)
        again.step([grad])
    assert p.tobytes() == q.tobytes() == tensor.numpy().tobytes()


@BACKENDS
def test_real_and_complex_do_not_go_together(backend: str) -> None:
    opt = gpuopt.GD([np.ones((3, 2))], lr=0.1, backend=backend)
    with refused(opt, DtypeError, "gradient of params[0]", "complex", "real"):
        opt.step([np.ones(3, complex)])
    opt = gpuopt.GD([np.ones(3, complex)], lr=0.1, backend=backend)
    with refused(opt, DtypeError, "gradient of params[0]", "complex"):
        opt.step([np.ones((3, 2))])
    with refused(opt, InputError, "gradient of params[0]"):
        opt.step([np.ones(4, complex)])
    with pytest.raises(DtypeError, match="complex"):
        gpuopt.GD([np.ones(3, np.clongdouble)], lr=0.1, backend=backend)


@BACKENDS
def test_the_norm_is_that_of_the_numbers(backend: str) -> None:
    p = np.zeros(2, complex)
    gpuopt.GD([p], lr=1.0, max_grad_norm=1.0, backend=backend).step([np.array([3 + 4j, 12j])])
    np.testing.assert_allclose(p, -np.array([3 + 4j, 12j]) / 13, rtol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numba_arrays_have_the_bits_of_numpy(order: str, dtype: Any) -> None:
    from numba import cuda

    p = ORDERS[order](number(0, dtype))
    q = cuda.to_device(p)
    opt, ours = (gpuopt.Adagrad([a], lr=0.1, initial_accumulator_value=0.1, max_grad_norm=1.0) for a in (p, q))
    for step in range(1, 4):
        g = number(step, dtype)
        opt.step([g])
        ours.step([cuda.to_device(g)])
    assert q.copy_to_host().tobytes() == p.tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("option", ["plain", "by norm", "bfloat16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_cupy_arrays_have_the_bits_of_numpy(order: str, option: str, dtype: Any) -> None:
    import cupy

    p = ORDERS[order](number(0, dtype))
    q = cupy.asarray(p, order=order)
    mask = np.abs(p) > 0.5
    opt = gpuopt.Adagrad([p], lr=0.1, initial_accumulator_value=0.1, backend="numpy", mask=[mask], **OPTIONS[option])
    ours = gpuopt.Adagrad([q], lr=0.1, initial_accumulator_value=0.1, mask=[cupy.asarray(mask)], **OPTIONS[option])
    for step in range(1, 4):
        g = ORDERS[order](number(step, dtype))
        opt.step([g])
        ours.step([cupy.asarray(g, order=order)])
    assert q.get().tobytes() == p.tobytes()
    saved = ours.state_dict()["state"][0]["sum"]
    assert saved.shape[:3] == p.shape and bits(saved.get()) == bits(opt.state_dict()["state"][0]["sum"])
