"""Sums along the rows and columns of matrices: what they are, their states, and what is said to an author who cannot have one."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gpuopt
import gpuopt.torch
from gpuopt import State, column_sum, columns, epsilon, row_sum, rows, rule, tensor_max
from own_rules import load
from samples import HOST_BACKENDS, bits, difference, gradients, parameters

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
RULES = ("adafactor", "adafactort5", "adamp", "came")
# Several blocks of 64 rows and of 512 columns, batches, and axes of length 1.
SHAPES = ((1, 1), (1, 700), (700, 1), (65, 513), (129, 1030), (3, 70, 5), (2, 3, 4, 600), (64, 512))
MIXED = (*SHAPES, (), (7,), (0, 3), (3, 0))


@rule(
    state=(
        State("r", "by_row", shape="row", when="matrix"),
        State("c", "by_column", shape="column", when="matrix"),
        State("z", "of_rows", shape="row", when="matrix"),
        State("v", "flat", when="not matrix"),
    )
)
def lined(p, g, r, c, z, v, *, lr, matrix: bool):  # type: ignore[no-untyped-def]
    """Sums, a sum of a value of a row, then a second cut along of values of both kinds in one expression."""
    if matrix:
        r = row_sum(g)
        c = column_sum(g)
        mean = column_sum(r) / (rows(g) * columns(g))
        z = row_sum((g - mean) * c / (1 + abs(r)))
        p = p - lr * (z + c)
    else:
        v = g
        p = p - lr * g
    return p, r, c, z, v


def stepped(name: Any, params: Any, backend: str = "numba", steps: int = 3, **options: Any) -> Any:
    make = gpuopt.create if isinstance(name, str) else gpuopt.optimizer
    optimizer = make(name, params, lr=0.01, backend=backend, **options)
    for step in range(steps):
        optimizer.step(gradients(step, [p.shape for p in params], params[0].dtype))
    return optimizer


@BACKENDS
def test_sums_are_those_of_numpy(backend: str) -> None:
    params = parameters(MIXED)
    states = stepped(lined, params, backend, 1).state_dict()["state"]
    for k, (g, before) in enumerate(zip(gradients(0, MIXED), parameters(MIXED), strict=True)):
        if g.ndim < 2:
            assert set(states[k]) == {"step", "flat"}
            continue
        assert set(states[k]) == {"step", "by_row", "by_column", "of_rows"}
        if not g.size:
            continue
        r, c = g.sum(-1, keepdims=True), g.sum(-2, keepdims=True)
        mean = r.sum(-2, keepdims=True) / (g.shape[-1] * g.shape[-2])
        z = ((g - mean) * c / (1 + abs(r))).sum(-1, keepdims=True)
        for key, expected in (("by_row", r), ("by_column", c), ("of_rows", z)):
            assert difference(states[k][key], expected) < 1e-12, (g.shape, key)
        assert difference(params[k], before - 0.01 * (z + c)) < 1e-12


@rule(
    state=(State("r", "channel", shape="row", when="matrix"), State("c", "place", shape="column", when="matrix")),
    flatten=True,
)
def by_channel(p, g, r, c, *, lr, matrix: bool):  # type: ignore[no-untyped-def]
    """Sums over all that belongs to a channel, and over channels; the largest of the former."""
    if matrix:
        r = row_sum(g) / columns(g)
        c = column_sum(g) / rows(g)
        p = p - lr * (r + c) * tensor_max(abs(r))
    return p, r, c


@pytest.mark.parametrize("backend", [*HOST_BACKENDS, "differentiable"])
def test_a_rule_that_flattens_has_channels_for_rows(backend: str) -> None:
    shapes = ((5, 3, 2, 4), (3, 4), (70, 9, 70), (7,))
    params, grads = parameters(shapes), gradients(0, shapes)
    if backend == "differentiable":
        tensors = [torch.from_numpy(p) for p in params]
        opt: Any = gpuopt.torch.make_optimizer(by_channel)(tensors, lr=0.1, differentiable=True)
        for p, g in zip(tensors, grads, strict=True):
            p.grad = torch.from_numpy(np.array(g))
        opt.step()
    else:
        opt = gpuopt.optimizer(by_channel, params, lr=0.1, backend=backend)
        opt.step(grads)
    saved = opt.state_dict()["state"]
    for k, (g, before) in enumerate(zip(grads[:3], parameters(shapes)[:3], strict=True)):
        r = g.mean(tuple(range(1, g.ndim)), keepdims=True)
        c = g.mean(0, keepdims=True)
        for key, expected in (("channel", r), ("place", c)):
            assert saved[k][key].shape == expected.shape and difference(np.asarray(saved[k][key]), expected) < 1e-12
        assert difference(params[k], before - 0.1 * (r + c) * np.abs(r).max()) < 1e-12
    assert bits(params[3]) == bits(parameters(shapes)[3]) and not {"channel", "place"} & set(saved.get(3, {}))


def test_flatten_is_yes_or_no() -> None:
    with pytest.raises(gpuopt.RuleSyntaxError, match="flatten = 'rows': expected True, False or 'convolutions'"):
        rule(flatten="rows")  # type: ignore[call-overload]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", [*RULES, lined], ids=str)
def test_numpy_and_numba_are_alike(name: Any, dtype: str) -> None:
    import ml_dtypes

    made = []
    for backend in HOST_BACKENDS:
        params = parameters(MIXED, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        optimizer = stepped(name, params, backend)
        made.append(bits([params, optimizer.state_dict()["state"]]))
    assert made[0] == made[1]


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "maximize": True}, {"d": 1.5, "beta2_decay": -1.0}])
def test_adafactor_is_torchs(options: dict[str, Any]) -> None:
    """50 steps in float64, wide, tall and batched; torch divides by zero for an empty tensor."""
    shapes = [s for s in MIXED if 0 not in s]
    ours, theirs = ([torch.from_numpy(p.copy()) for p in parameters(shapes)] for _ in range(2))
    made = gpuopt.torch.Adafactor(ours, **options), torch.optim.Adafactor(theirs, foreach=False, **options)
    for step in range(50):
        for params, optimizer in zip((ours, theirs), made, strict=True):
            for p, g in zip(params, gradients(step, shapes), strict=True):
                p.grad = torch.from_numpy(np.array(g))
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        assert difference(p.numpy(), q.numpy()) < 1e-12
        for key, value in made[1].state[q].items():
            assert difference(made[0].state[p][key].numpy(), value.numpy()) < 1e-12, key


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
@pytest.mark.parametrize("name", RULES)
def test_states_are_saved_and_go_on(name: str, way: str) -> None:
    params = parameters(((3, 4), (7,), (2, 5, 3)))
    optimizer = stepped(name, params)
    if way == "state_dict":
        again = gpuopt.create(name, [p.copy() for p in params], lr=0.01, backend="numpy")
        again.load_state_dict(optimizer.state_dict())
    else:
        again = copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    for each in (optimizer, again):
        each.step([None, *gradients(9, ((7,), (2, 5, 3)))])
        each.step(gradients(10, ((3, 4), (7,), (2, 5, 3))))
    found = [bits([each.param_groups[0]["params"], each.state_dict()["state"]]) for each in (optimizer, again)]
    assert found[0] == found[1]


MISTAKES = {
    "of a vector": (
        (3,),
        "p = p - lr * row_sum(g)",
        "row_sum needs a tensor of two or more axes: put it under `if matrix",
    ),
    "of a number": (
        (3, 4),
        "p = p - lr * row_sum(tensor_sum(g))",
        "row_sum of a value of kind tensor: expected one a element or column",
    ),
    "of such a sum": (
        (3, 4),
        "p = p - lr * g * column_sum(row_sum(g) - column_sum(row_sum(g)))",
        "column_sum of a value that depends on such a sum of rows or columns itself",
    ),
}


@BACKENDS
@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_summed(case: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, body, message = MISTAKES[case]
    text = f"from gpuopt import column_sum, row_sum, tensor_sum\n\n\n@rule\ndef wrong(p, g, *, lr):\n    {body}\n    return p\n"
    p = np.ones(shape)
    with pytest.raises(gpuopt.RuleSyntaxError, match=message) as caught:
        gpuopt.optimizer(load(tmp_path, text, monkeypatch).wrong, p, lr=0.1, backend=backend).step(np.ones(shape))
    assert caught.value.lineno and bits(p) == bits(np.ones(shape))


@pytest.mark.parametrize("name", RULES)
def test_fortran_order_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(gpuopt.LayoutError, match=r"expects them in C order, .*make a contiguous copy"):
        stepped(name, [np.asfortranarray(np.ones((3, 4)))])


@pytest.mark.parametrize("name", RULES)
def test_torch_steps_channels_last_as_its_rows_lie_in_the_shape(name: str) -> None:
    """As torch does, whatever the order in memory, which stays what it is."""
    made = []
    for order in (torch.contiguous_format, torch.channels_last):
        p = torch.linspace(-1, 1, 120, dtype=torch.float64).reshape(2, 3, 4, 5).to(memory_format=order)
        opt = gpuopt.torch.create(name, [p], lr=0.01)
        for step in range(3):
            p.grad = torch.sin(torch.arange(120.0, dtype=torch.float64) * (step + 1)).reshape(p.shape)
            opt.step()
        assert p.is_contiguous(memory_format=order)
        made.append(p.contiguous())
    assert bits(made[0].numpy()) == bits(made[1].numpy())


@pytest.mark.parametrize("name", RULES)
def test_complex_parameters_are_no_matrices(name: str) -> None:
    """Pairs of real numbers: nothing is factored."""
    (p,) = parameters(((3, 4),), complex)
    (saved,) = stepped(name, [p]).state_dict()["state"].values()
    assert not any("row" in key for key in saved) and np.isfinite(p).all()


@pytest.mark.parametrize("name", RULES)
def test_differentiable_steps_agree(name: str) -> None:
    shapes = ((3, 4), (7,), (2, 5, 3))
    made = []
    for options in ({}, {"differentiable": True}):
        params = [torch.from_numpy(p) for p in parameters(shapes)]
        optimizer = gpuopt.torch.create(name, params, lr=0.01, **options)
        for step in range(5):
            for p, g in zip(params, gradients(step, shapes), strict=True):
                p.grad = torch.from_numpy(np.array(g))
            optimizer.step()
        made.append(params)
    assert all(difference(p.numpy(), q.numpy()) < 1e-12 for p, q in zip(*made, strict=True))


@BACKENDS
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_epsilon_is_that_of_the_parameter(dtype: str, backend: str) -> None:
    """Of an element-wise rule too."""

    @rule
    def least(p, g, *, lr):  # type: ignore[no-untyped-def]
        p = g * epsilon(p)
        return p

    p = np.zeros(3, dtype)
    gpuopt.optimizer(least, p, lr=0.0, backend=backend).step(np.ones(3, dtype))
    assert (p == np.finfo(dtype).eps).all()


def test_eps_may_be_none_where_that_is_the_default() -> None:
    with pytest.raises(gpuopt.InputError, match="eps = None: expected a number"):
        gpuopt.Adafactor(np.ones((2, 2)), eps=(1e-30, None))
    made = gpuopt.Adafactor(np.ones((2, 2)), eps=(None, 1e-3))
    again = gpuopt.Adafactor(np.ones((2, 2)), eps=(1e-30, 1e-3))
    again.load_state_dict(made.state_dict())
    assert again.param_groups[0]["eps"] == (None, 1e-3)


def test_two_launches_are_as_one_each() -> None:
    """Matrices and vectors, and gradients of another dtype, do not share a kernel."""
    params = [*parameters(((3, 4), (7,)), "float32"), *parameters(((4, 3),), "float16")]
    alone = [p.copy() for p in params]
    optimizer = gpuopt.Adafactor(params)
    optimizer.step([np.full(p.shape, 0.5, p.dtype) for p in params])
    for p in alone:
        gpuopt.Adafactor(p).step(np.full(p.shape, 0.5, p.dtype))
    assert optimizer.launches == 3 and bits(params) == bits(alone)
