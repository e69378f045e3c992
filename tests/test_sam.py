"""Sharpness-aware minimisation over arrays: the papers' formulas, every optimizer around them, parameters put back bit for bit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import DtypeError, InputError, rules
from gpuopt.formats.dtypes import numpy_dtype
from graphs import BACKENDS, captured, device_array, new_stream, on
from samples import HOST_BACKENDS, Array, bits, difference, gradients, parameters, refused

FORMS = pytest.mark.parametrize("adaptive", [False, True])


def slope(params: Sequence[Array]) -> list[Array]:
    """Gradients that are others a little further."""
    return [np.sin(3 * p) + 0.5 * p for p in params]


def perturbed(
    params: Sequence[Array], grads: Sequence[Array | None], rho: float, adaptive: bool, eta: float = 0.01
) -> list[Array]:
    """Foret et al. 2021; with T = |w| + eta in front of the gradient and behind it, Kwon et al. 2021."""
    sizes = [np.abs(p) + eta if adaptive else np.ones_like(p) for p in params]
    norm = np.sqrt(sum((np.abs(t * g) ** 2).sum() for t, g in zip(sizes, grads, strict=True) if g is not None))
    moves = [0 if g is None else rho * t * t * g / (norm + 1e-12) for t, g in zip(sizes, grads, strict=True)]
    return [p + e for p, e in zip(params, moves, strict=True)]


@FORMS
@pytest.mark.parametrize("backend", HOST_BACKENDS)
def test_steps_are_those_of_the_papers(backend: str, adaptive: bool) -> None:
    """Momentum in NumPy, one tensor of which has no first gradient at some steps and another none at all at one."""
    ours, theirs = parameters(), parameters()
    momentum = [np.zeros_like(p) for p in theirs]
    sam = gpuopt.SAM(gpuopt.SGD(ours, lr=0.1, momentum=0.9, backend=backend), 0.3, adaptive)
    for step in range(6):
        without = {4: {1}, 5: {1, 5}}.get(step, set[int]())
        first = [None if k in without else g for k, g in enumerate(slope(theirs))]
        there = perturbed(theirs, first, 0.3, adaptive)
        second = [None if k in without - {1} else g for k, g in enumerate(slope(there))]
        sam.perturb([None if k in without else g for k, g in enumerate(slope(ours))])
        assert max(map(difference, ours, there)) < 1e-12
        sam.step([None if k in without - {1} else g for k, g in enumerate(slope(ours))])
        for p, b, g in zip(theirs, momentum, second, strict=True):
            if g is not None:
                b[...] = 0.9 * b + g
                p -= 0.1 * b
        assert max(map(difference, ours, theirs)) < 1e-12


@FORMS
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "complex64"])
def test_put_back_bit_for_bit_and_the_same_on_both_backends(dtype: str, adaptive: bool) -> None:
    kept = np.dtype(dtype) if dtype == "complex64" else numpy_dtype(dtype)
    turn = (1 + 2j) if dtype == "complex64" else 1
    found = []
    for backend in HOST_BACKENDS:
        params = [np.asarray(p * turn).astype(kept) for p in parameters()]
        params[4] = np.asfortranarray(params[4])
        params[2][:2] = -0.0, 1.0 if adaptive else np.inf
        grads = [np.asarray(g * turn).astype(kept) for g in gradients(0)]
        grads[2][:2] = 0
        before = [p.copy() for p in params]
        sam = gpuopt.SAM(gpuopt.GD(params, lr=0.1, backend=backend), 0.7, adaptive)
        sam.perturb(grads)
        found.append(bits(params))
        if dtype != "complex64" and not adaptive:  # T is of each part of a complex number
            near = {"float64": 1e-12, "float32": 1e-6, "float16": 2e-3, "bfloat16": 1e-2}[dtype]
            expected = perturbed(
                [p.astype(np.float64) for p in before], [g.astype(np.float64) for g in grads], 0.7, False
            )
            chosen = [k for k in range(len(params)) if k != 2]
            assert max(difference(params[k], expected[k]) for k in chosen) < near
        assert bits(params) != bits(before)
        sam.restore()
        assert bits(params) == bits(before)
        per = 2 if dtype in ("float16", "bfloat16") else 1  # old values of 16 bits are float32
        assert sam.nbytes == per * sum(p.nbytes for p in params)
    assert found[0] == found[1]


@pytest.mark.gpu
@FORMS
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_bits_on_a_gpu(backend: str, adaptive: bool) -> None:
    import cupy

    shapes, made = [(), (7,), (40, 30)], []
    for name, there in (("numpy", np.copy), (backend, cupy.asarray)):
        params = [there(p) for p in parameters(shapes, np.float32)]
        sam = gpuopt.SAM(gpuopt.AdamW(params, lr=0.1, backend=name), 0.7, adaptive)
        for step in range(2):
            sam.perturb([there(g) for g in gradients(2 * step, shapes, np.float32)])
            made.append([p.tolist() for p in params])
            sam.step([there(g) for g in gradients(2 * step + 1, shapes, np.float32)])
            made.append([p.tolist() for p in params])
    assert made[:4] == made[4:]


@pytest.mark.gpu
def test_both_phases_are_one_graph() -> None:
    stream = new_stream()
    graphed, eager, first, second = (device_array(seed) for seed in (0, 0, 1, 2))
    one, two = (
        gpuopt.SAM(gpuopt.AdamW([p], lr=0.1, backend="cupy", capturable=p is graphed), 0.7) for p in (graphed, eager)
    )

    def step(sam: gpuopt.SAM) -> None:
        sam.perturb([first])
        sam.step([second])

    with on(stream):
        step(one)
    graph = captured(stream, lambda: step(one))
    for _ in range(2):
        with on(stream):
            graph.launch(stream)
            first[:7] *= 2
    first[:7] /= 4
    stream.synchronize()
    step(two)
    for _ in range(2):
        step(two)
        first[:7] *= 2
    assert bits(graphed.get()) == bits(eager.get())


def test_every_optimizer_steps_by_the_second_gradients() -> None:
    """With the bits of its own step by them, and one launch each way."""
    shapes = [(4, 3), (5,), ()]
    for name in rules.NAMES:
        options = {"lr": 0.1, "backend": "numpy"} | ({"lr_decay": 0.9} if name == "dgd" else {})
        inside, alone = parameters(shapes, np.float32), parameters(shapes, np.float32)
        sam, opt = gpuopt.SAM(gpuopt.create(name, inside, **options)), gpuopt.create(name, alone, **options)
        for step in range(2):
            sam.perturb(gradients(step, shapes, np.float32))
            sam.step(gradients(step + 10, shapes, np.float32))
            opt.step(gradients(step + 10, shapes, np.float32))
        assert bits([inside, sam.state_dict()["state"]]) == bits([alone, opt.state_dict()["state"]]), name


def test_masks_bounds_and_ascent_hold_for_what_is_perturbed() -> None:
    p, q, r = np.array([0.0, 1.0]), np.array([0.5, 0.5]), np.array([1.0, 1.0])
    groups = [{"params": [p, q]}, {"params": [r], "maximize": True}]
    mask, bounds = [[np.array([False, True]), None], [None]], [[None, (0.0, 0.6)], [None]]
    sam = gpuopt.SAM(gpuopt.SGD(groups, lr=0.1, mask=mask, bounds=bounds), rho=4.0)
    sam.perturb([[np.ones(2), np.array([2.0, -3.0])], [np.ones(2)]])
    norm = np.sqrt(2 + 13 + 2) + 1e-12
    assert p[0] == 0 and q.tolist() == [0.6, 0.0]
    assert abs(p[1] - 1 - 4 / norm) < 1e-12 and np.abs(r - 1 + 4 / norm).max() < 1e-12
    sam.restore()
    assert p.tolist() == [0, 1] and q.tolist() == [0.5, 0.5] and r.tolist() == [1, 1]


def test_a_closure_is_asked_twice_and_whatever_fails_parameters_are_put_back() -> None:
    params = {"w": np.array([1.0, -2.0]), "b": np.array(0.5)}
    other = copy.deepcopy(params)
    sam, two = (gpuopt.SAM(gpuopt.Adam(each, lr=0.1), rho=0.2) for each in (params, other))
    sam.step(lambda found: {name: np.sin(3 * p) for name, p in found.items()})
    two.perturb({name: np.sin(3 * p) for name, p in other.items()})
    two.step({name: np.sin(3 * p) for name, p in other.items()})
    assert bits(params) == bits(other) and not sam.perturbed

    def failing(after: int) -> Callable[[Any], Any]:
        calls = iter(range(9))

        def closure(found: Any) -> Any:
            if next(calls) == after:
                raise ZeroDivisionError
            return {name: np.ones_like(p) for name, p in found.items()}

        return closure

    for after in (0, 1):
        with refused(sam, ZeroDivisionError):
            sam.step(failing(after))
    with refused(sam, DtypeError, "gradient of params['w']"):
        sam.perturb({"w": np.ones(2, int), "b": None})
    before = bits(params)
    sam.perturb({"w": np.ones(2), "b": None})
    with pytest.raises(DtypeError):
        sam.step({"w": np.ones(2, int), "b": None})
    assert bits(params) == before and not sam.perturbed


def test_nothing_but_the_second_step_in_the_middle_of_one() -> None:
    params = [np.ones(3), np.ones(2)]
    sam = gpuopt.SAM(gpuopt.ScheduleFreeSGD(params, lr=0.1), rho=0.1)
    grads = [np.ones(3), None]
    for call in (sam.restore, lambda: sam.step(grads)):
        with refused(sam, InputError, "the parameters are not perturbed: expected perturb() before it"):
            call()
    sam.eval()
    with refused(sam, InputError, "call opt.train()"):
        sam.perturb(grads)
    sam.train()
    saved = sam.state_dict()
    sam.perturb(grads)
    moved = bits(params)
    middle = "the parameters are perturbed: expected step() before it, or restore()"
    for wrong in (
        lambda: sam.perturb(grads),
        lambda: sam.step(lambda _: grads),
        sam.state_dict,
        lambda: sam.load_state_dict(saved),
        lambda: sam.add_param_group({"params": np.ones(4)}),
        lambda: sam.eval(),
        lambda: sam.averaged_params(),
        lambda: gpuopt.full_precision(sam),
        lambda: copy.deepcopy(sam),
        lambda: pickle.dumps(sam),
    ):
        with pytest.raises(InputError) as caught:
            wrong()
        assert middle in str(caught.value) and bits(params) == moved
    sam.step(grads)


def test_copies_checkpoints_and_more_parameters_go_on() -> None:
    params = [np.ones(3), np.ones(2)]
    sam = gpuopt.SAM(gpuopt.AdamW(params, lr=0.1), rho=0.1, adaptive=True, eta=0.0)
    sam.step(slope)
    again = pickle.loads(pickle.dumps(sam))
    fresh = [p.copy() for p in params]
    loaded = gpuopt.SAM(gpuopt.AdamW(fresh, lr=0.1), rho=0.1, adaptive=True, eta=0.0)
    loaded.load_state_dict(sam.state_dict())
    for each in (sam, again, loaded):
        each.step(slope)
    assert bits(params) == bits(fresh) == bits(list(again.param_groups[0]["params"]))
    sam.add_param_group({"params": [np.full(4, 2.0)]})
    sam.rho = 0.0
    sam.perturb([slope(params), [np.ones(4)]])
    assert bits(params) == bits(fresh)
    sam.step([slope(params), [np.ones(4)]])
    assert (sam.param_groups[1]["params"][0] < 2).all() and repr(sam).startswith("SAM(rho=0.0, adaptive=True, eta=0.0)")


def test_what_cannot_be_is_refused() -> None:
    opt = gpuopt.GD(np.ones(3), lr=0.1)
    for wrong, words in (
        ({"rho": -0.1}, r"SAM: rho = -0.1: expected a number in \[0, inf\)"),
        ({"rho": lambda step: 0.1}, "SAM: rho = "),
        ({"eta": float("nan")}, "SAM: eta = nan"),
        ({"adaptive": 1}, "adaptive = 1"),
    ):
        with pytest.raises(InputError, match=words):
            gpuopt.SAM(opt, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="SAM: found ndarray: expected an optimizer of gpuopt, such as"):
        gpuopt.SAM(np.ones(3))  # type: ignore[arg-type]
    assert "perturbation" not in gpuopt.optimizers() and not hasattr(gpuopt, "Perturbation")
