"""Parameter groups, nested parameters, missing gradients, options that change between steps, dtypes side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpuopt
from cases import Array, TorchOracle
from gpuopt.formats.dtypes import numpy_dtype
from samples import HOST_BACKENDS, bits, difference, gradients, parameters

BACKENDS = pytest.mark.parametrize("backend", HOST_BACKENDS)
TOLERANCE = 1e-12
SHAPES = [(3, 4), (7,), (), (2, 2)]
RULES: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    "Adam": {"lr": 0.05, "amsgrad": True},
    "AdamW": {"lr": 0.05, "weight_decay": 0.1},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.1},
}
NAMES = pytest.mark.parametrize("name", RULES)


def agree(params: list[Array], oracle: TorchOracle) -> bool:
    return max(difference(p, q) for p, q in zip(params, oracle.params, strict=True)) < TOLERANCE


def steps_of(optimizer: Any) -> list[int]:
    """The step count of each parameter."""
    state = optimizer.state_dict()["state"]
    count = sum(len(g["params"]) for g in optimizer.param_groups)
    return [state[k]["step"] if k in state else 0 for k in range(count)]


# ---------------------------------------------------------------------------------------------------- groups


@BACKENDS
@NAMES
def test_groups_with_hyperparameters_of_their_own(name: str, backend: str) -> None:
    """In one launch, and equal to torch with the same groups."""
    params = parameters(SHAPES)
    oracle = TorchOracle(name, params, **RULES[name])
    shared = oracle.optimizer.param_groups.pop()
    changes: list[dict[str, Any]] = [{}, {"lr": 0.2}, {"weight_decay": 0.5, "lr": 0.01}, {"lr": 0.0}]
    for tensor, change in zip(oracle.tensors, changes, strict=True):
        oracle.optimizer.add_param_group(
            {k: v for k, v in shared.items() if k != "params"} | change | {"params": [tensor]}
        )
    groups = [{"params": p} | change for p, change in zip(params, changes, strict=True)]
    optimizer = getattr(gpuopt, name)(groups, backend=backend, **RULES[name])
    for step in range(10):
        optimizer.step(gradients(step, SHAPES))
        oracle.step(gradients(step, SHAPES))
        assert optimizer.launches == 1
    assert agree(params, oracle)


def test_param_groups_show_the_hyperparameters() -> None:
    optimizer = gpuopt.Adam(
        [{"params": np.ones(3), "lr": 0.5, "name": "head"}, {"params": [np.ones(2)]}], lr=0.25, backend="numpy"
    )
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.25]
    assert optimizer.param_groups[0]["betas"] == optimizer.param_groups[1]["betas"] == (0.9, 0.999)
    assert optimizer.param_groups[0]["name"] == "head"
    assert [len(g["params"]) for g in optimizer.param_groups] == [1, 1]


@BACKENDS
def test_nested_dicts_and_lists(backend: str) -> None:
    """Gradients mirror parameters; the order of a dict's keys does not matter, None stands for a leaf."""
    a, b, c, d = parameters(SHAPES)
    flat = parameters(SHAPES)
    tree = {"layer": [{"w": a, "b": b}, (c,)], "head": {"w": d}}
    nested, listed = gpuopt.Adam(tree, lr=0.1, backend=backend), gpuopt.Adam(flat, lr=0.1, backend=backend)
    for step in range(4):
        grads: list[Any] = gradients(step, SHAPES)
        if step == 2:
            grads[1] = None
        ga, gb, gc, gd = grads
        nested.step({"head": {"w": gd}, "layer": ([{"b": gb, "w": ga}, [gc]])})
        listed.step(grads)
    assert bits([a, b, c, d]) == bits(flat)
    assert bits(nested.state_dict()["state"]) == bits(listed.state_dict()["state"])


@BACKENDS
def test_one_array_alone(backend: str) -> None:
    p, q = np.ones(4), np.ones(4)
    gpuopt.GD(p, lr=0.5, backend=backend).step(np.ones(4))
    gpuopt.GD([q], lr=0.5, backend=backend).step([np.ones(4)])
    assert p.tolist() == q.tolist() == [0.5] * 4


@BACKENDS
def test_the_groups_own_form_is_taken_for_gradients_too(backend: str) -> None:
    params = parameters(SHAPES)
    optimizer = gpuopt.GD(
        [{"params": params[:2]}, {"params": {"x": params[2], "y": params[3]}}], lr=1.0, backend=backend
    )
    g = gradients(0, SHAPES)
    optimizer.step([g[:2], {"x": g[2], "y": g[3]}])
    optimizer.step([{"params": g[:2]}, {"params": {"x": g[2], "y": g[3]}}])
    assert all(difference(p, q - 2 * d) < TOLERANCE for p, q, d in zip(params, parameters(SHAPES), g, strict=True))


@BACKENDS
@NAMES
def test_add_param_group_between_steps(name: str, backend: str) -> None:
    """The new tensors start at step 0, the old ones go on; gradients then come as a list with an entry for each group."""
    params = parameters(SHAPES)
    oracle = TorchOracle(name, params, **RULES[name])
    optimizer = getattr(gpuopt, name)(params[:2], backend=backend, **RULES[name])
    for step in range(3):
        grads: list[Any] = gradients(step, SHAPES)
        optimizer.step(grads[:2])
        oracle.step([*grads[:2], None, None])
    optimizer.add_param_group({"params": params[2:], "lr": 0.3})
    oracle.optimizer.param_groups[0]["params"] = oracle.tensors[:2]
    rest = {k: v for k, v in oracle.optimizer.param_groups[0].items() if k not in ("params", "lr")}
    oracle.optimizer.add_param_group(rest | {"params": oracle.tensors[2:], "lr": 0.3})
    for step in range(3, 6):
        grads = gradients(step, SHAPES)
        optimizer.step([grads[:2], grads[2:]])
        oracle.step(grads)
        assert optimizer.launches == 1
    assert agree(params, oracle)
    assert steps_of(optimizer) == [6, 6, 3, 3]


# ---------------------------------------------------------------------------------------------- missing gradients

MISSING = [set(), {1}, {1, 2}, set(), {0, 1, 2, 3}, {3}, {1}, set(), {0}, set()]


@BACKENDS
@NAMES
def test_tensors_that_missed_some_gradients(name: str, backend: str) -> None:
    """Each keeps its own step count, as in torch, and all stay in one launch. Adagrad's rate and Adam's bias depend on it."""
    params = parameters(SHAPES)
    oracle = TorchOracle(name, params, **RULES[name])
    optimizer = getattr(gpuopt, name)(params, backend=backend, **RULES[name])
    for step, missing in enumerate(MISSING):
        grads = [None if k in missing else g for k, g in enumerate(gradients(step, SHAPES))]
        before = bits(params)
        optimizer.step(grads)
        oracle.step(grads)
        assert all(bits(params[k]) == before[k] for k in missing)
        if len(missing) < 4:
            assert optimizer.launches == 1
    assert agree(params, oracle)
    assert steps_of(optimizer) == [sum(k not in m for m in MISSING) for k in range(4)]


@BACKENDS
def test_each_step_count_asks_the_schedule_for_itself(backend: str) -> None:
    params = [np.zeros(1), np.zeros(1)]
    optimizer = gpuopt.GD(params, lr=lambda taken: 10.0**-taken, backend=backend)
    one = np.ones(1)
    for grads in ([one, one], [one, None], [one, one]):
        optimizer.step(grads)
    assert [round(float(p[0]), 12) for p in params] == [-1.11, -1.1]


@BACKENDS
def test_a_tensor_that_never_had_a_gradient_has_no_state(backend: str) -> None:
    optimizer = gpuopt.Adam(parameters(SHAPES), backend=backend)
    optimizer.step([None, *gradients(0, SHAPES)[1:]])
    assert sorted(optimizer.state_dict()["state"]) == [1, 2, 3]


# ------------------------------------------------------------------------------------- options between two steps


@BACKENDS
@NAMES
def test_hyperparameters_are_read_every_step(name: str, backend: str) -> None:
    params = parameters(SHAPES)
    oracle = TorchOracle(name, params, **RULES[name])
    optimizer = getattr(gpuopt, name)(params, backend=backend, **RULES[name])
    for step in range(6):
        change = {"lr": 0.02 * (step + 1), "weight_decay": 0.05 * step, "maximize": step in (2, 3)}
        optimizer.param_groups[0].update(change)
        oracle.optimizer.param_groups[0].update(change)
        optimizer.step(gradients(step, SHAPES))
        oracle.step(gradients(step, SHAPES))
    assert agree(params, oracle)


@BACKENDS
def test_momentum_switched_on_off_and_on(backend: str) -> None:
    """A flag that decides over a state: the state is made when first needed, rests, and goes on."""
    params = parameters(SHAPES)
    oracle = TorchOracle("SGD", params, lr=0.1)
    optimizer = gpuopt.SGD(params, lr=0.1, backend=backend)
    for step, momentum in enumerate([0.0, 0.0, 0.9, 0.9, 0.0, 0.5, 0.5]):
        for one in (optimizer, oracle.optimizer):
            one.param_groups[0].update(momentum=momentum, nesterov=momentum == 0.5)
        optimizer.step(gradients(step, SHAPES))
        oracle.step(gradients(step, SHAPES))
    assert agree(params, oracle)


@BACKENDS
def test_settings_of_the_optimizer_may_change(backend: str) -> None:
    p = np.zeros(4)
    optimizer = gpuopt.GD(p, lr=1.0, backend=backend)
    for bound, scale in ((None, None), (1.0, None), (None, 2.0), (1.0, 0.5), (None, None)):
        optimizer.settings.max_grad_norm, optimizer.settings.grad_scale = bound, scale
        optimizer.step(np.ones(4))
    expected = 1 + 1 / (2 + 1e-6) + 0.5 + 2 / (4 + 1e-6) + 1
    assert difference(p, np.full(4, -expected)) < TOLERANCE


# ---------------------------------------------------------------------------------------------------- dtypes

DTYPES = ["float32", "bfloat16", "float16", "float64"]


@BACKENDS
def test_dtypes_side_by_side(backend: str) -> None:
    """One launch for each dtype, and every tensor gets the bits it gets alone."""
    pairs = [(d, s) for s in SHAPES for d in DTYPES]
    params = [parameters([s], numpy_dtype(d))[0] for d, s in pairs]
    alone = [p.copy() for p in params]
    together = gpuopt.AdamW(params, lr=0.1, backend=backend)
    single = [gpuopt.AdamW(p, lr=0.1, backend=backend) for p in alone]
    for step in range(3):
        grads = [gradients(step, [s], numpy_dtype(d))[0] for d, s in pairs]
        together.step(grads)
        for optimizer, grad in zip(single, grads, strict=True):
            optimizer.step(grad)
        assert together.launches == len(DTYPES)
    assert bits(params) == bits(alone)
    states = together.state_dict()["state"]
    for k, (dtype, _) in enumerate(pairs):
        assert states[k]["exp_avg"].dtype == ("float64" if dtype == "float64" else "float32")


@BACKENDS
def test_gradients_of_another_dtype_of_the_same_class(backend: str) -> None:
    """16-bit parameters with float32 gradients and the other way round: arithmetic is float32 all the same."""
    for params_dtype, grads_dtype in (("bfloat16", "float32"), ("float32", "float16"), ("float16", "bfloat16")):
        p = parameters([(40,)], numpy_dtype(params_dtype))[0]
        wide = p.astype(np.float32)
        g = gradients(0, [(40,)], numpy_dtype(grads_dtype))[0]
        gpuopt.SGD(p, lr=0.1, backend=backend).step(g)
        gpuopt.SGD(wide, lr=0.1, backend=backend).step(g.astype(np.float32))
        assert bits(p) == bits(wide.astype(p.dtype))


@BACKENDS
def test_a_gradient_may_change_its_dtype(backend: str) -> None:
    p, q = (parameters([(40,)], np.float32)[0] for _ in range(2))
    optimizer, other = gpuopt.Adam(p, lr=0.1, backend=backend), gpuopt.Adam(q, lr=0.1, backend=backend)
    for step, dtype in enumerate(["float32", "bfloat16", "float32", "float16"]):
        g = gradients(step, [(40,)], numpy_dtype(dtype))[0]
        optimizer.step(g)
        other.step(g.astype(np.float32))
    assert bits([p, optimizer.state_dict()]) == bits([q, other.state_dict()])


@BACKENDS
@pytest.mark.parametrize("format", ["bfloat16", {"exp_avg": "bfloat16"}, {"m": "bfloat16", "v": "float32"}], ids=str)
def test_state_format(format: Any, backend: str) -> None:
    """The states are kept in that dtype, those of float64 parameters never; an update is near the one in float32."""
    params = [*parameters(SHAPES, np.float32), parameters([(3,)])[0]]
    plain = [p.copy() for p in params]
    optimizer = gpuopt.Adam(params, lr=0.1, state_format=format, backend=backend)
    exact = gpuopt.Adam(plain, lr=0.1, backend=backend)
    grads = [*gradients(0, SHAPES, np.float32), gradients(0, [(3,)])[0]]
    optimizer.step(grads)
    exact.step(grads)
    states = optimizer.state_dict()["state"]
    second = "bfloat16" if format == "bfloat16" else "float32"
    assert {(states[k]["exp_avg"].dtype.name, states[k]["exp_avg_sq"].dtype.name) for k in range(4)} == {
        ("bfloat16", second)
    }
    assert states[4]["exp_avg"].dtype == states[4]["exp_avg_sq"].dtype == np.float64
    assert bits(params[4]) == bits(plain[4])
    assert max(difference(p, q) for p, q in zip(params, plain, strict=True)) < 1e-6, (
        "states are rounded after their use"
    )
